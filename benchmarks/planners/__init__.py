"""The parts of `benchmarks/planner.py`: what is planned, the planners that take turns, and how they are measured."""

"""The parts of `benchmarks/update.py`: what is trained on, and everybody's way to do it."""

"""Settings of runs that take seconds, by flag: the smallest that have all the parts of a real one."""

WINDOWS = {"batch-size": 2, "window": 5}
MODEL = {"deter-dim": 8, "stoch-dim": 4, "hidden-dim": 8, "embed-dim": 8, "depth": 4}
PLANNER = {"horizon": 2, "num-candidates": 6, "num-elites": 2, "num-iterations": 2}
LOOP = {
    "env": "gym:Pendulum-v1",
    "action-repeat": 20,
    "seed-episodes": 2,
    "num-episodes": 2,
    "updates-per-episode": 2,
    "eval-every": 2,
    "eval-episodes": 2,
}
RUN = {**LOOP, **WINDOWS, **MODEL, **PLANNER}


def flags_of(settings):
    """The words of a command line."""
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]

"""Command lines, fuzzed: whatever the flags, a run that would begin, or one line that says why not.

A run is stopped where it would begin, once everything is checked: no episode is played, and nothing learned.
"""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from fuzzing import CASES, counted, hostile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loading import load_example
from tiny_runs import flags_of

from planet_lib import Episode, training
from planet_lib.data import save_episode
from planet_lib.envs import make_vector_env

TINY = {
    "action-repeat": 20,
    "deter-dim": 4,
    "stoch-dim": 3,
    "hidden-dim": 4,
    "embed-dim": 4,
    "depth": 4,
    "horizon": 2,
    "num-candidates": 4,
    "num-elites": 2,
    "num-iterations": 1,
    "batch-size": 2,
    "window": 3,
    "replay-capacity": 99,
}
FLAGS = flags_of(TINY)
NUMBERS = [
    "0",
    "-1",
    "1",
    "2",
    "3",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e308",
    "1e-320",
    "2147483648",
    str(10**30),
    "0x1",
    "1_0",
]
WORDS = ["", " ", "x", "é", "\0", "\ud800", "a b", "a,b", "--env", "-", "None", "True", "cpu", "cuda:9", "mps", "auto"]
NAMES = ["dmc:", "dmc:cartpole", "gym:", "gym:No-v1", "gym:a:b", "gym:Pendulum-v1", "minari:no", "x=1", "horizon=x"]
PATHS = [
    "..",
    "/",
    "/dev/null",
    "missing",
    "missing/deep",
    "empty",
    "garbage",
    "foreign",
    "cut",
    "x" * 300,
    "run",
    "file",
]
VALUES = [*NUMBERS, *WORDS, *NAMES, *PATHS, "planner=icem", "horizon=2", "discount=nan"]


train_planet, train_offline, evaluate, open_loop = map(
    load_example, ("train_planet", "train_offline", "evaluate", "open_loop")
)


class Reached(BaseException):
    """Everything is checked, and the run would begin."""


def reach(*_, **__):
    raise Reached


@pytest.fixture(scope="module", autouse=True)
def _place(tmp_path_factory):
    """A directory with a run, its episodes, and what only looks like a run."""
    place = tmp_path_factory.mktemp("fuzz") / "a" / "b"
    place.mkdir(parents=True)
    with contextlib.chdir(place), pytest.MonkeyPatch.context() as patch:
        make_run()
        for name in ("missing", "empty", "garbage", "foreign", "cut"):
            if name != "missing":
                Path(name).mkdir()
        Path("file").write_text("text")
        Path("garbage/settings.json").write_bytes(b"\xff{")
        Path("foreign/settings.json").write_text('{"format": "planet_lib run", "settings": {"env": "x"}}')
        Path("cut/settings.json").write_bytes(Path("run/settings.json").read_bytes())
        Path("cut/checkpoint.pt").write_bytes(Path("run/checkpoint.pt").read_bytes()[:500])
        patch.setattr(training.RunDirectory, "create", reach)
        patch.setattr(training.MetricsWriter, "__init__", reach)
        patch.setattr(training, "make_deterministic", lambda: None)
        patch.setattr(evaluate, "run_episodes", reach)
        patch.setattr(open_loop, "collect", reach)
        patch.setattr(open_loop, "open_loop_error", reach)
        for module in (train_planet, evaluate):  # processes would take seconds
            patch.setattr(module, "make_vector_env", lambda *a, **k: make_vector_env(*a, **{**k, "workers": False}))
        yield


def make_run():
    """A run that was stopped in its first episode, by train_planet.py itself, and a folder of episodes."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()):
        patch.setattr(train_planet, "run_episodes", stop)
        patch.setattr(training.MetricsWriter, "_open_events", lambda self, kept: None)  # seconds of imports
        train_planet.main([*FLAGS, "--env", "gym:Pendulum-v1", "--obs", "state", "--out", ".", "--name", "run"])
    rows = np.arange(8)
    episode = Episode(
        obs=np.ones((8, 3), np.float32),
        action=np.zeros((8, 1), np.float32),
        reward=np.zeros(8, np.float32),
        is_first=rows == 0,
        terminated=rows < 0,
        truncated=rows == 7,
    )
    for number in range(3):
        save_episode("data", episode, number)


def stop(*_, **__):
    raise KeyboardInterrupt


LINES = {
    "train_planet": (train_planet, [*FLAGS, "--env", "gym:Pendulum-v1", "--obs", "state", "--out", "runs"]),
    "train_offline": (train_offline, [*FLAGS[2:], "data", "--holdout", "0.4", "--context", "2", "--out", "runs"]),
    "train_planet --resume": (train_planet, ["--resume", "run"]),
    "train_planet --init-from": (train_planet, [*FLAGS, "--init-from", "run", "--env", "gym:Pendulum-v1"]),
    "evaluate": (evaluate, ["run", "--episodes", "2"]),
    "open_loop": (open_loop, ["run", "--num-episodes", "1"]),
}


def flags_of(module):
    """Every flag of a command line that takes a value."""
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        module.main(["--help"])
    words = text.getvalue().replace("[", " ").replace("]", " ").replace(",", " ").split()
    return sorted({word for word in words if word.startswith("--") and word not in ("--help", "--video")})


def files():
    """All that is here, but for a run's lock, which stays."""
    return sorted(str(each) for each in Path.cwd().parent.rglob("*") if each.name != ".lock")


def outcome(module, words):
    """Run a command line: "begins", or the line it ended with, which must be one line, and leave nothing behind."""
    before, said = files(), io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            module.main(words)
    except Reached:
        return "begins"
    except SystemExit as end:
        code = end.code
    else:
        raise AssertionError(f"the program ended and did nothing: {words}")
    line = code if isinstance(code, str) else said.getvalue().strip().splitlines()[-1]
    program = f"{module.__name__}.py: "
    assert len(line.splitlines()) == 1, f"more than one line: {line!r}"
    assert line.startswith(program) or (code == 2 and ": error: " in line), f"not of the program: {line!r}"
    assert len(line) > len(program) + 10, f"nothing is said: {line!r}"
    assert files() == before, f"files are left after {line!r}"
    return line


@pytest.mark.parametrize("name", LINES)
def test_any_flags_begin_a_run_or_cost_one_line(name):
    module, right = LINES[name]
    flags = flags_of(module)

    @settings(max_examples=CASES, derandomize=CASES <= 25, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(st.data())
    def run(data):
        words = list(right)
        for _ in range(data.draw(st.integers(1, 2))):
            value = data.draw(st.sampled_from(VALUES))
            if data.draw(st.integers(0, 9)) == 0:
                words[data.draw(st.integers(0, len(words) - 1))] = value
            else:
                words += [data.draw(st.sampled_from(flags)), value]
        counted[name] = counted.get(name, 0) + 1
        outcome(module, words)

    run()


@pytest.mark.parametrize("name", LINES)
def test_the_right_flags_begin_a_run(name):
    module, right = LINES[name]
    assert outcome(module, right) == "begins"


@pytest.mark.parametrize("name", ["train_planet --init-from", "evaluate", "open_loop"])
def test_a_checkpoint_of_anything_begins_a_run_or_costs_one_line(name):
    module, right = LINES[name]
    whole = training.load_checkpoint("run/checkpoint.pt")

    @settings(max_examples=CASES, derandomize=CASES <= 25, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(st.data())
    def run(data):
        part = data.draw(st.sampled_from(["settings", "done", None]))
        changed = data.draw(hostile(whole[part] if part else whole)).value
        saved = {**whole, part: changed} if part else changed
        try:
            training.save_checkpoint("run/checkpoint.pt", saved)
        except (TypeError, ValueError):
            return  # nothing that a checkpoint can hold
        counted[f"{name}, its checkpoint"] = counted.get(f"{name}, its checkpoint", 0) + 1
        outcome(module, right)

    try:
        run()
    finally:
        training.save_checkpoint("run/checkpoint.pt", whole)

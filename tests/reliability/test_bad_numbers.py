"""Numbers that go bad in a whole training run, put in where they arise: named, left out, counted, and gone on from."""

import contextlib
import csv
import math
import pkgutil

import gymnasium
import numpy as np
import pytest
import torch
from loading import load_example
from tiny_runs import RUN, flags_of

from planet_lib.data import random_policy, run_episodes
from planet_lib.envs import make_vector_env
from planet_lib.training import SkipNonFinite, load_checkpoint

SETTINGS = {
    **RUN,
    "obs": "state",
    "action-repeat": 40,
    "seed-episodes": 1,
    "updates-per-episode": 3,
    "eval-every": 9,
    "eval-episodes": 1,
    "window": 4,
    "max-skipped": 2,
}


train_planet = load_example("train_planet")


def train(out, *flags):
    train_planet.main([*flags_of(SETTINGS), "--out", str(out), "--name", "run", *flags])
    return out / "run"


def rows_of(run):
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def spoil(monkeypatch, target, calls, change):
    """Change what a function returns at these calls of it, counted from 1."""
    place, _, name = target.rpartition(".")
    holder = pkgutil.resolve_name(place)
    original, count = getattr(holder, name), [0]

    def changed(*args, **kwargs):
        count[0] += 1
        answer = original(*args, **kwargs)
        return change(answer) if count[0] in calls else answer

    monkeypatch.setattr(holder, name, changed)


STEP = "gymnasium.envs.classic_control.pendulum.PendulumEnv.step"
LOSS = "planet_lib.training.update.elbo_loss"
NORM = "torch.nn.utils.get_total_norm"
ACT = "planet_lib.planning.CEMPlanner.__call__"


def bad_observation(answer):
    return np.array([np.nan, 0.0, 0.0], np.float32), *answer[1:]


def bad_reward(answer):
    return answer[0], math.inf, *answer[2:]


def bad_loss(losses):
    bad = losses.raw["kl"] * math.nan
    return losses._replace(total=losses.total + bad, raw={**losses.raw, "kl": bad})


def bad_plan(plan):
    return plan._replace(action=plan.action * math.nan)


@pytest.mark.parametrize(
    ("target", "change", "call", "line"),
    [
        # The second episode begins at step 201 of the simulator; of a decision's 40 steps the last one is observed.
        (
            STEP,
            bad_observation,
            240,
            "episodes from seed 1 on is left out (",
        ),
        (
            STEP,
            bad_reward,
            203,
            "episodes from seed 1 on is left out (the environment's reward must be finite, got inf",
        ),
        (ACT, bad_plan, 2, "episodes from seed 1 on is left out (seed 1, step 2: action must be finite"),
    ],
)
def test_an_episode_with_a_bad_number_is_played_again_and_counted(
    tmp_path, monkeypatch, capsys, target, change, call, line
):
    spoil(monkeypatch, target, [call], change)
    run = train(tmp_path)
    assert line in " ".join(capsys.readouterr().err.split())
    rows = rows_of(run)
    assert [row["kind"] for row in rows] == ["seed", "train", "train", "eval"]
    assert [row["skipped_episodes"] for row in rows] == ["0", "1", "1", "1"]
    assert [row["skipped_updates"] for row in rows] == ["0", "0", "0", "0"]
    assert len(list((run / "episodes").iterdir())) == 3


@pytest.mark.parametrize(
    ("target", "change", "line"),
    [
        (LOSS, bad_loss, "update 2 is left out (loss and gradient must be finite, got nan and norm"),
        (NORM, lambda norm: norm * math.inf, "update 2 is left out (loss and gradient must be finite, got"),
    ],
)
def test_an_update_with_a_bad_number_is_left_out_and_counted(tmp_path, monkeypatch, capsys, target, change, line):
    spoil(monkeypatch, target, [2], change)
    run = train(tmp_path)
    told = " ".join(capsys.readouterr().err.split())
    assert line in told
    assert "not finite: kl" in told or target == NORM
    rows = rows_of(run)
    assert [row["skipped_updates"] for row in rows] == ["0", "1", "1", "1"]
    trained = [row for row in rows if row["kind"] == "train"]
    assert [row["updates"] for row in trained] == ["3", "6"]
    assert all(math.isfinite(float(row[name])) for row in trained for name in ("loss_total", "kl", "grad_norm"))


def test_a_round_whose_updates_were_all_left_out_has_gaps_for_its_losses(tmp_path, monkeypatch):
    spoil(monkeypatch, LOSS, [1, 2, 3], bad_loss)
    run = train(tmp_path, "--max-skipped", "3")
    first, second = (row for row in rows_of(run) if row["kind"] == "train")
    assert (first["kl"], first["skipped_updates"]) == ("nan", "3")
    assert math.isfinite(float(second["kl"]))


@pytest.mark.parametrize(
    ("target", "change", "calls", "message"),
    [
        (LOSS, bad_loss, range(4, 99), "update 6 would be number 3 in a row to be left out, and 2 may be: loss and"),
        (
            STEP,
            bad_reward,
            range(401, 999),
            "would be number 3 in a row to be left out, and 2 may be: the environment's",
        ),
    ],
)
def test_too_many_in_a_row_end_the_run_with_its_last_checkpoint_from_which_it_goes_on(
    tmp_path, monkeypatch, target, change, calls, message
):
    whole = train(tmp_path / "whole")
    spoil(monkeypatch, target, calls, change)
    with pytest.raises(SystemExit, match=message) as stopped:
        train(tmp_path)
    assert "\n" not in str(stopped.value)
    monkeypatch.undo()
    run = tmp_path / "run"
    assert load_checkpoint(run / "checkpoint.pt")["done"]["episodes"] == 2
    train_planet.main(["--resume", str(run)])
    ends = [load_checkpoint(path / "checkpoint.pt") for path in (run, whole)]
    torch.testing.assert_close(ends[0]["model"], ends[1]["model"], rtol=0.0, atol=0.0)
    assert ends[0]["skipped_updates"] == ends[1]["skipped_updates"] == {"count": 0, "in_a_row": 0}


class Slippery(gymnasium.Env):
    """An environment whose reward is no number in the third step of the episodes of odd seeds, the first time."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self):
        self.seen = set()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.steps = seed, 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        is_bad = self.steps == 3 and self.seed % 2 and self.seed not in self.seen
        if is_bad:
            self.seen.add(self.seed)
        return np.zeros(2, np.float32), math.nan if is_bad else 1.0, False, self.steps == 6, {}


@pytest.mark.parametrize("workers", [False, True])
def test_a_bad_number_of_an_environment_in_a_worker_is_left_out_like_any_other(workers):
    lines = []
    skip = SkipNonFinite(limit=5, say=lines.append)
    with contextlib.closing(make_vector_env(Slippery, 2, workers=workers, obs="state")) as envs:
        found = None
        while found is None:
            with skip.leaving_out("an attempt"):
                found = run_episodes(envs, random_policy(1, np.random.default_rng(0)), seeds=[0, 1, 2])
    assert [float(episode.reward.sum()) for episode in found] == [6.0, 6.0, 6.0]
    assert skip.count == 1  # the worker is well, and has not been replaced: it remembers
    assert "reward must be finite, got nan" in lines[0]

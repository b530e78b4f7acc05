"""Collection, fuzzed: its arguments, and whatever environments and policies may return."""

import numpy as np
import pytest
import torch
from fuzzing import Entry, fuzz

from planet_lib.data import SequenceReplay, run_episode, run_episodes

STEPS = 3  # of an episode, unless an environment is told otherwise


class Theirs(Exception):
    """What a policy or callback of the user's raises itself: it passes through collection as it is."""


class One:
    """An environment that counts its steps; some of what it returns at the first one can be replaced."""

    def __init__(self, **replaced):
        self.replaced = replaced
        self.count = 0

    def part(self, name, right):
        return self.replaced.pop(name, right) if self.count == 1 else right  # once: a lost episode begins again

    def seen(self):
        return {"camera": np.full((1, 3, 5), self.count, np.uint8), "joints": np.array([self.count, 0.5])}

    def reset(self, *, seed=None):
        self.count = 0
        return self.replaced.get("reset", (self.replaced.get("first", self.seen()), {}))

    def step(self, action):
        self.count += 1
        parts = (
            self.part("obs", self.seen()),
            self.part("reward", float(self.count)),
            self.part("terminated", False),
            self.part("truncated", self.count == STEPS),
            self.part("info", {}),
        )
        return self.part("step", parts)


class Many(One):
    """Two of them at once, which forget whoever is reset."""

    num_envs = 2

    def seen(self):
        one = super().seen()
        return {name: np.stack([value, value]) for name, value in one.items()}

    def reset(self, *, seed, options):
        assert len(seed) == 2
        assert options["reset_mask"].dtype == np.bool_
        return super().reset()

    def step(self, actions):
        self.count += 1
        ends = np.full(2, self.count % STEPS == 0)
        parts = (
            self.part("obs", self.seen()),
            self.part("reward", np.full(2, float(self.count))),
            self.part("terminated", np.zeros(2, np.bool_)),
            self.part("truncated", ends),
            self.part("info", {}),
        )
        return self.part("step", parts)


def still(obs, is_first, state):
    assert not torch.is_grad_enabled()
    return torch.zeros(len(is_first), 1), (state or 0) + 1


def theirs(function):
    """The function, whose own errors are told apart from the library's."""
    if not callable(function):
        return function

    def call(*args):
        try:
            return function(*args)
        except Exception as error:
            raise Theirs(str(error)) from error

    return call


def replay_takes(episode):
    """Whatever was collected can be kept: one rule for what an episode is."""
    shapes = {name: value.shape[1:] for name, value in episode.obs.items()} if isinstance(episode.obs, dict) else None
    shapes = episode.obs.shape[1:] if shapes is None else shapes
    replay = SequenceReplay(50, obs_shape=shapes, action_dim=episode.action.shape[1])
    replay.add(episode)
    assert replay.num_steps == len(episode.reward) >= 2
    return True


def check_episode(given, episode):
    assert replay_takes(episode)
    assert episode.terminated[-1] or episode.truncated[-1]


def check_episodes(given, episodes):
    assert len(episodes) == len(given.get("seeds", [3, 4, 5]))
    assert all(replay_takes(episode) for episode in episodes)


def one_with(**replaced):
    policy = still
    if "action" in replaced or "policy" in replaced:

        def policy(obs, is_first, state):
            right = torch.zeros(len(is_first), 1)
            answer = (replaced.get("action", right) if state is None else right, 1)
            return replaced.get("policy", answer) if state is None else answer

    return run_episode(One(**replaced), policy)


def many_with(**replaced):
    def policy(obs, is_first, state):
        right = torch.zeros(2, 1)
        answer = (replaced["action"] if state is None else right, 1)
        return replaced["policy"] if state is None and replaced["policy"] is not None else answer

    return run_episodes(Many(**replaced), policy, seeds=[3, 4, 5])


def seen(count=1):
    return {"camera": np.full((1, 3, 5), count, np.uint8), "joints": np.array([count, 0.5])}


def stacked():
    return {name: np.stack([value, value]) for name, value in seen().items()}


OBSERVATIONS = (
    np.zeros(2),
    np.zeros((64, 64, 3), np.uint8),
    [1.0, 2.0],
    [[1.0], [2.0, 3.0]],
    torch.zeros(2, device="meta"),
)
NUMBERS = (np.array(1.5), np.array([1.5]), torch.tensor(1.5), "1.5", np.ma.masked, 10**400, np.complex64(1), True)
FLAGS = (np.array(True), np.array([True]), torch.tensor(True), 1, 0, None, np.nan, "False", np.array([True, False]))
FLAG_ROWS = ([True, False], np.zeros(2), np.zeros((2, 1), bool), torch.zeros(2, dtype=torch.bool), np.zeros(3, bool))
SPACES = (
    type("Env", (One,), {"action_space": type("Space", (), {"shape": shape})}) for shape in [(), (2,), 3, None, ("a",)]
)
KNOWN_AS = {
    "obs": ["observation"],
    "first": ["observation"],
    "reset": ["env.reset", "observation"],
    "step": ["env.step", "observation", "reward", "info", "terminated", "truncated"],
    "policy": ["policy", "action"],
}

ENTRIES = [
    Entry(
        "data.run_episode",
        lambda env, policy, seed, on_step: run_episode(env, theirs(policy), seed=seed, on_step=theirs(on_step)),
        lambda: {"env": One(), "policy": still, "seed": 3, "on_step": lambda step: None},
        check_episode,
        also={"env": (One, *[env() for env in SPACES], type("Half", (), {"reset": lambda self: None})())},
        known_as={"env": ["action"]},
        errors=(Theirs,),
    ),
    Entry(
        "data.run_episode",
        one_with,
        lambda: {
            "first": seen(0),
            "obs": seen(),
            "reward": 1.5,
            "terminated": False,
            "truncated": False,
            "info": {},
            "action": torch.zeros(1, 1),
        },
        check_episode,
        also={"first": OBSERVATIONS, "obs": OBSERVATIONS, "reward": NUMBERS, "terminated": FLAGS, "truncated": FLAGS},
        known_as=KNOWN_AS,
    ),
    Entry(
        "data.run_episode",
        one_with,
        lambda: {
            "reset": (seen(0), {}),
            "step": (seen(), 1.5, False, False, {}),
            "policy": (torch.zeros(1, 1), 1),
        },
        check_episode,
        known_as=KNOWN_AS,
    ),
    Entry(
        "data.run_episodes",
        lambda env, policy, seeds, on_step, on_episode: run_episodes(
            env, theirs(policy), seeds=seeds, on_step=theirs(on_step), on_episode=theirs(on_episode)
        ),
        lambda: {
            "env": Many(),
            "policy": still,
            "seeds": [3, 4, 5],
            "on_step": lambda step: None,
            "on_episode": lambda number, episode: None,
        },
        check_episodes,
        also={
            "env": (
                Many,
                One(),
                *(type("Env", (Many,), {"num_envs": count})() for count in (0, -1, 2.0, None, "2", True)),
            ),
            "seeds": ([-1], [1.5], ["3"], [None], [10**40], "345", {3, 4}, {3: 4}, np.arange(3), torch.arange(2), 3),
        },
        known_as={"env": ["num_envs"]},
        errors=(Theirs,),
    ),
    Entry(
        "data.run_episodes",
        many_with,
        lambda: {
            "first": {name: value - value for name, value in stacked().items()},
            "obs": stacked(),
            "reward": np.ones(2),
            "terminated": np.zeros(2, np.bool_),
            "truncated": np.zeros(2, np.bool_),
            "info": {"restarted": np.zeros(2, np.bool_)},
            "action": torch.zeros(2, 1),
            "policy": None,
        },
        check_episodes,
        also={
            "first": OBSERVATIONS,
            "obs": OBSERVATIONS,
            "reward": NUMBERS,
            "terminated": (*FLAGS, *FLAG_ROWS),
            "truncated": FLAG_ROWS,
            "info": [{"restarted": flag} for flag in (*FLAGS, *FLAG_ROWS)],
        },
        known_as=KNOWN_AS,
    ),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_collection_gives_whole_episodes_or_names_what_is_wrong(entry):
    fuzz(entry)

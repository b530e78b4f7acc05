"""Rows that come in one by one, from many environments: the replay holds what a plain list of lists would hold."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planet_lib.data import SequenceReplay

NUM_ENVS, ROWS = 2, 9


class Model:
    """Per part a list of episodes, each a list of numbers; a number says all about its row."""

    def __init__(self):
        self.parts = [[] for _ in range(NUM_ENVS)]
        self.running = [False] * NUM_ENVS
        self.rows = {}  # number -> (is_first, terminated, truncated)

    def new_row(self, is_first, terminated, truncated):
        self.rows[len(self.rows) + 1] = (is_first, terminated, truncated)
        return len(self.rows)

    def make_room(self, part, rows):
        while sum(map(len, part)) + rows > ROWS:
            if len(part) == 1 and self.running[self.parts.index(part)]:
                part[0].pop(0)
            else:
                part.pop(0)

    def add(self, length):
        free = [part for part, runs in zip(self.parts, self.running, strict=True) if not runs]
        part = min(free, key=lambda episodes: sum(map(len, episodes)))
        self.make_room(part, length)
        part.append([self.new_row(row == 0, False, row == length - 1) for row in range(length)])
        return part[-1]

    def append(self, is_first, terminated, truncated):
        numbers = []
        for index, part in enumerate(self.parts):
            number = self.new_row(is_first[index], terminated[index], truncated[index])
            if is_first[index]:
                self.running[index] = False
            self.make_room(part, 1)
            if is_first[index]:
                part.append([])
            part[-1].append(number)
            self.running[index] = not (terminated[index] or truncated[index])
            numbers.append(number)
        return numbers

    def fields(self, numbers):
        number = np.array(numbers, np.float32)
        flags = np.array([self.rows[n] for n in numbers], bool).reshape(-1, 3)
        moved = np.where(flags[:, 0], 0, number)
        return {
            "obs": np.stack([number, -number], 1),
            "action": (moved / 10_000)[:, None].astype(np.float32),
            "reward": moved.astype(np.float32),
            "is_first": flags[:, 0],
            "terminated": flags[:, 1],
            "truncated": flags[:, 2],
        }


def windows_of(model, length, across):
    """All windows, as tuples of the numbers of their rows."""
    found = []
    for part in model.parts:
        for rows in [list(chain.from_iterable(part))] if across else part:
            found += [tuple(rows[start : start + length]) for start in range(max(len(rows) - length + 1, bool(rows)))]
    return found


def check(replay, model, length):
    assert replay.num_steps == sum(len(episode) for part in model.parts for episode in part)
    assert replay.num_episodes == sum(map(len, model.parts))
    for across in (False, True):
        allowed = set(windows_of(model, length, across))
        for uniform in ("episodes", "steps"):
            batch = replay.sample(12, length, uniform=uniform, across=across)
            for b in range(12):
                valid = int(batch.mask[:, b].sum())
                numbers = tuple(int(number) for number in batch.obs[:valid, b, 0])
                assert numbers in allowed
                expected = model.fields(numbers)
                for name in ("obs", "action", "reward", "is_first", "terminated"):
                    field = getattr(batch, name)[:, b]
                    assert np.array_equal(field[:valid].numpy(), expected[name]), name
                    assert not field[valid:].any(), name


operations = st.one_of(
    st.tuples(st.just("add"), st.integers(1, ROWS)),
    st.tuples(
        st.just("append"), st.lists(st.sampled_from(["first", "", "", "", "end", "cut"]), min_size=2, max_size=2)
    ),
)


@settings(max_examples=40)
@given(steps=st.lists(operations, min_size=1, max_size=40), length=st.integers(1, 7), directory=st.booleans())
def test_any_order_of_calls_leaves_what_lists_would_hold(tmp_path_factory, make_episode, steps, length, directory):
    folder = tmp_path_factory.mktemp("replay") if directory else None
    replay = SequenceReplay(NUM_ENVS * ROWS, obs_shape=(2,), action_dim=1, num_envs=NUM_ENVS, directory=folder)
    model = Model()
    for name, what in steps:
        if name == "append":
            firsts = [word == "first" or not runs for word, runs in zip(what, model.running, strict=True)]
            numbers = model.append(firsts, [word == "end" for word in what], [word == "cut" for word in what])
            replay.append(**model.fields(numbers))
        elif not all(model.running):
            replay.add(make_episode(0, what)._replace(**model.fields(model.add(what))))
        if any(model.parts):
            check(replay, model, length)
    stored = [episode.obs[:, 0].astype(int).tolist() for episode in replay.episodes()]
    done = [part[:-1] if runs else part for part, runs in zip(model.parts, model.running, strict=True)]
    assert stored == [episode for part in done for episode in part if model.rows[episode[0]][0]]
    if directory:
        replay.close()
        again = SequenceReplay(NUM_ENVS * ROWS, obs_shape=(2,), action_dim=1, num_envs=NUM_ENVS, directory=folder)
        model.parts, model.running = done, [False] * NUM_ENVS
        if any(done):
            check(again, model, length)
        again.close()


@pytest.mark.parametrize("across", [False, True])
def test_windows_of_all_parts_are_drawn_alike(across):
    model, replay = Model(), SequenceReplay(18, obs_shape=(2,), action_dim=1, num_envs=2, seed=3)
    for step in range(7):  # parts of three and of two episodes, the last ones still running
        firsts = [step in (0, 4), step in (0, 2, 5)]
        replay.append(**model.fields(model.append(firsts, [False, False], [False, False])))
        replay.sample(1, 3, uniform="steps", across=across)  # what it learns of the running ones doesn't last
    possible = windows_of(model, 3, across)
    drawn = replay.sample(6000, 3, uniform="steps", across=across).obs[0, :, 0].int().tolist()
    counts = Counter(drawn)
    assert set(counts) == {window[0] for window in possible}
    expected = 6000 / len(possible)
    square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert square < {False: 22.5, True: 27.9}[across]  # 6 and 9 degrees of freedom: once in a thousand


def row(**changes):
    fields = {
        "obs": np.ones((2, 2), np.float32),
        "action": np.zeros((2, 1)),
        "reward": np.zeros(2),
        "is_first": np.array([True, True]),
        "terminated": np.zeros(2, bool),
        "truncated": np.zeros(2, bool),
    }
    return {**fields, **changes}


def test_a_running_episode_is_sampled_at_once_and_tensors_will_do():
    replay = SequenceReplay(10, obs_shape=(2,), action_dim=1, num_envs=2)
    replay.append(**{name: torch.from_numpy(value) for name, value in row().items()})
    batch = replay.sample(4, 2)
    assert batch.mask.tolist() == [[True] * 4, [False] * 4]
    assert batch.is_first[0].all()
    assert batch.obs[0].eq(1).all()


def test_dictionaries_come_in_row_by_row():
    replay = SequenceReplay(6, obs_shape={"camera": (1, 2, 2), "joints": (3,)}, action_dim=1, num_envs=2)
    obs = {"camera": np.full((2, 1, 2, 2), 7, np.uint8), "joints": np.full((2, 3), 0.5, np.float32)}
    replay.append(**row(obs=obs))
    batch = replay.sample(3, 1)
    assert batch.obs["camera"].eq(7).all()
    assert batch.obs["joints"].eq(0.5).all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"obs": np.ones((1, 2), np.float32)},
            ValueError,
            r"obs must be \[2, 2\], one row for each of num_envs=2, got",
        ),
        ({"obs": np.ones((2, 2))}, TypeError, "obs must be float32, got float64; convert it with astype"),
        (
            {"obs": {"a": np.ones((2, 2), np.float32)}},
            ValueError,
            r"obs must be \['obs'\] \(obs_shape\), got \['obs/a'\]",
        ),
        ({"obs": [[1, 2], [3, 4]]}, TypeError, "obs must be an array or tensor, got list"),
        ({"obs": np.full((2, 2), np.nan, np.float32)}, ValueError, "obs must be finite, broken in environment 0 of 2"),
        ({"action": np.zeros((2, 1), int)}, TypeError, r"action must be floats, got int64; convert it with astype\("),
        ({"action": np.zeros((2, 3))}, ValueError, r"action must be \[2, 1\], .* got \[2, 3\]"),
        ({"action": np.array([[0], [2.0]])}, ValueError, r"action must be finite and in \[-1, 1\], broken in env.* 1"),
        ({"action": np.array([[0], [0.5]])}, ValueError, "action must be zero where is_first holds .* environment 1"),
        ({"reward": np.array([0, np.inf])}, ValueError, "reward must be finite, broken in environment 1"),
        ({"reward": np.ones(2)}, ValueError, "reward must be zero where is_first holds"),
        ({"terminated": np.zeros(2)}, TypeError, r"terminated must be bool, got float64; convert it with astype\(bool"),
        ({"is_first": np.array([True, False])}, ValueError, "is_first must hold where no episode is running, .* 1"),
    ],
)
def test_a_broken_row_is_named_and_changes_nothing(make_episode, changes, error, message):
    replay = SequenceReplay(20, obs_shape=(2,), action_dim=1, num_envs=2)
    replay.add(make_episode(5, 10))
    with pytest.raises(error, match=message):
        replay.append(**row(**changes))
    assert (replay.num_steps, replay.num_episodes) == (10, 1)
    assert torch.equal(replay.sample(1, 10).obs[:, 0], torch.from_numpy(make_episode(5, 10).obs))


def test_images_given_as_floats_or_channels_last_are_told_what_to_do():
    replay = SequenceReplay(6, obs_shape=(3, 8, 8), action_dim=1, num_envs=2)
    with pytest.raises(TypeError, match="obs must be uint8, got float32; give uint8 0 to 255: multiply by 255"):
        replay.append(**row(obs=np.zeros((2, 3, 8, 8), np.float32)))
    with pytest.raises(ValueError, match=r"got \[2, 8, 8, 3\]; it is channels last: give obs.transpose\(0, 3, 1, 2\)"):
        replay.append(**row(obs=np.zeros((2, 8, 8, 3), np.uint8)))


def test_an_episode_finds_no_place_where_all_are_running(make_episode):
    replay = SequenceReplay(20, obs_shape=(2,), action_dim=1, num_envs=2)
    replay.append(**row())
    with pytest.raises(ValueError, match="add must find a part where no episode is running, got none; finish one"):
        replay.add(make_episode(0, 3))
    with pytest.raises(ValueError, match=r"at most capacity / num_envs = 10 rows, got 11; raise capacity"):
        replay.add(make_episode(0, 11))
    assert replay.num_steps == 2


def test_extend_adds_what_episodes_returns(make_episode):
    first, second = (SequenceReplay(30, obs_shape=(2,), action_dim=1) for _ in range(2))
    given = [make_episode(number, length) for number, length in enumerate((4, 9, 1))]
    first.extend(given)
    second.extend(first.episodes())
    for episode, expected in zip(second.episodes(), given, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(episode, expected, strict=True))

"""Batches copied ahead: the same ones, never disturbed, and nothing left behind."""

import gc
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planet_lib.data import SequenceReplay
from planet_lib.data import _prefetch as prefetch_module
from planet_lib.data import replay as replay_module


@pytest.fixture(scope="session")
def fill(make_episode):
    def build(lengths=(20, 12, 30, 5), capacity=200):
        replay = SequenceReplay(capacity, obs_shape=(2,), action_dim=1, seed=2)
        for number, length in enumerate(lengths):
            replay.add(make_episode(number, length))
        return replay

    return build


def same(batch, other):
    return all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("replay")]


@settings(max_examples=25)
@given(
    count=st.integers(0, 7),
    prefetch=st.integers(0, 4),
    reuse=st.booleans(),
    uniform=st.sampled_from(["episodes", "steps"]),
    across=st.booleans(),
    device=st.sampled_from([None, "cpu"]),
)
def test_batches_are_those_that_sample_returns(fill, count, prefetch, reuse, uniform, across, device):
    replay, twin = fill(), fill()
    how = {"uniform": uniform, "across": across}
    seen = 0
    for batch in replay.batches(3, 8, count, prefetch=prefetch, reuse=reuse, device=device, **how):
        assert same(batch, twin.sample(3, 8, **how))
        seen += 1
    assert seen == count
    assert replay.state_dict() == twin.state_dict()
    assert not threads()


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_buffers_go_round_only_where_that_is_asked_for(fill, prefetch):
    replay = fill()
    kept = list(replay.batches(3, 8, 6, prefetch=prefetch))
    assert len({batch.obs.data_ptr() for batch in kept}) == 6
    batches = replay.batches(3, 8, 9, prefetch=prefetch, reuse=True)
    memory = []
    for batch in batches:
        before = batch.obs.clone()
        time.sleep(0.002)  # what is copied meanwhile goes elsewhere
        assert torch.equal(batch.obs, before)
        memory.append(batch.obs.data_ptr())
    assert len(set(memory)) == prefetch + 1
    if prefetch:
        assert all(one != other for one, other in pairwise(memory))


@pytest.mark.parametrize("draws_between", [False, True])
def test_leaving_early_ends_the_thread_and_undoes_what_nobody_asked_for(fill, draws_between):
    replay, twin = fill(), fill()
    for number, batch in enumerate(replay.batches(3, 8, 100, prefetch=3)):
        assert same(batch, twin.sample(3, 8))
        if number == 4:
            if draws_between:
                replay.sample(1, 1)
            break
    gc.collect()
    assert not threads()
    assert (replay.state_dict() == twin.state_dict()) is not draws_between
    replay.add(next(twin.episodes()))  # waits for nothing that never ends
    assert replay.num_episodes == 5


def slow_copies(monkeypatch, replay, seconds=0.05):
    """Make each copy wait first, and note when it starts and ends."""
    events, copy = [], replay._sampler.copy

    def slow(drawn, out):
        events.append("start")
        time.sleep(seconds)
        batch = copy(drawn, out)
        events.append("end")
        return batch

    monkeypatch.setattr(replay._sampler, "copy", slow)
    return events


@pytest.mark.parametrize("how", ["add", "append"])
def test_whoever_adds_waits_for_the_copies_that_are_under_way(fill, make_episode, monkeypatch, how):
    replay = fill(lengths=(20,), capacity=20)
    events = slow_copies(monkeypatch, replay)
    batches = replay.batches(4, 20, 3, prefetch=2)
    next(batches)  # two more are drawn, all of them of the episode that is there
    if how == "add":
        replay.add(make_episode(9, 20))
    else:
        begun = {"is_first": np.ones(1, bool), "terminated": np.zeros(1, bool), "truncated": np.zeros(1, bool)}
        replay.append(np.full((1, 2), 9, np.float32), np.zeros((1, 1)), np.zeros(1), **begun)
    assert events == ["start", "end"] * 3
    for batch in batches:
        assert batch.obs[:, :, 0].eq(0).all()
    assert replay.sample(4, 1).obs[..., 0].eq(9).all()


def test_the_next_batches_are_copied_while_one_is_in_use(fill, monkeypatch):
    replay = fill()
    events = slow_copies(monkeypatch, replay, seconds=0)
    batches = replay.batches(2, 3, 5, prefetch=2)
    next(batches)
    deadline = time.monotonic() + 10
    while events != ["start", "end"] * 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert events == ["start", "end"] * 3
    batches.close()


def test_an_error_of_the_copying_thread_reaches_the_caller(fill, monkeypatch):
    replay = fill()

    def broken(drawn, out):
        raise RuntimeError("no such memory")

    monkeypatch.setattr(replay._sampler, "copy", broken)
    with pytest.raises(RuntimeError, match="no such memory"):
        next(replay.batches(2, 3, 5))
    assert not threads()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"length": -1}, "length must be a whole number of at least 1, got -1"),
        ({"count": -1}, "count and prefetch must be at least 0, got -1 and 2"),
        ({"prefetch": -2}, "count and prefetch must be at least 0, got 3 and -2"),
        ({"uniform": "rows"}, "uniform must be one of episodes, steps, got 'rows'"),
    ],
)
def test_bad_arguments_are_named_at_once(fill, arguments, message):
    with pytest.raises(ValueError, match=message):
        fill().batches(**{"batch_size": 2, "length": 3, "count": 3, **arguments})


def test_an_empty_replay_is_named_when_the_first_batch_is_asked_for(fill):
    batches = fill(lengths=()).batches(2, 3, 4)
    with pytest.raises(ValueError, match="replay must hold an episode to sample from, got none"):
        next(batches)


class Events:
    """Stands in for a graphics card: copies that are done only once somebody waits for them."""

    def __init__(self, log):
        self.log = log

    def record(self, stream):
        self.log.append("record")

    def synchronize(self):
        self.log.append("wait")


def test_buffers_for_a_graphics_card_wait_until_it_has_read_them(fill, monkeypatch):
    log, replay = [], fill()
    monkeypatch.setattr(torch.cuda, "Event", lambda: Events(log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(replay_module, "checked_device", lambda name, value: torch.device(value))
    monkeypatch.setattr(prefetch_module.Batch, "to", lambda self, device: type(self)(*(f.clone() for f in self)))
    empty = replay._sampler.empty
    monkeypatch.setattr(
        replay._sampler, "empty", lambda b, t, *, pin_memory: log.append(("pinned", pin_memory)) or empty(b, t)
    )
    list(replay.batches(2, 3, 5, prefetch=1, device="cuda"))
    assert log.count(("pinned", True)) == 2  # made once each
    assert log.count("record") == 5
    assert log.count("wait") == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_arrive_on_a_graphics_card(fill):
    replay, twin = fill(), fill()
    for batch in replay.batches(3, 8, 20, device="cuda"):
        assert batch.obs.device.type == "cuda"
        assert same(batch.to("cpu"), twin.sample(3, 8))

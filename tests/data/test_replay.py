"""Replay: what comes out is a slice of what went in, at the promised frequencies."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planet_lib.data import SequenceReplay
from planet_lib.data._ring import Part
from planet_lib.types import Episode

uniforms = ["episodes", "steps"]
lengths = st.lists(st.integers(1, 12), min_size=1, max_size=12)


@pytest.fixture(scope="session")
def fill(make_episode):
    """A replay of vector episodes 0, 1, ... of the given lengths."""

    def build(lengths, capacity=100, seed=0, **flags):
        replay = SequenceReplay(capacity, obs_shape=(2,), action_dim=1, obs_dtype=np.float32, seed=seed)
        for number, length in enumerate(lengths):
            replay.add(make_episode(number, length, **flags))
        return replay

    return build


@pytest.fixture
def named_replay():
    return SequenceReplay(20, obs_shape={"joints": (2,), "camera": (1, 3, 5)}, action_dim=1)


def kept(lengths, capacity):
    """The numbers of the newest episodes that fit into the capacity together."""
    numbers = []
    for number in reversed(range(len(lengths))):
        if sum(lengths[n] for n in numbers) + lengths[number] > capacity:
            break
        numbers.append(number)
    return numbers[::-1]


def chi_square(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("uniform", uniforms)
@given(lengths=lengths, length=st.integers(1, 12), capacity=st.integers(12, 40), terminated=st.booleans())
def test_every_window_is_a_slice_of_one_kept_episode(
    make_episode, fill, uniform, lengths, length, capacity, terminated
):
    replay = fill(lengths, capacity, terminated=terminated)
    batch = replay.sample(8, length, uniform=uniform)
    for b in range(8):
        number, start = (int(value) for value in batch.obs[0, b])
        assert number in kept(lengths, capacity)
        valid = min(length, lengths[number])
        assert batch.mask[:, b].tolist() == [row < valid for row in range(length)]
        episode = make_episode(number, lengths[number], terminated=terminated)
        assert start + valid <= lengths[number]
        for name in ("obs", "action", "reward", "is_first", "terminated"):
            stored = torch.from_numpy(getattr(episode, name)[start : start + valid])
            assert torch.equal(getattr(batch, name)[:valid, b], stored), name
            assert not getattr(batch, name)[valid:, b].any(), name


@given(lengths=lengths, capacity=st.integers(12, 40))
def test_eviction_keeps_the_newest_whole_episodes_and_never_exceeds_the_capacity(make_episode, lengths, capacity):
    replay = SequenceReplay(capacity, obs_shape=(2,), action_dim=1, obs_dtype=np.float32)
    for number, length in enumerate(lengths):
        replay.add(make_episode(number, length))
        expected = kept(lengths[: number + 1], capacity)
        assert replay.num_episodes == len(expected)
        assert replay.num_steps == sum(lengths[n] for n in expected) <= capacity == replay.capacity
    seen = replay.sample(300, 1, uniform="episodes").obs[0, :, 0].unique().tolist()
    assert seen == kept(lengths, capacity)


def test_images_come_back_byte_for_byte_across_the_end_of_the_ring(make_episode):
    replay = SequenceReplay(10, obs_shape=(3, 4, 5), action_dim=1)
    generator = np.random.default_rng(0)
    for number in range(4):  # 7 rows each: every episode from the second on lies across the end
        images = generator.integers(0, 256, (7, 3, 4, 5), dtype=np.uint8)
        replay.add(make_episode(number, 7)._replace(obs=images))
        batch = replay.sample(3, 7)
        assert batch.obs.dtype == torch.uint8
        assert torch.equal(batch.obs, torch.from_numpy(images)[:, None].expand(7, 3, 3, 4, 5))


@pytest.mark.parametrize("uniform", uniforms)
@given(lengths=lengths, length=st.integers(1, 12), seed=st.integers(0, 9))
def test_the_entries_of_a_dictionary_are_rows_of_one_window(make_named_episode, uniform, lengths, length, seed):
    replay = SequenceReplay(20, obs_shape={"joints": (2,), "camera": (1, 3, 5)}, action_dim=1, seed=seed)
    for number, rows in enumerate(lengths):
        replay.add(make_named_episode(number, rows))
    batch = replay.sample(6, length, uniform=uniform)
    assert list(batch.obs) == ["joints", "camera"]
    assert batch.obs["camera"].shape == (length, 6, 1, 3, 5)
    assert batch.obs["camera"].dtype == torch.uint8
    number, row = batch.obs["joints"].unbind(-1)
    expected = (10 * number + row)[..., None, None, None].expand(length, 6, 1, 3, 5)
    assert torch.equal(batch.obs["camera"].float(), expected)  # zero where it pads, as the numbers are
    assert torch.equal(batch.reward, row)


def test_a_dictionary_is_sampled_at_the_same_rows_as_its_array_alone(make_episode, make_named_episode, fill):
    named = SequenceReplay(100, obs_shape={"camera": (1, 3, 5), "joints": (2,)}, action_dim=1, seed=4)
    for number in range(3):
        named.add(make_named_episode(number, 9))
    alone = fill([9, 9, 9], seed=4).sample(7, 4)
    assert torch.equal(named.sample(7, 4).obs["joints"], alone.obs)


def test_the_type_is_that_of_the_shape():
    def types(**arguments):
        replay = SequenceReplay(5, action_dim=1, **arguments)
        rows = np.arange(2)
        zeros = {"action": np.zeros((2, 1), np.float32), "reward": np.zeros(2, np.float32)}
        flags = {"is_first": rows == 0, "terminated": rows < 0, "truncated": rows < 0}
        obs = {"a": np.zeros((2, 1, 2, 2), np.uint8), "b": np.zeros((2, 3), np.float32)}
        replay.add(Episode(obs=obs, **zeros, **flags))
        return {name: value.dtype for name, value in replay.sample(1, 2).obs.items()}

    shapes = {"a": (1, 2, 2), "b": (3,)}
    for dtypes in (None, {"b": np.float32, "a": "uint8"}):
        assert types(obs_shape=shapes, obs_dtype=dtypes) == {"a": torch.uint8, "b": torch.float32}


def test_the_bytes_are_those_of_all_entries(named_replay):
    assert named_replay.nbytes == 20 * (1 * 3 * 5 + 2 * 4 + 4 + 4 + 1 + 1 + 1) + 21 * 3 * 8


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda obs: obs["joints"],
            TypeError,
            r"episode.obs must be a dictionary with the entries \['camera', 'joints'\]",
        ),
        (lambda obs: {"camera": obs["camera"]}, ValueError, r"must have the entries .* of obs_shape, got \['camera'\]"),
        (lambda obs: {**obs, "more": obs["joints"]}, ValueError, r"got \['camera', 'joints', 'more'\]"),
        (
            lambda obs: {**obs, "joints": obs["joints"][:, :1]},
            ValueError,
            r"episode.obs\['joints'\] must be \[6, 2\], got \[6, 1\]",
        ),
        (
            lambda obs: {**obs, "joints": obs["joints"][:5]},
            ValueError,
            r"episode.obs\['joints'\] must be \[6, 2\], got \[5, 2\]",
        ),
        (
            lambda obs: {**obs, "camera": obs["camera"] / 255},
            TypeError,
            r"\['camera'\] must be uint8, got float64; give uint8",
        ),
        (
            lambda obs: {**obs, "joints": obs["joints"] * np.inf},
            ValueError,
            r"\['joints'\] must be finite, broken at row 0",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply:RuntimeWarning")
def test_a_broken_dictionary_is_named_and_changes_nothing(make_named_episode, named_replay, change, error, message):
    for number in (1, 2):
        named_replay.add(make_named_episode(number, 10))
    episode, before = make_named_episode(3, 6), named_replay.state_dict()
    with pytest.raises(error, match=message):
        named_replay.add(episode._replace(obs=change(episode.obs)))
    assert (named_replay.num_steps, named_replay.num_episodes, named_replay.state_dict()) == (20, 2, before)
    assert named_replay.sample(50, 10).obs["joints"][0, :, 0].unique().tolist() == [1, 2]


def test_images_of_another_form_are_answered_with_what_to_do(make_episode):
    replay = SequenceReplay(9, obs_shape=(3, 8, 6), action_dim=1)
    message = r"must be \[L, 3, 8, 6\], got \[4, 8, 6, 3\]; it is channels last: give obs.transpose\(0, 3, 1, 2\)"
    with pytest.raises(ValueError, match=message):
        replay.add(make_episode(0, 4)._replace(obs=np.zeros((4, 8, 6, 3), np.uint8)))
    with pytest.raises(
        TypeError, match=r"must be uint8, got float32; give uint8 0 to 255: multiply by 255 first where"
    ):
        replay.add(make_episode(0, 4)._replace(obs=np.zeros((4, 3, 8, 6), np.float32)))
    with pytest.raises(TypeError, match=r"must be a NumPy array of rows \(3, 8, 6\) \(obs_shape\), got a dictionary"):
        replay.add(make_episode(0, 4)._replace(obs={"camera": np.zeros((4, 3, 8, 6), np.uint8)}))
    assert replay.num_steps == 0


def test_what_comes_in_is_copied_and_what_comes_out_too(make_episode):
    replay = SequenceReplay(10, obs_shape=(2,), action_dim=1, obs_dtype=np.float32)
    episode = make_episode(4, 5)
    replay.add(episode)
    episode.obs[:] = 9
    batch = replay.sample(1, 5)
    assert torch.equal(batch.obs[:, 0, 0], torch.full((5,), 4.0))
    batch.obs.zero_()
    assert replay.sample(1, 5).obs[0, 0, 0] == 4


def test_uniform_over_episodes_then_over_their_windows(fill):
    batch = fill([5, 20, 3, 9]).sample(8000, 4, uniform="episodes")
    number, start = batch.obs[0, :, 0].long(), batch.obs[0, :, 1].long()
    counts = np.bincount(number, minlength=4)
    assert chi_square(counts, 8000 / 4) < 16.3  # 3 degrees of freedom: exceeded once in a thousand
    starts = np.bincount(start[number == 1], minlength=17)
    assert len(starts) == 17
    assert chi_square(starts, starts.sum() / 17) < 39.3  # 16 degrees of freedom: once in a thousand


def test_uniform_over_steps_draws_every_window_alike(fill):
    batch = fill([5, 20, 3, 9]).sample(8000, 4, uniform="steps")
    number, start = batch.obs[0, :, 0].long(), batch.obs[0, :, 1].long()
    counts = np.unique(number * 100 + start, return_counts=True)[1]
    assert len(counts) == 2 + 17 + 1 + 6  # the one that is too short has one, which pads
    assert chi_square(counts, 8000 / 26) < 52.6  # 25 degrees of freedom: once in a thousand


@pytest.mark.parametrize("uniform", uniforms)
def test_a_new_episode_is_sampled_at_once_at_a_length_asked_for_before(make_episode, fill, uniform):
    replay = fill([6])
    replay.sample(2, 6, uniform=uniform)
    replay.add(make_episode(1, 6))
    assert replay.sample(50, 6, uniform=uniform).obs[0, :, 0].unique().tolist() == [0, 1]


@pytest.mark.parametrize("uniform", uniforms)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), before=st.integers(0, 5))
def test_the_saved_state_resumes_the_same_samples_with_reloaded_episodes(fill, make_episode, uniform, seed, before):
    running = fill([9, 8, 7, 10], capacity=26, seed=seed)  # the first two were evicted: the ring is turned
    for _ in range(before):
        running.sample(3, 4, uniform=uniform)
    file = io.BytesIO()
    torch.save(running.state_dict(), file)
    file.seek(0)
    resumed = fill([], capacity=30, seed=1)
    for number, length in ((1, 8), (2, 7), (3, 10)):
        resumed.add(make_episode(number, length))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        expected, got = running.sample(5, 4, uniform=uniform), resumed.sample(5, 4, uniform=uniform)
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_a_saved_state_stays_what_it_was(fill):
    replay = fill([30])
    state = replay.state_dict()
    first = replay.sample(20, 2).obs
    replay.load_state_dict(state)
    assert torch.equal(first, replay.sample(20, 2).obs)


def test_seeds_decide_the_samples_and_the_global_generators_do_not(fill):
    first = fill([50], seed=3).sample(20, 5).obs
    np.random.seed(1)  # noqa: NPY002 - the legacy global state is what must not matter
    torch.manual_seed(1)
    assert torch.equal(first, fill([50], seed=3).sample(20, 5).obs)
    assert not torch.equal(first, fill([50], seed=4).sample(20, 5).obs)


def test_the_bytes_are_one_frame_its_numbers_and_three_places_of_the_index():
    replay = SequenceReplay(7, obs_shape=(3, 4, 5), action_dim=2)
    assert replay.nbytes == 7 * (3 * 4 * 5 + 2 * 4 + 4 + 1 + 1 + 1) + (7 + 1) * 3 * 8


def test_a_frame_of_64_by_64_takes_hardly_more_than_its_pixels():
    replay = SequenceReplay(1000, obs_shape=(3, 64, 64), action_dim=6)
    assert replay.nbytes / 1000 < 1.01 * 12_288


@given(
    max_bytes=st.integers(200, 5000),
    capacity=st.none() | st.integers(3, 100),
    num_envs=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 30), max_size=8),
)
def test_the_bytes_never_exceed_their_limit(make_episode, max_bytes, capacity, num_envs, lengths):
    sizes = {"obs_shape": (2,), "action_dim": 1, "num_envs": num_envs}
    try:
        replay = SequenceReplay(capacity, max_bytes=max_bytes, **sizes)
    except ValueError as error:
        assert "max_bytes must be at least" in str(error)  # noqa: PT017 - only some of the sizes are refused
        assert max_bytes < num_envs * (19 + 2 * 24)
        return
    rows = replay.capacity // num_envs
    for number, length in enumerate(lengths):
        replay.add(make_episode(number, min(length, rows)))
        assert len({replay.nbytes, *(replay.sample(2, n) and replay.nbytes for n in (1, 2, 3))}) == 1
    assert replay.nbytes <= max_bytes
    assert replay.num_steps <= replay.capacity <= (capacity or replay.capacity)
    # Nothing is wasted: one more row for each would be too many.
    assert replay.nbytes + num_envs * (19 + 24) > max_bytes or replay.capacity + num_envs > capacity


@pytest.mark.parametrize("state", [{}, {"generator": {"bit_generator": "MT19937"}}, {"generator": None}])
def test_a_foreign_state_is_refused_and_changes_nothing(fill, state):
    replay, twin = fill([50]), fill([50])
    with pytest.raises(ValueError, match=r"state must be what SequenceReplay.state_dict\(\) returned"):
        replay.load_state_dict(state)
    assert torch.equal(replay.sample(9, 3).obs, twin.sample(9, 3).obs)


def flag(row, length=6):
    return np.arange(length) == row


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"obs": np.zeros((6, 3), np.float32)}, ValueError, r"episode.obs must be \[L, 2\], got \[6, 3\]"),
        ({"obs": np.zeros((6, 2))}, TypeError, "episode.obs must be float32, got float64; convert"),
        ({"obs": np.zeros((0, 2), np.float32)}, ValueError, "at least one row"),
        ({"obs": np.full((6, 2), np.nan, np.float32)}, ValueError, "episode.obs must be finite, broken at row 0 of 6"),
        ({"obs": torch.zeros(6, 2)}, TypeError, "episode.obs must be a NumPy array, got Tensor"),
        ({"action": np.zeros((6, 2), np.float32)}, ValueError, r"episode.action must be \[6, 1\], got \[6, 2\]"),
        ({"action": np.zeros((5, 1), np.float32)}, ValueError, r"episode.action must be \[6, 1\], got \[5, 1\]"),
        ({"action": flag(2)[:, None] * np.float32(1.01)}, ValueError, r"in \[-1, 1\], broken at row 2"),
        ({"action": flag(3)[:, None] * np.float32(-1.01)}, ValueError, r"in \[-1, 1\], broken at row 3"),
        ({"action": np.full((6, 1), np.nan, np.float32)}, ValueError, "episode.action must be finite and in"),
        ({"action": np.ones((6, 1), np.float32)}, ValueError, "episode.action must be zero at row 0"),
        ({"reward": np.ones(6, np.float32)}, ValueError, "episode.reward must be zero at row 0"),
        (
            {"reward": np.where(flag(4), np.float32("inf"), np.float32(0))},
            ValueError,
            "reward must be finite, .* row 4",
        ),
        ({"reward": np.zeros(6)}, TypeError, "episode.reward must be float32, got float64"),
        ({"is_first": flag(1)}, ValueError, "episode.is_first must hold at row 0 and nowhere else, broken at row 0"),
        ({"is_first": flag(0) | flag(5)}, ValueError, "is_first must hold at row 0 and nowhere else, broken at row 5"),
        ({"is_first": flag(0).astype(np.uint8)}, TypeError, "episode.is_first must be bool, got uint8"),
        ({"terminated": flag(4)}, ValueError, "episode.terminated must hold at the last row only, broken at row 4"),
        ({"truncated": flag(0)}, ValueError, "episode.truncated must hold at the last row only, broken at row 0"),
    ],
)
def test_a_broken_episode_is_named_and_changes_nothing(make_episode, fill, changes, error, message):
    replay = fill([20, 20], capacity=40)
    before = replay.state_dict()
    with pytest.raises(error, match=message):
        replay.add(make_episode(2, 6)._replace(**changes))
    assert (replay.num_steps, replay.num_episodes, replay.state_dict()) == (40, 2, before)
    assert replay.sample(50, 20).obs[0, :, 0].unique().tolist() == [0, 1]


def test_an_episode_longer_than_the_capacity_is_refused_and_evicts_nothing(make_episode, fill):
    replay = fill([5, 5], capacity=10)
    with pytest.raises(ValueError, match="at most capacity=10 rows, got 11; raise capacity"):
        replay.add(make_episode(2, 11))
    assert replay.num_steps == 10


def test_something_else_than_an_episode_is_refused(fill):
    with pytest.raises(TypeError, match="episode must be an Episode, got dict"):
        fill([]).add({"obs": 1})


def test_an_empty_replay_has_nothing_to_sample(fill):
    with pytest.raises(ValueError, match="replay must hold an episode to sample from, got none; add one first"):
        fill([]).sample(2, 8)


@pytest.mark.parametrize("uniform", uniforms)
def test_windows_across_run_on_in_the_order_of_storage_with_the_seams_marked(fill, uniform):
    replay = fill([4, 3, 5, 6], capacity=14)  # the first is gone, and the last lies across the end of the ring
    order = torch.tensor([[n, row] for n, rows in ((1, 3), (2, 5), (3, 6)) for row in range(rows)]).float()
    batch = replay.sample(300, 9, uniform=uniform, across=True)
    assert batch.mask.all()
    starts = [int((order == first).all(1).nonzero()) for first in batch.obs[0]]
    assert set(starts) == set(range(14 - 9 + 1))
    for b, start in enumerate(starts):
        assert torch.equal(batch.obs[:, b], order[start : start + 9])
        assert torch.equal(batch.is_first[:, b], order[start : start + 9, 1] == 0)
    longer = replay.sample(5, 16, uniform=uniform, across=True)
    assert torch.equal(longer.obs[:14], order[:, None].expand(14, 5, 2))
    assert longer.mask.sum(0).tolist() == [14] * 5


def test_across_draws_every_window_of_a_part_alike(fill):
    starts = fill([5, 20, 3, 9]).sample(8000, 4, uniform="steps", across=True).obs[0]
    counts = np.unique(starts[:, 0] * 100 + starts[:, 1], return_counts=True)[1]
    assert len(counts) == 37 - 3
    assert chi_square(counts, 8000 / 34) < 63.9  # 33 degrees of freedom: once in a thousand


def test_buffers_are_overwritten_and_returned(make_named_episode, named_replay):
    named_replay.add(make_named_episode(1, 10))
    out, state = named_replay.sample(3, 12), named_replay.state_dict()
    fresh = named_replay.sample(3, 12)
    named_replay.load_state_dict(state)
    memory = out.obs["camera"].data_ptr()
    for field in (*out.obs.values(), *out[1:]):
        field.fill_(1)
    again = named_replay.sample(3, 12, out=out)
    assert again is out
    assert again.obs["camera"].data_ptr() == memory
    assert all(torch.equal(again.obs[name], fresh.obs[name]) for name in fresh.obs)
    assert all(torch.equal(a, b) for a, b in zip(again[1:], fresh[1:], strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda out: None if out is None else tuple(out), TypeError, "out must be a Batch that sample returned"),
        (lambda out: out._replace(obs=out.obs[1:]), ValueError, r"out.obs must be torch.float32 \[4, 3, 2\], .* got "),
        (lambda out: out._replace(reward=out.reward.double()), ValueError, "out.reward must be .* got torch.float64"),
        (
            lambda out: out._replace(mask=out.mask.T.contiguous().T),
            ValueError,
            "out.mask must be .* contiguous on the CPU",
        ),
        (lambda out: out._replace(obs={"a": out.obs}), ValueError, r"out must have the fields .* got .*'obs/a'"),
    ],
)
def test_buffers_that_do_not_fit_are_refused(fill, change, error, message):
    replay = fill([9])
    out, before = replay.sample(3, 4), replay.state_dict()
    with pytest.raises(error, match=message):
        replay.sample(3, 4, out=change(out))
    assert replay.state_dict() == before


def test_the_index_costs_the_same_however_many_episodes_there_are(make_episode, monkeypatch):
    replay = SequenceReplay(5000, obs_shape=(2,), action_dim=1)
    looked_at, bounds = [], Part.bounds
    monkeypatch.setattr(Part, "bounds", lambda self, numbers: looked_at.append(len(numbers)) or bounds(self, numbers))
    for number in range(1000):
        replay.add(make_episode(number, 6))
        replay.sample(2, 3, uniform="steps")
    assert replay.num_episodes == 5000 // 6
    assert max(looked_at) <= 2  # one new episode, or the two that were drawn


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"length": 0}, "length must be a whole number of at least 1, got 0"),
        ({"uniform": "rows"}, "uniform must be one of episodes, steps, got 'rows'"),
    ],
)
def test_bad_sample_arguments_are_named_and_draw_nothing(fill, arguments, message):
    replay = fill([9])
    before = replay.state_dict()
    with pytest.raises(ValueError, match=message):
        replay.sample(**{"batch_size": 2, "length": 3, **arguments})
    assert replay.state_dict() == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"capacity": 0}, ValueError, "capacity must be a whole number of at least 1, got 0"),
        ({"action_dim": 0}, ValueError, "action_dim must be a whole number of at least 1, got 0"),
        ({"capacity": None}, ValueError, "capacity or max_bytes must be given, got neither"),
        ({"num_envs": 0}, ValueError, "num_envs must be a whole number of at least 1, got 0"),
        ({"num_envs": 11}, ValueError, "capacity must be at least num_envs=11, a row for each, got 10"),
        ({"max_bytes": 100}, ValueError, "max_bytes must be at least 107, room for one row of each env.*, got 100"),
        ({"obs_shape": ()}, ValueError, r"obs_shape must be \(C, Y, X\) or \(N,\), of positive sizes, got \(\)"),
        ({"obs_shape": (3, 0, 4)}, ValueError, r"obs_shape must be .* got \(3, 0, 4\)"),
        (
            {"obs_dtype": np.float64},
            TypeError,
            r"obs_dtype must be uint8 for pixels \(C, Y, X\) and float32 for vectors \(N,\), got float64 for \(3, 4",
        ),
        ({"obs_dtype": np.float32}, TypeError, r"got float32 for \(3, 4, 4\); leave it out"),
        ({"obs_shape": (4,), "obs_dtype": np.uint8}, TypeError, r"got uint8 for \(4,\); leave it out"),
        ({"obs_shape": (4, 4)}, ValueError, r"obs_shape must be \(C, Y, X\) or \(N,\), .* got \(4, 4\)"),
        ({"obs_shape": 4}, TypeError, r"obs_shape must be \(C, Y, X\) or \(N,\), whole numbers, got 4"),
        (
            {"obs_shape": (64, 48, 3)},
            ValueError,
            r"obs_shape must be \(C, Y, X\), channels first, got \(64, 48, 3\); give \(3, 64, 48\), and images as "
            r"obs.transpose\(2, 0, 1\)",
        ),
        ({"obs_shape": {}}, ValueError, "obs_shape must have at least one entry, got an empty dictionary"),
        ({"obs_shape": {1: (2,)}}, TypeError, "obs_shape must have strings as names, got 1"),
        ({"obs_shape": {"a.b": (2,)}}, ValueError, "obs_shape must have printable names .* got 'a.b'"),
        ({"obs_shape": {"a": (2, 2)}}, ValueError, r"obs_shape\['a'\] must be \(C, Y, X\) or \(N,\), .* got \(2, 2\)"),
        ({"obs_shape": {"a": {"b": (2,)}}}, TypeError, r"obs_shape\['a'\] must be .* got {'b': \(2,\)}"),
        ({"obs_shape": {"a": (9, 9, 4)}}, ValueError, r"obs_shape\['a'\] must be .* got \(9, 9, 4\); give \(4, 9, 9\)"),
        (
            {"obs_shape": {"a": (2,)}, "obs_dtype": np.float32},
            TypeError,
            "obs_dtype must be None or a mapping with the entries of obs_shape, got <class 'numpy.float32'>",
        ),
        (
            {"obs_shape": {"a": (2,)}, "obs_dtype": {"b": np.float32}},
            ValueError,
            r"obs_dtype must have the entries \['a'\] of obs_shape, got \['b'\]",
        ),
        ({"obs_shape": {"a": (2,)}, "obs_dtype": {"a": np.uint8}}, TypeError, r"obs_dtype\['a'\] must be .* got uint8"),
        ({"obs_dtype": {"a": np.uint8}}, TypeError, "obs_dtype must be one type, as obs_shape is one shape, got"),
    ],
)
def test_bad_sizes_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        SequenceReplay(**{"capacity": 10, "obs_shape": (3, 4, 4), "action_dim": 1, **arguments})

"""Recorded data: where episodes may come from, that rows are aligned, and that what is wrong is named."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from planet_lib.data import load_episode, save_episode
from planet_lib.data.sources import minari_episodes, read_episodes, shapes_of

ROOT = Path(__file__).parents[2]
T = 4  # steps of a recorded episode
MINARI = "reads Minari's datasets: pip install 'planet-worldmodel[minari]'"


def assert_same(read, wanted):
    for name, value in wanted._asdict().items():
        got = getattr(read, name)
        assert type(got) is type(value), name
        for key in value if isinstance(value, dict) else [...]:
            np.testing.assert_array_equal(got[key], value[key], err_msg=name)


@pytest.fixture
def folder(tmp_path, make_episode):
    """Episodes 0 to 2, of 3, 4 and 5 rows, among files that are none."""
    for number in (1, 0, 2):
        save_episode(tmp_path / "recorded", make_episode(number, 3 + number), number)
    (tmp_path / "recorded" / "notes.txt").write_text("not an episode")
    return tmp_path / "recorded"


def test_a_folder_gives_its_episodes_in_their_order(folder, make_episode):
    read = list(read_episodes(folder))
    assert [len(episode.reward) for episode in read] == [3, 4, 5]
    for number, episode in enumerate(read):
        assert_same(episode, make_episode(number, 3 + number))


def test_a_run_directory_gives_the_episodes_of_its_folder(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    folder.rename(run / "episodes")
    assert [episode.obs[0, 0] for episode in read_episodes(str(run))] == [0, 1, 2]


def test_one_file_of_any_name_is_an_episode(folder, tmp_path, make_episode):
    moved = next(folder.glob("episode-000002-*")).rename(tmp_path / "mine.npz")
    (episode,) = read_episodes(moved)
    assert_same(episode, make_episode(2, 5))


def test_one_entry_of_dictionaries_can_be_taken_alone(tmp_path, make_named_episode):
    save_episode(tmp_path, make_named_episode(3, 4), 0)
    (whole,), (camera,) = read_episodes(tmp_path), read_episodes(tmp_path, obs="camera")
    assert set(whole.obs) == {"camera", "joints"}
    np.testing.assert_array_equal(camera.obs[:, 0, 0, 0], [30, 31, 32, 33])
    with pytest.raises(ValueError, match=r"obs must be one of camera, joints, the entries of .*, got 'depth'"):
        list(read_episodes(tmp_path, obs="depth"))


def test_the_shapes_of_an_episode_are_those_that_a_replay_takes(make_episode, make_named_episode):
    assert shapes_of(make_episode(0, 5)) == ((2,), 1)
    assert shapes_of(make_named_episode(0, 5)) == ({"camera": (1, 3, 5), "joints": (2,)}, 1)


def test_what_no_source_is_gets_named_at_once(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"got .*nothing-here, which does not exist$"):
        read_episodes(tmp_path / "nothing-here")
    with pytest.raises(FileNotFoundError, match=r'did you mean "minari:D4RL/door/human-v2"\?'):
        read_episodes("D4RL/door/human-v2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"must hold episodes named episode-NNNNNN-LLLL\.npz, got none in .*empty"):
        read_episodes(tmp_path / "empty")
    for path in folder.glob("*.npz"):
        path.rename(path.with_name(f"my-{path.name}"))
    with pytest.raises(ValueError, match=r"got 3 other \.npz, such as my-episode-000000-0003\.npz: rename them in"):
        read_episodes(folder)
    with pytest.raises(ValueError, match="actions in episode files lie in"):
        read_episodes(folder, action_low=-1.0)


def test_an_entry_of_vectors_and_a_damaged_file_are_named_when_their_turn_comes(folder):
    with pytest.raises(ValueError, match=r"obs must be None, since the observations of .* no dictionaries, got 'x'"):
        next(read_episodes(folder, obs="x"))
    damaged = next(folder.glob("episode-000001-*"))
    damaged.write_bytes(damaged.read_bytes()[:-40])
    episodes = read_episodes(folder)
    assert next(episodes).obs[0, 0] == 0
    with pytest.raises(ValueError, match=r"episode-000001-0004\.npz is not a whole episode file"):
        next(episodes)


def test_reading_files_imports_neither_minari_nor_gymnasium(folder):
    code = (
        "import sys\nfrom planet_lib.data.sources import read_episodes\n"
        f"assert len(list(read_episodes({str(folder)!r}))) == 3\n"
        "assert not {'minari', 'gymnasium', 'h5py'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr


def test_the_format_is_documented_and_the_examples_of_its_page_run(tmp_path, make_episode):
    page = (ROOT / "docs" / "your-own-data.md").read_text(encoding="utf-8")
    section = page.split("## The format of an episode", 1)[1].split("\n## ", 1)[0]
    named = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert tuple(named) == make_episode(0, 3)._fields
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    check = "assert replay.num_steps == 31 and batch.obs.shape == (10, 4, 2)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join([*blocks, check])],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (episode,) = read_episodes(tmp_path)
    np.testing.assert_allclose(np.diff(episode.obs, axis=0), 0.1 * episode.action[1:], atol=1e-6)
    np.testing.assert_allclose(episode.reward[1:], -np.abs(episode.obs[1:]).sum(1), rtol=1e-5)
    assert "planet_lib" not in blocks[0]


def test_without_minari_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(
        ImportError, match=r'"minari:some/data-v0" needs minari.*pip install .planet-worldmodel\[minari'
    ):
        read_episodes("minari:some/data-v0")


@pytest.fixture
def record(tmp_path, monkeypatch):
    """Returns what makes a dataset of two episodes on this machine: the second is cut off, the first ends as told."""
    minari = pytest.importorskip("minari", reason=MINARI, exc_type=ImportError)
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))

    def make(observation_space, action_space, observations, actions, *, end="terminations", jpeg=False):
        flags = {"terminations": [False] * T, "truncations": [False] * T}
        steps = {"observations": observations, "actions": actions, "rewards": [0.5 * (t + 1) for t in range(T)]}
        ended = {**flags, end: [False] * (T - 1) + [True]}
        buffers = [EpisodeBuffer(**steps, **ended), EpisodeBuffer(**steps, **flags)]
        settings = {"observation_space": observation_space, "action_space": action_space, "jpeg_encoding": jpeg}
        with warnings.catch_warnings(action="ignore"):  # Minari wants an author, an environment, and so on
            minari.create_dataset_from_buffers("mine/test-v0", buffers, **settings)
        return "minari:mine/test-v0"

    return make


@pytest.fixture
def spaces():
    return pytest.importorskip("gymnasium").spaces


def vectors():
    return np.arange((T + 1) * 3, dtype=np.float64).reshape(T + 1, 3)


def test_rows_of_a_dataset_hold_the_action_and_reward_that_led_to_them(record, spaces):
    steps = np.array([[-2.0, 0.0], [2.0, 1.0], [0.0, 0.5], [1.0, 0.25]])
    box = spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 1.0]), dtype=np.float64)
    source = record(spaces.Box(-np.inf, np.inf, (3,), np.float64), box, vectors(), steps)
    ended, cut = read_episodes(source)
    assert (ended.obs.dtype, ended.action.dtype) == (np.float32, np.float32)
    np.testing.assert_array_equal(ended.obs, vectors())
    np.testing.assert_array_equal(ended.action, [[0, 0], [-1, -1], [1, 1], [0, 0], [0.5, -0.5]])
    assert ended.reward.tolist() == [0, 0.5, 1, 1.5, 2]
    assert ended.is_first.tolist() == [True, False, False, False, False]
    assert (ended.terminated.tolist(), ended.truncated.any()) == ([False] * T + [True], False)
    assert (cut.terminated.any(), cut.truncated.any()) == (False, False)
    np.testing.assert_array_equal(cut.action, ended.action)


def test_the_clock_and_the_end_of_a_task_stay_apart(record, spaces):
    box = spaces.Box(-1.0, 1.0, (1,))
    source = record(spaces.Box(-1.0, 99.0, (3,)), box, vectors(), np.zeros((T, 1)), end="truncations")
    ended, _ = read_episodes(source)
    assert (ended.truncated.tolist(), ended.terminated.any()) == ([False] * T + [True], False)


def test_choices_become_one_hot_from_where_they_start(record, spaces):
    source = record(spaces.Box(-1.0, 99.0, (3,)), spaces.Discrete(3, start=5), vectors(), np.array([5, 7, 6, 5]))
    episode, _ = read_episodes(source)
    np.testing.assert_array_equal(episode.action, [[0, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])
    with pytest.raises(ValueError, match=r"action_low and action_high must be None, since the actions .* are choices"):
        read_episodes(source, action_low=0.0)


def images(channels):
    return np.arange((T + 1) * 6 * 5 * channels, dtype=np.uint16).astype(np.uint8).reshape(T + 1, 6, 5, channels)


@pytest.mark.parametrize("channels", ["last", "first", "none"])
def test_images_come_out_channels_first(record, spaces, channels):
    frames = images(1 if channels == "none" else 3)
    given = {"last": frames, "first": frames.transpose(0, 3, 1, 2).copy(), "none": frames[..., 0]}[channels]
    source = record(spaces.Box(0, 255, given.shape[1:], np.uint8), spaces.Discrete(2), given, np.zeros(T, int))
    episode, _ = read_episodes(source)
    assert episode.obs.dtype == np.uint8
    assert episode.obs.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(episode.obs, frames.transpose(0, 3, 1, 2))


def test_compressed_images_are_close_to_what_was_recorded(record, spaces):
    frames = np.zeros((T + 1, 32, 48, 3), np.uint8)
    frames[:, :, 16:] = 200
    source = record(spaces.Box(0, 255, (32, 48, 3), np.uint8), spaces.Discrete(2), frames, np.zeros(T, int), jpeg=True)
    episode, _ = read_episodes(source)
    assert episode.obs.shape == (T + 1, 3, 32, 48)
    assert np.abs(episode.obs.astype(int) - frames.transpose(0, 3, 1, 2)).max() < 5


def test_dictionaries_with_images_stay_dictionaries_and_their_other_entries_are_vectors(record, spaces):
    joints = {"speed": vectors(), "angle": -vectors()}
    observations = {"camera": images(3), "joints": joints, "gear": np.array([0, 1, 1, 0, 1])}
    space = spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (6, 5, 3), np.uint8),
            "joints": spaces.Dict({name: spaces.Box(-99.0, 99.0, (3,)) for name in joints}),
            "gear": spaces.Discrete(2),
        }
    )
    source = record(space, spaces.Box(-1.0, 1.0, (1,)), observations, np.zeros((T, 1)))
    episode, _ = read_episodes(source)
    np.testing.assert_array_equal(episode.obs["camera"], images(3).transpose(0, 3, 1, 2))
    wanted = [spaces.flatten(space["joints"], {name: joints[name][t] for name in joints}) for t in range(T + 1)]
    np.testing.assert_array_equal(episode.obs["joints"], wanted)
    np.testing.assert_array_equal(episode.obs["gear"], [[1, 0], [0, 1], [0, 1], [1, 0], [0, 1]])
    alone, _ = read_episodes(source, obs="camera")
    np.testing.assert_array_equal(alone.obs, episode.obs["camera"])
    with pytest.raises(ValueError, match=r"obs must be one of camera, gear, joints, the entries of .*, got 'depth'"):
        read_episodes(source, obs="depth")


def test_dictionaries_without_images_are_the_vector_that_the_environment_would_give(record, spaces):
    gymnasium = pytest.importorskip("gymnasium")
    from planet_lib.envs import make_env

    class Goal(gymnasium.Env):
        observation_space = spaces.Dict({"place": spaces.Box(-99.0, 99.0, (3,)), "goal": spaces.Box(-9.0, 9.0, (2,))})
        action_space = spaces.Box(-1.0, 1.0, (1,))

        def reset(self, *, seed=None, options=None):
            return {"place": vectors()[1].astype(np.float32), "goal": np.array([7, 8], np.float32)}, {}

    observations = {"place": vectors(), "goal": np.tile([7.0, 8.0], (T + 1, 1))}
    source = record(Goal.observation_space, Goal.action_space, observations, np.zeros((T, 1)))
    episode, _ = read_episodes(source)
    np.testing.assert_array_equal(episode.obs[1], make_env(Goal, obs="state").reset()[0])
    alone, _ = read_episodes(source, obs="goal")
    np.testing.assert_array_equal(alone.obs, observations["goal"])


def test_a_box_without_bounds_needs_some_and_actions_beyond_them_are_named(record, spaces):
    box = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    steps = np.array([[0.0, 0.0], [0.0, 3.0], [4.0, 0.0], [0.0, -1.0]])
    source = record(spaces.Box(-1.0, 99.0, (3,)), box, vectors(), steps)
    with pytest.raises(ValueError, match=r"must have finite bounds, low < high, got \[-inf, -inf\] .*give action_low"):
        read_episodes(source)
    with pytest.raises(ValueError, match=r"^episode 0 of minari:mine/test-v0: .*got 3 in dimension 1 of step 1; give"):
        list(read_episodes(source, action_low=-2.0, action_high=2.0))
    episode, _ = read_episodes(source, action_low=[-4.0, -1.0], action_high=[4.0, 3.0])
    np.testing.assert_array_equal(episode.action, [[0, 0], [0, -0.5], [0, 1], [1, -0.5], [0, -1]])


def test_a_dataset_that_is_loaded_and_filtered_already_can_be_read(record, spaces):
    source = record(spaces.Box(-1.0, 99.0, (3,)), spaces.Discrete(2), vectors(), np.zeros(T, int))
    import minari

    dataset = minari.load_dataset(source.removeprefix("minari:"))
    (episode,) = minari_episodes(dataset.filter_episodes(lambda recorded: not recorded.terminations[-1]))
    assert not episode.terminated.any()


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        ("Box(0.0, 1.0, (6, 5, 3))", "Discrete(2)", "must be uint8 images, vectors or choices, got Box"),
        ("Text(3)", "Discrete(2)", r"must be uint8 images, vectors or choices, got Text"),
        ("Box(-1.0, 1.0, (3,))", "MultiDiscrete([2, 2])", r"must be a Box or Discrete, got MultiDiscrete"),
    ],
)
def test_spaces_that_no_episode_can_hold_are_named(record, spaces, observation, action, message):
    space, choices = eval(f"spaces.{observation}"), eval(f"spaces.{action}")
    texts = ["abc"] * (T + 1) if observation.startswith("Text") else np.zeros((T + 1, *(space.shape or ())))
    source = record(space, choices, texts, np.zeros((T, *choices.shape), int))
    with pytest.raises(ValueError, match=message):
        read_episodes(source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observations": vectors()[1:]}, r"observations must be 5, one more than actions, got \[4\]"),
        ({"observations": vectors() * np.nan}, r"must be finite, broken at row 0"),
        ({"rewards": np.array([0.0, np.inf, 0.0, 0.0])}, r"episode.reward must be finite, broken at row 2"),
        ({"terminations": np.array([True, False, False, False])}, r"terminated must hold at the last row only"),
        ({"actions": np.array([0, 1, 2, 0])}, r"must lie in Discrete\(2\), got 2 at 2"),
        ({"actions": np.array([0, 1, 255, 0], np.uint8)}, r"must lie in Discrete\(2\), got 255 at 2"),
        ({"actions": np.zeros(T, np.float32)}, r"must be whole numbers .*, got float32; convert them with astype"),
        ({"actions": np.zeros((T, 2), int)}, r"one choice of Discrete\(2\) a row, got \[4, 2\]; convert"),
        (
            {"observations": vectors()[:1], "actions": np.zeros(0), "rewards": np.zeros(0)},
            r"actions must be at least one, got none; leave the episode out with filter_episodes",
        ),
        ({"rewards": np.array(["a"] * T)}, "rewards must be an array of numbers, .* got ndarray <U1"),
    ],
)
def test_a_recorded_episode_that_breaks_a_rule_is_named(record, spaces, change, message):
    from dataclasses import replace

    source = record(spaces.Box(-1.0, 99.0, (3,)), spaces.Discrete(2), vectors(), np.zeros(T, int))
    import minari

    dataset = minari.load_dataset(source.removeprefix("minari:"))
    broken = [replace(episode, **change) for episode in dataset]
    dataset.iterate_episodes = lambda: iter(broken)
    with pytest.raises(ValueError, match=rf"^episode 0 of minari:mine/test-v0: .*{message}"):
        list(minari_episodes(dataset))


@pytest.mark.parametrize(
    ("change", "obs", "message"),
    [
        (
            {"gear": np.array([0, 0.5, 1, 0, 1])},
            None,
            r"\['gear'\] must be whole numbers .*, got float64; convert them",
        ),
        ({"gear": None}, None, r"must have the entry 'gear', got camera, joints; record it, or take another with obs"),
        ({"joints": {}}, None, r"\['joints'\] must have the entry 'speed', got nothing; record it"),
        ({"joints": vectors()}, None, r"\['joints'\] must have the entry 'speed', got ndarray; record it"),
        ({"camera": None}, "camera", r"must have the entry 'camera', got joints, gear; record it"),
    ],
)
def test_recorded_dictionaries_unlike_their_space_are_named(record, spaces, change, obs, message):
    from dataclasses import replace

    observations = {"camera": images(3), "joints": {"speed": vectors()}, "gear": np.zeros(T + 1, int)}
    speed, camera = spaces.Box(-99.0, 99.0, (3,)), spaces.Box(0, 255, (6, 5, 3), np.uint8)
    space = spaces.Dict({"camera": camera, "joints": spaces.Dict({"speed": speed}), "gear": spaces.Discrete(2)})
    source = record(space, spaces.Discrete(2), observations, np.zeros(T, int))
    import minari

    dataset = minari.load_dataset(source.removeprefix("minari:"))
    changed = {name: value for name, value in {**observations, **change}.items() if value is not None}
    broken = [replace(episode, observations=changed) for episode in dataset]
    dataset.iterate_episodes = lambda: iter(broken)
    with pytest.raises(ValueError, match=rf"^episode 0 of minari:mine/test-v0: .*{message}"):
        list(minari_episodes(dataset, obs=obs))


def test_a_dataset_that_is_not_here_is_not_downloaded_and_the_command_is_named(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari", reason=MINARI, exc_type=ImportError)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.setattr(minari.storage.hosting, "download_dataset", lambda *args: pytest.fail("downloads"))
    with pytest.raises(FileNotFoundError, match=r"`minari download D4RL/door/human-v2`, or .*MINARI_DATASETS_PATH"):
        read_episodes("minari:D4RL/door/human-v2")


def test_what_a_dataset_gives_can_be_saved_and_read_as_files(record, spaces, tmp_path):
    source = record(spaces.Box(-1.0, 99.0, (3,)), spaces.Discrete(2), vectors(), np.ones(T, int))
    episode, _ = read_episodes(source)
    assert_same(load_episode(save_episode(tmp_path, episode, 0)), episode)

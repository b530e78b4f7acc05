"""Many environments at once: the vector API, seeds, and workers that die in every way."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import closing

import cloudpickle
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from planet_lib.data import run_episode, run_episodes
from planet_lib.envs import make_env, make_vector_env

# Workers cannot import a test module by its name.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Unreadable:
    """Can be sent, and not be read."""

    def __reduce__(self):
        return os.listdir, ("/nowhere-to-be-found",)


class Stairs(gymnasium.Env):
    """Sees [seed, step, action]; an episode has 2 + seed % 5 steps, each worth its number.

    `trouble` happens to seed `at` in step 2: every time, or, with a folder, once for each seed and kind.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, trouble=None, folder=None):
        self.trouble, self.folder = trouble or {}, folder
        self.unpicklable = (lambda: None,)
        self.unreadable = Unreadable()

    @property
    def deadly(self):
        os._exit(7)

    @property
    def many(self):
        import torch

        return torch.zeros(3)

    def open_files(self):
        return len(os.listdir("/proc/self/fd"))

    def reset(self, *, seed=None, options=None):
        self.seed, self.t = seed, 0
        if options:
            self.t = options["start"]
        self.go_wrong("reset")
        infos = {"length": 2 + (seed or 0) % 5}
        if options and "endless" in options:
            infos["itself"] = infos["again"] = infos
        if options and "unpicklable" in options:
            infos["never"] = lambda: None
        return np.array([-1 if seed is None else seed, self.t, 0.0]), infos

    def step(self, action):
        self.t += 1
        if self.t == 2:
            self.go_wrong("step")
        over = self.t == 2 + self.seed % 5
        obs = np.array([self.seed, self.t, action[0]])
        return obs, float(self.t), over and self.seed % 2 == 0, over and self.seed % 2 == 1, {}

    def go_wrong(self, where):
        when, kind = self.trouble.get(self.seed, (None, None))
        if when != where:
            return
        if self.folder is not None:
            try:
                os.mkdir(os.path.join(self.folder, f"{self.seed}-{kind}"))
            except FileExistsError:
                return
        if kind == "raise":
            raise KeyError(f"no stair for seed {self.seed}")
        if kind == "exit":
            os._exit(3)
        if kind == "sys.exit":
            sys.exit(4)
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGSTOP)  # hangs, and only SIGKILL ends it


def climbing(obs, is_first, state):
    """Acts by its own row and its own past alone: 0.1 per step since the episode began."""
    count = is_first.new_zeros(len(obs)).float() if state is None else state
    count = count.masked_fill(is_first, 0) + 1
    return (count / 10)[:, None], count


def children():
    return {process.pid for process in multiprocessing.active_children()}


def is_running(pid):
    """Whether the process lives; one that is dead but not yet waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def same_episode(one, other):
    for field, mine, theirs in zip(one._fields, one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=field)


@pytest.fixture(scope="module")
def stairs():
    with closing(make_vector_env(Stairs, 2, obs="state")) as envs:
        yield envs


@pytest.fixture(params=["workers", "in this process"])
def envs(request):
    if request.param == "workers":
        yield request.getfixturevalue("stairs")
    else:
        with closing(make_vector_env(Stairs, 2, workers=False, obs="state")) as envs:
            yield envs


def test_rows_are_gymnasiums_with_seeds_that_differ(envs):
    theirs = gymnasium.vector.SyncVectorEnv(
        [lambda: make_env(Stairs, obs="state")] * 2, autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED
    )
    assert envs.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.DISABLED
    assert envs.observation_space == theirs.observation_space
    assert envs.action_space == theirs.action_space
    assert envs.single_observation_space == theirs.single_observation_space
    ours, info = envs.reset(seed=3)
    expected, expected_info = theirs.reset(seed=3)
    np.testing.assert_array_equal(ours, expected)
    assert ours[:, 0].tolist() == [3, 4]
    assert info["length"].tolist() == expected_info["length"].tolist() == [5, 6]
    for step in range(5):
        actions = np.array([[0.1 * step], [-0.1 * step]], np.float32)
        *ours, info = envs.step(actions)
        *expected, _ = theirs.step(actions)
        for mine, other in zip(ours, expected, strict=True):
            np.testing.assert_array_equal(mine, other)
            assert mine.dtype == other.dtype
        assert info["restarted"].tolist() == [False, False]
    assert ours[3].tolist() == [True, False]


def test_a_row_that_is_over_is_left_alone_until_the_mask_resets_it(envs):
    envs.reset(seed=[0, 4])
    for _ in range(2):
        first = envs.step(np.zeros((2, 1)))
    for _ in range(2):
        obs, reward, terminated, truncated, _ = envs.step(np.array([[np.nan], [0.5]]))
    assert obs.tolist() == [[0, 2, 0], [4, 4, 0.5]]
    assert (reward.tolist(), terminated.tolist(), truncated.tolist()) == ([0, 4], [True, False], [False, False])
    assert first[0].tolist() == [[0, 2, 0], [4, 2, 0]]  # arrays of earlier calls stay as they were
    obs, info = envs.reset(seed=[1, 99], options={"reset_mask": np.array([True, False]), "start": 1})
    assert obs.tolist() == [[1, 1, 0], [4, 4, 0.5]]
    assert info["_length"].tolist() == [True, False]
    obs, _, terminated, _, _ = envs.step(np.ones((2, 1)))
    assert obs.tolist() == [[1, 2, 1], [4, 5, 1]]
    assert terminated.tolist() == [False, False]


def test_a_step_needs_a_running_row_and_none_runs_on_after_an_interruption(envs, monkeypatch):
    fresh = make_vector_env(Stairs, 1, workers=False, obs="state")
    with pytest.raises(gymnasium.error.ResetNeeded, match="step needs a running episode in at least one row"):
        fresh.step(np.zeros((1, 1)))
    envs.reset(seed=0)
    slot = envs._slots[1]
    with monkeypatch.context() as patch:
        patch.setattr(slot, "answer", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            envs.step(np.ones((2, 1)))
    with pytest.raises(gymnasium.error.ResetNeeded):
        envs.step(np.zeros((2, 1)))
    assert envs.reset(seed=0)[0].tolist() == [[0, 0, 0], [1, 0, 0]]  # not the answer that nobody took
    assert envs.step(np.zeros((2, 1)))[0].tolist() == [[0, 1, 0], [1, 1, 0]]


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros(2), r"^actions must be \[N, A\] with N=2, A=1, got \[2\]"),
        (np.zeros((3, 1)), r"^actions must be .* got \[3, 1\]"),
        ([[0], [np.nan]], r"^the action of row 1 must be finite and in Box.* got \[nan\]; clip it"),
        ([[-1.1], [0]], "^the action of row 0 must be finite and in Box"),
    ],
)
def test_bad_actions_are_named_before_any_row_moves(envs, actions, message):
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        envs.step(actions)
    assert envs.step(np.ones((2, 1)))[0][:, 1].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": [1]}, "^seed must be one number, or one for each of 2 rows, got 1"),
        ({"options": {"reset_mask": np.array([False, False])}}, r'^options\["reset_mask"\] must be \[2\] bool with at'),
        ({"options": {"reset_mask": np.array([1, 0])}}, r"bool with at least one row True, got array\(\[1, 0\]\)"),
        ({"options": {"reset_mask": [True]}}, r"must be \[2\] bool"),
    ],
)
def test_a_bad_reset_is_named(envs, settings, message):
    with pytest.raises(ValueError, match=message):
        envs.reset(**settings)


def test_choices_are_one_hot():
    envs = make_vector_env("gym:CartPole-v1", 2, workers=False, obs="state")
    assert envs.num_actions == 2
    envs.reset(seed=0)
    assert envs.step(np.eye(2))[1].tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"^the action of row 1 must be one-hot, a 1 among zeros, got \[1. 1.\]"):
        envs.step([[1, 0], [1, 1]])


def test_dictionaries_are_batched_by_name_and_attributes_are_asked_for():
    class Both(Stairs):
        render_mode = "rgb_array"

        def render(self):
            return np.full((8, 8, 3), 10 * self.seed + self.t, np.uint8)

    envs = make_vector_env(Both, 2, workers=False, obs="both", image_size=(4, 4), action_repeat=2)
    obs, _ = envs.reset(seed=4)
    assert obs["pixels"].shape == (2, 3, 4, 4)
    assert obs["state"][:, 0].tolist() == [4, 5]
    obs = envs.step(np.zeros((2, 1)))[0]
    assert obs["pixels"][:, 0, 0, 0].tolist() == [42, 52]
    assert envs.action_repeat == 2
    assert envs.get_attr("seed") == (4, 5)
    assert [frame[0, 0, 0] for frame in envs.render()] == [42, 52]
    envs.close()
    with pytest.raises(gymnasium.error.ClosedEnvironmentError, match="make new ones with make_vector_env"):
        envs.reset()


def test_episodes_of_many_environments_equal_those_of_one(envs):
    seeds = [3, 0, 9, 5, 6, 2, 4]
    found = []
    episodes = run_episodes(envs, climbing, seeds=seeds, on_episode=lambda number, episode: found.append(number))
    assert sorted(found) == list(range(7))
    assert found != list(range(7))
    one = make_env(Stairs, obs="state")
    for seed, episode in zip(seeds, episodes, strict=True):
        same_episode(episode, run_episode(one, climbing, seed=seed))


@pytest.mark.slow
def test_workers_that_die_in_every_way_are_replaced_and_lose_no_episode(tmp_path):
    kinds = {
        0: ("step", "kill"),
        1: ("step", "raise"),
        2: ("step", "exit"),
        3: ("step", "hang"),
        4: ("reset", "kill"),
        5: ("step", "sys.exit"),
    }
    before = children()
    envs = make_vector_env(Stairs, 2, obs="state", timeout=4.0, trouble=kinds, folder=str(tmp_path))
    seeds = [9, 0, 1, 2, 3, 4, 5, 8]
    with pytest.warns(RuntimeWarning, match="has a new worker") as caught:
        episodes = run_episodes(envs, climbing, seeds=seeds)
    reasons = [str(warning.message) for warning in caught]
    for reason in (
        "its process was killed by SIGKILL",
        "KeyError: 'no stair for seed 1'",
        "its process ended with exit code 3",
        "its process gave no answer within 4 seconds",
        "SystemExit: 4",
    ):
        assert any(reason in text for text in reasons), reason
    one = make_env(Stairs, obs="state")
    for seed, episode in zip(seeds, episodes, strict=True):
        same_episode(episode, run_episode(one, climbing, seed=seed))
    assert len(children() - before) == 2
    envs.close()
    assert children() == before


def test_what_always_fails_is_raised_with_the_workers_traceback():
    envs = make_vector_env(Stairs, 2, obs="state", max_restarts=2, trouble={1: ("step", "raise"), 3: ("reset", "exit")})
    saved = []
    message = (
        r"^environment 1 failed 3 times without finishing an episode \(max_restarts=2\), the last time with: "
        r"Traceback [\s\S]*in go_wrong[\s\S]*KeyError: 'no stair for seed 1'$"
    )
    lost = r"^environment 1 has a new worker, and its episode is lost \(step 2 failed again when it was played again\)"
    with pytest.warns(RuntimeWarning, match=lost), pytest.raises(RuntimeError, match=message):
        run_episodes(envs, climbing, seeds=[0, 1], on_episode=lambda number, episode: saved.append(number))
    assert saved == [0]
    with pytest.raises(RuntimeError, match=r"environment 1 failed 3 times .* its process ended with exit code 3$"):
        envs.reset(seed=[0, 3])
    assert envs.reset(seed=[4, 5])[0][:, 0].tolist() == [4, 5]  # and it can still be used
    with pytest.raises(RuntimeError, match=r"^environment 0 failed in 'nothing': Traceback [\s\S]*AttributeError"):
        envs.call("nothing")
    envs.close()


def test_asking_in_vain_ends_no_worker_and_reading_in_vain_no_episode(stairs):
    stairs.reset(seed=[3, 4])
    pids = children()
    for ask, reason in (
        (lambda: stairs.get_attr("nothing"), "AttributeError"),
        (stairs.render, "NotImplementedError"),
        (lambda: stairs.get_attr("unpicklable"), "dumps"),
        (lambda: stairs.get_attr("unreadable"), None),
    ):
        told = (
            rf"Traceback [\s\S]*{reason}" if reason else "its answer cannot be read in this process, FileNotFoundError"
        )
        with pytest.raises(RuntimeError, match=rf"^environment 0 failed in '\w+': {told}"):
            ask()
        assert stairs.step(np.zeros((2, 1)))[4]["restarted"].tolist() == [False, False]
        stairs.reset(seed=[3, 4])
    assert stairs.get_attr("seed") == (3, 4)
    with pytest.raises(RuntimeError, match=r"^environment 0 failed in 'nothing': Traceback [\s\S]*AttributeError"):
        stairs.call("nothing")
    with pytest.raises(gymnasium.error.ResetNeeded):
        stairs.step(np.zeros((2, 1)))
    assert children() == pids


def test_what_cannot_be_sent_is_named_and_no_worker_ends_of_it(stairs):
    pids = children()
    for ask, name in (
        (lambda: stairs.call("open_files", lambda: 1), "open_files"),
        (lambda: stairs.reset(options={"start": lambda: 1}), "reset"),
    ):
        with pytest.raises(TypeError, match=rf"^'{name}' must be given what can be pickled, .* got .*<lambda>"):
            ask()
    stairs.reset(seed=[3, 4])
    assert stairs.get_attr("seed") == (3, 4)
    assert children() == pids


def test_infos_that_hold_themselves_come_to_an_end(envs):
    _, infos = envs.reset(seed=[3, 4], options={"start": 0, "endless": True})
    assert infos["length"].tolist() == [5, 6]
    assert infos["itself"].dtype == infos["again"].dtype == object
    assert infos["itself"][0]["again"]["length"] == 5
    _, infos = envs.reset(seed=[3, 4], options={"start": 0, "endless": True, "unpicklable": True})
    assert infos["length"].tolist() == [5, 6]


def test_a_fork_leaves_the_workers_alone():
    with closing(make_vector_env(Stairs, 2, obs="state")) as envs:
        envs.reset(seed=[3, 4])
        workers = children()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which this is about
            child = os.fork()
        if child == 0:
            status = 1
            try:
                envs.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert children() == workers
        assert envs.step(np.zeros((2, 1)))[4]["restored"].tolist() == [False, False]


def test_reading_tensors_over_and_over_opens_no_files_that_stay(stairs):
    stairs.reset(seed=[3, 4])
    stairs.get_attr("many")
    before = stairs.call("open_files")
    for _ in range(20):
        stairs.get_attr("many")
    after = stairs.call("open_files")
    assert all(abs(now - then) < 5 for now, then in zip(after, before, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deadly", "seed"])
def test_a_worker_that_dies_between_steps_is_replaced_at_the_next_one(name):
    envs = make_vector_env(Stairs, 1, obs="state", max_restarts=1)
    envs.reset(seed=[4])
    envs.step(np.ones((1, 1)))
    reason = "its process ended with exit code 7" if name == "deadly" else "its process was killed by SIGKILL"
    if name == "seed":
        os.kill(envs._slots[0]._process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=f"^environment 0 failed in '{name}': {reason}"):
        envs.get_attr(name)
    with pytest.raises(RuntimeError, match=f"it has no worker until it is stepped or reset, since {reason}"):
        envs.get_attr("seed")
    with pytest.warns(RuntimeWarning, match=rf"environment 0 .* which goes on for it: {reason}"):
        obs, *_, info = envs.step(np.zeros((1, 1)))
    assert obs.tolist() == [[4, 2, 0]]
    assert info["restored"].tolist() == [True]
    assert envs.get_attr("seed") == (4,)
    os.kill(envs._slots[0]._process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"^environment 0 failed in 'seed'"):
        envs.get_attr("seed")
    with pytest.warns(RuntimeWarning, match=r"environment 0 has a new worker: its process was killed by SIGKILL"):
        assert envs.reset(seed=[6])[0][:, 0].tolist() == [6]
    envs.close()


@pytest.mark.slow
def test_a_row_that_is_reset_while_it_runs_has_finished_its_episode(tmp_path):
    trouble = dict.fromkeys((4, 9, 14), ("step", "kill"))
    envs = make_vector_env(Stairs, 1, obs="state", max_restarts=1, trouble=trouble, folder=str(tmp_path))
    for seed in trouble:
        envs.reset(seed=seed)
        envs.step(np.zeros((1, 1)))
        with pytest.warns(RuntimeWarning, match="which goes on for it: its process was killed"):
            obs, *_, info = envs.step(np.ones((1, 1)))
        assert obs.tolist() == [[seed, 2, 1]]
        assert info["restored"].tolist() == [True]
    envs.close()


def test_a_row_whose_episode_is_lost_keeps_its_observation_and_waits_for_its_reset(stairs):
    stairs.reset(seed=[3, 4])
    stairs.step(np.ones((2, 1)))
    stairs.call("render_mode")
    os.kill(stairs._slots[0]._process.pid, signal.SIGKILL)
    lost = (
        r"^environment 0 has a new worker, and its episode is lost \(`call` may have changed its environment\): "
        "its process was killed by SIGKILL"
    )
    with pytest.warns(RuntimeWarning, match=lost):
        obs, reward, terminated, truncated, info = stairs.step(np.zeros((2, 1)))
    assert obs.tolist() == [[3, 1, 1], [4, 2, 0]]
    assert (reward.tolist(), terminated.tolist(), truncated.tolist()) == ([0, 2], [False, False], [False, False])
    assert info["restarted"].tolist() == [True, False]
    assert info["restored"].tolist() == [False, False]
    assert info["restart_reason"][0].startswith("its process was killed by SIGKILL")
    assert stairs.step(np.zeros((2, 1)))[4]["restarted"].tolist() == [True, False]
    stairs.reset(seed=[8, 0], options={"reset_mask": np.array([True, False])})
    obs, *_, info = stairs.step(np.zeros((2, 1)))
    assert obs.tolist() == [[8, 1, 0], [4, 4, 0]]
    assert info["restarted"].tolist() == [False, False]


def test_an_error_of_the_constructor_is_raised_as_it_is_with_the_workers_traceback():
    before = children()
    with pytest.raises(ValueError, match=r"^obs must be \"pixels\", \"state\" or \"both\", got 'all'") as caught:
        make_vector_env(Stairs, 2, obs="all")
    assert "raised in a worker process:\nTraceback" in caught.value.__notes__[0]
    assert children() == before


@pytest.mark.parametrize(
    ("args", "settings", "error", "message"),
    [
        ((Stairs, 0), {}, ValueError, "^num_envs must be a whole number of at least 1, got 0"),
        ((Stairs, 1), {"timeout": 0}, ValueError, "^timeout must be greater than 0, got 0"),
        ((Stairs, 1), {"max_restarts": -1}, ValueError, "^max_restarts must be a whole number of at least 0, got -1"),
        (("cartpole-balance", 1), {}, ValueError, 'did you mean "dmc:cartpole-balance"'),
        ((Stairs(), 1), {}, TypeError, 'must be "dmc:domain-task", "gym:id" or a callable'),
        (
            (Stairs, 1),
            {"trouble": threading.Lock()},
            TypeError,
            r"^env and its settings must be picklable, .* cannot pickle '_thread.lock' object; let the constructor "
            r".*workers=False",
        ),
    ],
)
def test_bad_arguments_are_named_before_any_process_starts(args, settings, error, message):
    before = children()
    with pytest.raises(error, match=message):
        make_vector_env(*args, **settings)
    assert children() == before


def test_environments_that_differ_are_refused():
    sizes = iter([3, 4])
    with pytest.raises(ValueError, match=r"all environments must have the spaces of the first, .* number 1 has Box"):
        make_vector_env(lambda: Sized(next(sizes)), 2, workers=False, obs="state")


class Sized(Stairs):
    def __init__(self, size):
        super().__init__()
        self.observation_space = spaces.Box(-1, 1, (size,), np.float32)


def test_environments_by_name_draw_in_workers_what_they_draw_here(gl):
    here = make_env("dmc:cartpole-balance")
    first, _ = here.reset(seed=5)
    second = here.step(np.ones(1))[0]
    with closing(make_vector_env("dmc:cartpole-balance", 1)) as envs:
        assert envs.renderer == here.renderer
        assert envs.action_repeat == 8
        np.testing.assert_array_equal(envs.reset(seed=5)[0][0], first)
        np.testing.assert_array_equal(envs.step(np.ones((1, 1)))[0][0], second)
    here.close()
    assert first.std() > 10


SCRIPT = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
import gymnasium
import numpy as np
from planet_lib.envs import make_vector_env

class Slow(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    def __init__(self, path, seconds):
        self.path, self.seconds = path, seconds
        open(f"{path}/{os.getpid()}", "w").close()
    def reset(self, *, seed=None, options=None):
        return np.zeros(1), {}
    def step(self, action):
        open(f"{self.path}-stepping", "w").close()
        time.sleep(self.seconds)
        return np.zeros(1), 0.0, False, False, {}

def run():
    envs = make_vector_env(Slow, 2, obs="state", path=sys.argv[1], seconds=float(sys.argv[2]))
    envs.reset(seed=0)
    try:
        print("ready", flush=True)
        for _ in range(int(sys.argv[3])):
            envs.step(np.zeros((2, 1)))
    except KeyboardInterrupt:
        envs.reset(seed=0)  # a worker that was interrupted would be replaced, with a warning
        envs.step(np.zeros((2, 1)))
        print("interrupted", flush=True)
    return envs

"""
GUARDED = SCRIPT + 'if __name__ == "__main__":\n    envs = run()\n'


def start_script(tmp_path, text, *args):
    path = tmp_path / "script.py"
    path.write_text(text)
    (tmp_path / "pids").mkdir()
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(path), str(tmp_path / "pids"), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def pids_of(tmp_path):
    return [int(path.name) for path in (tmp_path / "pids").iterdir()]


def segments():
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


def test_a_program_that_forgets_to_close_ends_its_workers_without_a_word(tmp_path):
    before = segments()
    script = start_script(tmp_path, GUARDED, 0.01, 3)
    out, err = script.communicate(timeout=120)
    assert (out, err, script.returncode) == ("ready\n", "", 0)
    assert len(pids_of(tmp_path)) == 2
    assert not any(map(is_running, pids_of(tmp_path)))
    assert segments() <= before


def test_ctrl_c_is_the_parents_alone_and_ends_all(tmp_path):
    script = start_script(tmp_path, GUARDED, 0.05, 10_000)
    assert script.stdout.readline() == "ready\n"
    assert wait_until((tmp_path / "pids-stepping").exists)
    os.killpg(script.pid, signal.SIGINT)  # as a terminal does it: to all of them
    out, err = script.communicate(timeout=60)
    assert (out, err, script.returncode) == ("interrupted\n", "", 0)
    assert not any(map(is_running, pids_of(tmp_path)))


def test_workers_end_with_a_parent_that_is_killed_even_in_the_middle_of_a_step(tmp_path):
    script = start_script(tmp_path, GUARDED, 120, 1)
    assert script.stdout.readline() == "ready\n"
    assert wait_until((tmp_path / "pids-stepping").exists)
    assert all(map(is_running, pids_of(tmp_path)))
    script.kill()
    _, err = script.communicate(timeout=60)
    assert wait_until(lambda: not any(map(is_running, pids_of(tmp_path))))
    assert err == ""


def test_a_script_without_the_guard_is_told_so(tmp_path):
    script = start_script(tmp_path, SCRIPT + "envs = run()\n", 0, 1)
    _, err = script.communicate(timeout=120)
    assert script.returncode == 1
    assert "RuntimeError: a worker could not make its environment: its process ended with exit code 1; what it" in err
    assert "A script that makes workers needs `if __name__ == '__main__':`" in err


def test_environments_that_nobody_holds_end_their_workers():
    before = children()
    envs = make_vector_env(Stairs, 1, obs="state")
    assert len(children() - before) == 1
    del envs
    assert children() == before


@pytest.mark.parametrize(("name", "steps"), [("gym:Pendulum-v1", 200), ("dmc:pendulum-swingup", None)])
def test_the_specification_is_that_of_the_environment(name, steps):
    with closing(make_vector_env(name, 1, workers=name.startswith("gym:"), obs="state", action_repeat=2)) as envs:
        assert getattr(envs.spec, "max_episode_steps", None) == steps

import importlib.util
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from planet_lib.envs import default_action_repeat, make_env


class Walk(gymnasium.Env):
    """A point on a line that the action moves; drawn as a 10 x 20 picture."""

    def __init__(self, start=0.0, render_mode=None):
        self.observation_space = spaces.Box(-100, 100, (1,), np.float64)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.start, self.render_mode, self.closed = start, render_mode, False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = np.array([self.start + self.np_random.uniform()])
        return self.place, {}

    def step(self, action):
        self.place = self.place + action
        return self.place, float(self.place[0]), False, False, {}

    def render(self):
        return np.full((10, 20, 3), (10, 20, 30), np.uint8)

    def close(self):
        self.closed = True


def test_a_callable_gets_its_settings_and_the_contract():
    env = make_env(Walk, obs="state", action_repeat=2, start=5.0)
    start = env.reset(seed=3)[0]
    assert 5 <= start[0] < 6
    observation, reward, *_ = env.step(np.array([1.0]))
    assert observation[0] == pytest.approx(start[0] + 2)
    assert reward == pytest.approx(2 * start[0] + 3)
    assert env.reset(seed=3)[0] == start
    assert env.action_repeat == 2


def test_a_callable_that_renders_gives_pixels():
    env = make_env(Walk, image_size=(5, 4), render_mode="rgb_array")
    observation = env.reset(seed=0)[0]
    assert observation.shape == (3, 5, 4)
    assert observation[:, 2, 2].tolist() == [10, 20, 30]
    assert env.action_repeat == 1


class Film(Walk):
    """The same, which observes a picture itself."""

    def __init__(self):
        super().__init__(render_mode="rgb_array")
        self.observation_space = spaces.Box(0, 255, (10, 20, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.render(), {}


def test_the_result_says_what_draws_its_pixels():
    assert make_env(Walk, obs="state").renderer == "none"
    assert make_env(Walk, obs="state", renderer="rays").renderer == "none"
    assert make_env(Walk, render_mode="rgb_array").renderer == "own"
    assert make_env(Walk, obs="both", render_mode="rgb_array").renderer == "own"
    assert make_env(Film).renderer == "own"
    assert make_env("dmc:cartpole-balance", obs="state").renderer == "none"


def test_what_an_environment_draws_can_be_seen_in_red_alone():
    both = make_env(Walk, obs="both", image_size=(5, 10), render_mode="rgb_array", channels="red")
    seen = both.reset(seed=0)[0]
    assert both.observation_space["pixels"].shape == seen["pixels"].shape == (1, 5, 10)
    assert np.unique(seen["pixels"]).tolist() == [10]


def test_an_environment_that_draws_itself_draws_as_ever_whatever_is_supersampled():
    frames = [make_env(Walk, render_mode="rgb_array", supersample=times).reset(seed=0)[0] for times in (1, 2)]
    assert np.array_equal(*frames)


@pytest.mark.parametrize("renderer", ["gl", "rays"])
def test_a_renderer_for_an_environment_that_draws_itself_is_refused(renderer):
    message = f"renderer must be \"auto\" for an environment that draws itself, got '{renderer}'"
    made = []
    with pytest.raises(ValueError, match=message):
        make_env(lambda: made.append(Film()) or made[0], renderer=renderer)
    assert made[0].closed
    with pytest.raises(ValueError, match=message):
        make_env("gym:Pendulum-v1", renderer=renderer)


def test_an_environment_that_does_not_fit_is_closed_again():
    made = []
    with pytest.raises(ValueError, match='obs="pixels" needs'):
        make_env(lambda: made.append(Walk()) or made[0])
    assert made[0].closed


@pytest.mark.parametrize(
    ("name", "repeat"),
    [
        ("dmc:cartpole-balance", 8),
        ("dmc:reacher-easy", 4),
        ("dmc:cheetah-run", 4),
        ("dmc:finger-spin", 2),
        ("dmc:ball_in_cup-catch", 4),
        ("dmc:walker-walk", 2),
        ("dmc:humanoid-run", 2),
        ("gym:HalfCheetah-v5", 1),
        (Walk, 1),
    ],
)
def test_the_action_repeat_is_the_papers_unless_given(name, repeat):
    assert default_action_repeat(name) == repeat


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cartpole-balance", "got 'cartpole-balance'; did you mean \"dmc:cartpole-balance\"?"),
        ("Pendulum-v1", 'did you mean "gym:Pendulum-v1"?'),
        ("atari:pong", 'env must be "dmc:domain-task", "gym:id" or a callable, got \'atari:pong\'$'),
        ("dmc:", 'env must be "dmc:domain-task", "gym:id" or a callable'),
        ("dmc:cartpole", 'env must be "dmc:domain-task", such as "dmc:cartpole-balance", got \'dmc:cartpole\''),
        ("dmc:cartpol-balance", "has no domain 'cartpol'; nearest: dmc:cartpole-balance"),
        ("dmc:ball-in_cup-catch", "has no domain 'ball'; nearest: dmc:ball_in_cup-catch"),
        ("dmc:zzz-qqq", "has no domain 'zzz'; domains: acrobot, ball_in_cup, cartpole"),
        ("dmc:walker-wolk", "domain walker has no task 'wolk'; it has stand, walk, run"),
        ("gym:Pendulun-v1", "gymnasium has no environment 'Pendulun-v1'; nearest: gym:Pendulum-v1"),
        ("gym:HalfCheetah-v9", "nearest: gym:HalfCheetah-v5"),
        ("gym:not an id!", "gymnasium has no environment 'not an id!'"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_ones(name, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")) as caught:
        make_env(name, obs="state")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"obs": "image"}, 'obs must be "pixels", "state" or "both", got \'image\''),
        ({"image_size": (64,)}, r"image_size must be \(Y, X\), two whole numbers, got \(64,\)"),
        ({"image_size": 64}, r"image_size must be \(Y, X\), two whole numbers, got 64"),
        ({"image_size": (64, 0)}, r"image_size must be \(Y, X\), each at least 1, got \(64, 0\)"),
        ({"image_size": (64.0, 64.0)}, r"image_size must be \(Y, X\), two whole numbers"),
        ({"action_repeat": 0}, "action_repeat must be a whole number of at least 1, got 0"),
        ({"action_repeat": 2.0}, "action_repeat must be a whole number of at least 1, got 2.0"),
        ({"action_repeat": True}, "action_repeat must be a whole number of at least 1, got True"),
        ({"supersample": 0}, "supersample must be a whole number of at least 1, got 0"),
        ({"channels": "blue"}, "channels must be one of all, red, grey, got 'blue'"),
        ({"quality": "best"}, "quality must be one of tuned, fast, suite, got 'best'"),
        ({"renderer": "cpu"}, "renderer must be one of auto, gl, rays, got 'cpu'"),
        ({"camera": 0}, "camera must be None for a callable"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_env(Walk, **{"obs": "state", **settings})


def test_an_environment_in_place_of_its_constructor_is_refused():
    with pytest.raises(TypeError, match='env must be "dmc:domain-task", "gym:id" or a callable that makes one, got'):
        make_env(Walk(), obs="state")
    with pytest.raises(TypeError, match=r"the callable must return a gymnasium.Env, got int"):
        make_env(lambda: 3)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("dmc:cartpole-balance", "dm_control", "dmc"),
        ("dmc:cartpole-balance", "gymnasium", "dmc"),
        ("gym:Pendulum-v1", "gymnasium", "gym"),
        ("gym:HalfCheetah-v5", "mujoco", "gym"),
        (Walk, "gymnasium", "gym"),
    ],
)
def test_a_missing_extra_is_named_with_the_command(name, module, extra, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == module else find(wanted))
    message = rf"{module} is not installed: pip install 'planet-worldmodel\[{extra}\]' .*pip install -e '.\[{extra}\]'"
    with pytest.raises(ImportError, match=message):
        make_env(name, obs="state")


QUIET = """
import sys
import planet_lib.envs
loaded = {"gymnasium", "dm_control", "mujoco"} & set(sys.modules)
assert not loaded, loaded
env = planet_lib.envs.make_env("dmc:cartpole-balance")
other = planet_lib.envs.make_env("gym:InvertedPendulum-v5")
env.reset(seed=0), other.reset(seed=0)
"""


def test_import_loads_no_extra_and_nothing_is_printed_even_when_nothing_is_closed(gl, tmp_path):
    not_ours = "ignore:Setting the shape on a NumPy array:DeprecationWarning"  # dm_control 1.0.50 with NumPy 2.5
    command = [sys.executable, "-W", "error", "-W", not_ours, "-c", QUIET]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

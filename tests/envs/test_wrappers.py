import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from planet_lib.envs.wrappers import StandardEnv


class Counter(gymnasium.Env):
    """Counts its steps: observation [count, seed], reward the count, over after `length` steps."""

    def __init__(self, low=(-2.0, 0.0), high=(2.0, 10.0), length=5, reward=None, image=None, dtype=np.float32):
        self.action_space = spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)
        self.image = image
        if image is None:
            self.observation_space = spaces.Dict(
                count=spaces.Box(-9, 9, (1,), np.float64), flag=spaces.Box(0, 1, (1, 2), np.float64)
            )
        else:
            self.observation_space = spaces.Box(0, 255, image.shape, np.uint8)
        self.length, self.reward, self.actions = length, reward, []
        self.flag = 0.5

    def observation(self):
        if self.image is not None:
            return self.image
        return {"count": np.array([self.count]), "flag": np.full((1, 2), self.flag)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0.0
        return self.observation(), {}

    def step(self, action):
        self.actions.append(action.copy())
        action += 100  # works on its argument in place, as some environments do
        self.count += 1
        reward = self.count if self.reward is None else self.reward
        return self.observation(), reward, self.count == self.length, False, {"count": self.count}


def started(env, **settings):
    env = StandardEnv(env, **{"obs": "state", **settings})
    env.reset(seed=0)
    return env


def test_rewards_are_summed_and_only_the_last_observation_is_returned():
    env = started(Counter(), action_repeat=3)
    observation, reward, terminated, truncated, info = env.step(np.zeros(2, np.float32))
    assert observation.tolist() == [3.0, 0.5, 0.5]
    assert observation.dtype == np.float32
    assert (reward, terminated, truncated, info) == (6.0, False, False, {"count": 3.0})


def test_the_repeat_stops_where_the_episode_ends():
    env = started(Counter(length=5), action_repeat=3)
    env.step(np.zeros(2))
    observation, reward, terminated, truncated, _ = env.step(np.zeros(2))
    assert observation[0] == 5.0
    assert reward == 4.0 + 5.0
    assert (terminated, truncated) == (True, False)


def test_minus_one_and_one_are_the_ends_of_the_own_box_and_linear_between():
    env = started(Counter())
    for action in ([-1, -1], [1, 1], [0.5, 0.5], [1 + 5e-7, -1 - 5e-7]):
        env.step(np.array(action, np.float64))
        env.reset()
    actions = np.stack(env.unwrapped.actions)
    assert actions.dtype == np.float32
    assert actions.tolist() == [[-2, 0], [2, 10], [1, 7.5], [2, 0]]


def test_an_environment_that_changes_its_argument_still_sees_the_same_action_each_time():
    env = started(Counter(), action_repeat=3)
    env.step(np.array([0.25, 0.0]))
    assert np.stack(env.unwrapped.actions).tolist() == [[0.5, 5.0]] * 3


@given(st.floats(-1, 1, width=32), st.floats(-3, 0, width=32), st.floats(1, 5, width=32))
def test_no_action_leaves_the_own_box(value, low, high):
    env = started(Counter(low=(low,), high=(high,)))
    env.step(np.array([value], np.float32))
    assert env.unwrapped.action_space.contains(env.unwrapped.actions[0])


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(3), r"action must be \[A\] with A=2 \(the environment's action space\), got \[3\]"),
        (np.zeros((1, 2)), r"A=2 .*, got \[1, 2\]"),
        (np.array([0.0, np.nan]), r"action must be finite, got \[ 0. nan\]"),
        (np.array([np.inf, 0.0]), "action must be finite"),
        (np.array([0.0, 1.00001]), r"action must be within \[-1, 1\]"),
        (np.array([-1.5, 0.0]), r"action must be within \[-1, 1\]"),
    ],
)
def test_a_bad_action_is_refused_before_the_environment_steps(action, message):
    env = started(Counter())
    with pytest.raises(ValueError, match=message):
        env.step(action)
    assert env.unwrapped.actions == []
    assert env.step(np.zeros(2))[1] == 1.0


@pytest.mark.parametrize("reward", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_raises_and_ends_the_episode(reward):
    env = started(Counter(reward=reward))
    with pytest.raises(ValueError, match="the environment's reward must be finite, got"):
        env.step(np.zeros(2))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(2))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_state_that_is_not_finite_in_float32_raises(value):
    env = started(Counter())
    env.unwrapped.flag = value
    with pytest.raises(ValueError, match="the environment's observation must be finite in float32, got"):
        env.step(np.zeros(2))
    with pytest.raises(ValueError, match="the environment's observation must be finite"):
        env.reset()


def test_a_state_of_another_size_than_announced_raises():
    env = started(Counter())
    env.unwrapped.flag = np.zeros(2)
    env.unwrapped.observation = lambda: {"count": np.zeros(4), "flag": np.zeros(2)}
    with pytest.raises(ValueError, match=r"the environment's observation must flatten to \[3\], got \[6\]"):
        env.step(np.zeros(2))


def test_stepping_without_an_episode_asks_for_a_reset():
    env = StandardEnv(Counter(length=1), obs="state")
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"call reset\(\) first"):
        env.step(np.zeros(2))
    env.reset()
    assert env.step(np.zeros(2))[2]
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(2))


def test_images_of_either_layout_become_channels_first():
    image = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
    for own in (image, np.ascontiguousarray(image.transpose(2, 0, 1))):
        env = StandardEnv(Counter(image=own), obs="pixels", image_size=(6, 4))
        observation = env.reset()[0]
        assert env.observation_space == spaces.Box(0, 255, (3, 6, 4), np.uint8)
        assert (observation == image.transpose(2, 0, 1)).all()


def test_a_returned_image_is_not_the_environments_own_memory():
    own = np.zeros((3, 8, 8), np.uint8)
    env = StandardEnv(Counter(image=own), obs="pixels", image_size=(8, 8))
    observation = env.reset()[0]
    own += 1
    assert (observation == 0).all()


def test_an_image_of_another_size_is_area_averaged():
    own = np.zeros((4, 4, 1), np.uint8)
    own[:2, :2] = [[[0], [100]], [[100], [200]]]
    env = StandardEnv(Counter(image=own), obs="pixels", image_size=(2, 2))
    assert env.reset()[0].tolist() == [[[100, 0], [0, 0]]]


def test_a_kind_of_observation_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r'obs="pixels" needs uint8 image observations or render_mode="rgb_array"'):
        StandardEnv(Counter(), obs="pixels")
    with pytest.raises(ValueError, match=r'obs="state" needs vectors, but this environment observes images'):
        StandardEnv(Counter(image=np.zeros((8, 8, 3), np.uint8)), obs="state")


def test_a_rendered_frame_that_is_no_image_is_refused():
    env = Counter()
    env.render_mode = "rgb_array"
    env.render = lambda: np.zeros((8, 8, 3), np.float32)
    env = StandardEnv(env, obs="pixels")
    with pytest.raises(ValueError, match=r"an image must be uint8 with 3 channels, last, got float32 \[8, 8, 3\]"):
        env.reset()


def test_action_spaces_that_have_no_middle_are_refused():
    with pytest.raises(ValueError, match="action space must be bounded, low < high"):
        StandardEnv(Counter(low=(-np.inf, 0), high=(1, 1)), obs="state")
    with pytest.raises(ValueError, match="action space must be bounded, low < high"):
        StandardEnv(Counter(low=(1, 0), high=(1, 1)), obs="state")
    discrete = Counter()
    discrete.action_space = spaces.Discrete(3)
    with pytest.raises(ValueError, match=r"action space must be a Box of floats, got Discrete\(3\)"):
        StandardEnv(discrete, obs="state")


def test_actions_with_several_axes_are_flattened():
    env = Counter()
    env.action_space = spaces.Box(-1, 1, (2, 3), np.float64)
    env = started(env)
    assert env.action_space == spaces.Box(-1, 1, (6,), np.float32)
    env.step(np.linspace(-1, 1, 6))
    assert env.unwrapped.actions[0] == pytest.approx(np.linspace(-1, 1, 6).reshape(2, 3))

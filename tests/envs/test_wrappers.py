import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from planet_lib.envs.wrappers import PadActions, StandardEnv


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


@pytest.mark.parametrize(("channels", "expected"), [("red", [9, 30]), ("grey", [10, 40])])
def test_one_channel_is_kept_of_three_and_one_alone_stays(channels, expected):
    colours = np.array([[[9, 10, 12], [30, 40, 50]]] * 3, np.uint8)
    env = StandardEnv(Counter(image=colours), obs="pixels", image_size=(3, 2), channels=channels)
    assert env.observation_space == spaces.Box(0, 255, (1, 3, 2), np.uint8)
    assert env.reset()[0].tolist() == [[expected] * 3]
    alone = StandardEnv(Counter(image=colours[..., 1:2]), obs="pixels", image_size=(3, 2), channels=channels)
    assert alone.reset()[0].tolist() == [[[10, 40]] * 3]


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
    several = Counter()
    several.action_space = spaces.MultiDiscrete([3, 2])
    with pytest.raises(ValueError, match=r"must be a Box of floats or Discrete, got MultiDiscrete.*TransformAction"):
        StandardEnv(several, obs="state")


def test_actions_with_several_axes_are_flattened():
    env = Counter()
    env.action_space = spaces.Box(-1, 1, (2, 3), np.float64)
    env = started(env)
    assert env.action_space == spaces.Box(-1, 1, (6,), np.float32)
    env.step(np.linspace(-1, 1, 6))
    assert env.unwrapped.actions[0] == pytest.approx(np.linspace(-1, 1, 6).reshape(2, 3))


class Chooser(Counter):
    """Such an environment with four actions, the first of them called 3."""

    def __init__(self):
        super().__init__()
        self.action_space = spaces.Discrete(4, start=3)

    def step(self, action):
        return super().step(np.array(action))


def test_a_one_hot_action_is_the_discrete_one_at_its_place():
    env = started(Chooser(), action_repeat=2)
    assert env.action_space == spaces.Box(0, 1, (4,), np.float32)
    assert env.num_actions == 4
    for action in ([1, 0, 0, 0], [0, 0, 0, 1], [1e-7, 0, 1 - 1e-7, 0]):
        env.reset()
        env.step(np.array(action))
    assert [int(action) for action in env.unwrapped.actions] == [3, 3, 6, 6, 5, 5]
    assert env.unwrapped.actions[0].dtype == np.int64


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(4), r"action must be one-hot, one of 4 entries 1 .*, got \[0. 0. 0. 0.\]; give np.eye\(4, dtype"),
        (np.array([1, 1, 0, 0]), "action must be one-hot"),
        (np.array([0, 0.99, 0, 0]), "action must be one-hot"),
        (np.array([1, -1, 0, 0]), "action must be one-hot"),
        (np.array([0, 2, 0, 0]), r"action must be within \[-1, 1\]"),
        (np.array([0, np.nan, 0, 0]), "action must be finite"),
        (np.array(2), r"action must be \[A\] with A=4 .*, got \[\]"),
    ],
)
def test_an_action_that_is_not_one_hot_is_refused_before_the_environment_steps(action, message):
    env = started(Chooser())
    with pytest.raises(ValueError, match=message):
        env.step(action)
    assert env.unwrapped.actions == []


def test_actions_of_a_box_have_no_number():
    assert started(Counter()).num_actions is None


def test_what_draws_is_kept_by_name():
    assert StandardEnv(Counter(), obs="state").renderer == "own"
    assert StandardEnv(Counter(), obs="state", renderer="gl-tuned").renderer == "gl-tuned"


def test_padded_actions_count_by_their_first_entries_alone():
    env, plain = PadActions(started(Counter(), action_repeat=2), 5), started(Counter(), action_repeat=2)
    assert env.action_space == spaces.Box(-1, 1, (5,), np.float32)
    first = np.array([0.5, -0.25], np.float32)
    for rest in (np.zeros(3, np.float32), np.array([1, -1, 0.3], np.float32)):
        env.reset()
        plain.reset()
        observation, *others = env.step(np.concatenate([first, rest]))
        expected, *other_expected = plain.step(first)
        assert observation.tolist() == expected.tolist()
        assert others == other_expected
    assert np.array_equal(env.unwrapped.actions, plain.unwrapped.actions)


def test_padding_keeps_what_the_environment_says_of_itself():
    env = PadActions(StandardEnv(Counter(), obs="state", action_repeat=3, renderer="rays"), 2)
    assert (env.action_repeat, env.renderer, env.num_actions) == (3, "rays", None)
    discrete = PadActions(StandardEnv(Chooser(), obs="state"), 6)
    assert discrete.action_space == spaces.Box(0, 1, (6,), np.float32)
    assert discrete.num_actions == 4
    discrete.reset()
    discrete.step(np.eye(6)[3])
    assert int(discrete.unwrapped.actions[0]) == 6
    with pytest.raises(ValueError, match="action must be one-hot, one of 4 entries 1"):
        discrete.step(np.eye(6)[4])


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(2), r"action must be \[A\] with A=5 .*, got \[2\]"),
        (np.array([0, 0, 0, 0, np.nan]), "action must be finite"),
        (np.array([0, 0, 0, 1.5, 0]), r"action must be within \[-1, 1\]"),
    ],
)
def test_what_stands_in_the_padding_is_checked_too(action, message):
    env = PadActions(started(Counter()), 5)
    with pytest.raises(ValueError, match=message):
        env.step(action)
    assert env.unwrapped.actions == []


@pytest.mark.parametrize("action_dim", [1, 2.0, True])
def test_padding_must_be_at_least_as_long_as_the_own_actions(action_dim):
    with pytest.raises(ValueError, match=r"action_dim must be a whole number of at least A=2 .*; give the largest of"):
        PadActions(started(Counter()), action_dim)


def test_padding_takes_no_environment_under_another_contract():
    with pytest.raises(TypeError, match="env must be a StandardEnv, such as make_env returns, got Counter"):
        PadActions(Counter(), 5)

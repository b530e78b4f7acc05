"""What environments show: pixels and state together, dictionaries of their own, and spaces that are refused."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from planet_lib.envs import make_env
from planet_lib.envs.images import resize_area
from planet_lib.envs.wrappers import StandardEnv

CAMERA = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)


class Shows(gymnasium.Env):
    """Observes what it is given, and draws a grey picture."""

    def __init__(self, space, observation, render_mode=None):
        self.observation_space, self.observation, self.render_mode = space, observation, render_mode
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        return self.observation, {}

    def step(self, action):
        return self.observation, 0.0, False, False, {}

    def render(self):
        return np.full((8, 8, 3), 77, np.uint8)


def image(*shape):
    return spaces.Box(0, 255, shape, np.uint8)


def box(*shape):
    return spaces.Box(-np.inf, np.inf, shape, np.float64)


def robot(**changes):
    """An environment that observes a dictionary of two cameras and its joints."""
    observation = {"front": CAMERA, "joints": np.array([[1.0, 2.0]]), "wrist": CAMERA.transpose(2, 0, 1)}
    return Shows(spaces.Dict(front=image(6, 4, 3), joints=box(1, 2), wrist=image(3, 6, 4)), {**observation, **changes})


def test_the_suite_shows_pixels_and_state_of_the_same_moment(gl):
    both, pixels, state = (make_env("dmc:cartpole-balance", obs=obs) for obs in ("both", "pixels", "state"))
    space = spaces.Dict(
        pixels=spaces.Box(0, 255, (3, 64, 64), np.uint8), state=spaces.Box(-np.inf, np.inf, (5,), np.float32)
    )
    assert both.observation_space == space
    moments = [[env.reset(seed=3)[0]] for env in (both, pixels, state)]
    for seen, env in zip(moments, (both, pixels, state), strict=True):
        seen += [env.step(np.array([value]))[0] for value in (1.0, -0.5)]
    for together, picture, vector in zip(*moments, strict=True):
        assert list(together) == ["pixels", "state"]
        assert np.array_equal(together["pixels"], picture)
        assert np.array_equal(together["state"], vector)
        assert both.observation_space.contains(together)
    for env in (both, pixels, state):
        env.close()


def test_gymnasium_shows_pixels_and_state_of_the_same_moment():
    env, own = make_env("gym:Pendulum-v1", obs="both"), gymnasium.make("Pendulum-v1", render_mode="rgb_array")
    seen, expected = env.reset(seed=2)[0], own.reset(seed=2)[0]
    assert np.array_equal(seen["state"], expected)
    assert np.array_equal(seen["pixels"], resize_area(own.render(), (64, 64)).transpose(2, 0, 1))
    env.close()
    own.close()


def test_mujoco_of_gymnasium_draws_at_the_size_asked_for(gl):
    env = make_env("gym:InvertedPendulum-v5", obs="both", image_size=(48, 64))
    seen = env.reset(seed=0)[0]
    assert seen["pixels"].shape == (3, 48, 64)
    assert seen["pixels"].max() > 60
    assert seen["state"].shape == (4,)
    env.close()


def test_an_environment_of_ones_own_shows_both_where_it_renders():
    env = make_env(Shows, obs="both", image_size=(2, 2), space=box(2), observation=np.ones(2), render_mode="rgb_array")
    seen = env.reset()[0]
    assert (seen["pixels"] == np.full((3, 2, 2), 77)).all()
    assert seen["state"].tolist() == [1, 1]
    message = r'obs="both" needs render_mode="rgb_array", got .* render_mode=None; set that mode, or use obs="state"'
    with pytest.raises(ValueError, match=message):
        make_env(Shows, obs="both", space=box(2), observation=np.ones(2))
    with pytest.raises(ValueError, match=r'obs="both" needs vectors, but this .* observes images, .* use obs="pixels"'):
        make_env(Shows, obs="both", space=image(6, 4, 3), observation=CAMERA)


@pytest.mark.parametrize("obs", ["pixels", "state", "both"])
def test_a_dictionary_with_images_stays_one_with_the_channels_first(obs):
    env = StandardEnv(robot(), obs=obs, image_size=(6, 4))
    seen = env.reset()[0]
    assert list(env.observation_space) == list(seen) == ["front", "joints", "wrist"]
    assert env.observation_space["front"] == env.observation_space["wrist"] == image(3, 6, 4)
    assert env.observation_space["joints"] == spaces.Box(-np.inf, np.inf, (2,), np.float32)
    for name in ("front", "wrist"):
        assert np.array_equal(seen[name], CAMERA.transpose(2, 0, 1))
        assert seen[name].flags.c_contiguous
    assert seen["joints"].tolist() == [1, 2]
    assert seen["joints"].dtype == np.float32
    assert env.observation_space.contains(env.step(np.zeros(1))[0])


def test_each_image_of_a_dictionary_is_averaged_to_the_size_asked_for():
    seen = StandardEnv(robot(), image_size=(3, 2)).reset()[0]
    expected = resize_area(CAMERA, (3, 2)).transpose(2, 0, 1)
    assert np.array_equal(seen["front"], expected)
    assert np.array_equal(seen["wrist"], expected)


def test_the_arrays_of_a_dictionary_are_not_the_environments_own_memory():
    own = {"front": CAMERA.copy(), "joints": np.ones((1, 2), np.float32), "wrist": CAMERA.transpose(2, 0, 1)}
    space = spaces.Dict(front=image(6, 4, 3), joints=spaces.Box(-9, 9, (1, 2), np.float32), wrist=image(3, 6, 4))
    seen = StandardEnv(Shows(space, own), image_size=(6, 4)).reset()[0]
    own["front"][:] = 0
    own["joints"][:] = 0
    assert seen["front"].max() == CAMERA.max()
    assert seen["joints"].tolist() == [1, 1]


def test_a_dictionary_of_vectors_alone_is_one_state():
    space = spaces.Dict(a=box(2), b=box(1, 1))
    env = StandardEnv(Shows(space, {"a": np.array([1.0, 2.0]), "b": np.array([[3.0]])}), obs="state")
    assert env.reset()[0].tolist() == [1, 2, 3]
    both = StandardEnv(
        Shows(space, {"a": np.array([1.0, 2.0]), "b": np.array([[3.0]])}, "rgb_array"), obs="both", image_size=(2, 2)
    )
    assert both.reset()[0]["state"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "space", "message"),
    [
        ("a", spaces.Text(3), r"\['a'\] must be a Box or Discrete, got Text.*; make it a Box of floats: rewrite it"),
        ("a", spaces.Dict(b=box(2)), r"\['a'\] must be one image or vector, got Dict.*; flatten nested spaces"),
        ("a", spaces.Dict(b=image(8, 8, 3)), r"\['a'\] must be one image or vector, .*flatten nested spaces"),
        ("a", spaces.Tuple([box(2)]), r"\['a'\] must be one image or vector, got Tuple"),
        (
            "a",
            image(8, 8),
            r"\['a'\] must be a uint8 image \[Y, X, C\] .*; give it a last axis of one channel: rewrite",
        ),
        (
            "a",
            box(8, 8, 3),
            r"\['a'\] must be a uint8 image .*float64\); give uint8 0 to 255, or a vector: rewrite it with",
        ),
        ("a/b", box(2), "must have printable names without slash, backslash or dot, got 'a/b'; rewrite it with"),
        ("a.b", box(2), "must have printable names without slash, backslash or dot, got 'a.b'"),
        (3, box(2), "must have printable names .* got 3"),
    ],
)
@pytest.mark.parametrize("obs", ["pixels", "state", "both"])
def test_an_entry_that_is_unsupported_is_answered_with_what_to_do(obs, name, space, message):
    env = Shows(spaces.Dict({"camera": image(6, 4, 3), name: space}), None)
    with pytest.raises(ValueError, match=rf"the environment's observation ?{message}") as caught:
        StandardEnv(env, obs=obs)
    assert "gymnasium.wrappers.TransformObservation" in str(caught.value)


def test_images_alone_inside_other_spaces_are_not_flattened_into_a_state():
    env = Shows(spaces.Tuple([image(6, 4, 3), box(2)]), None)
    with pytest.raises(ValueError, match='obs="state" needs vectors, but this environment observes images, Tuple'):
        StandardEnv(env, obs="state")
    nested = Shows(spaces.Dict(sensors=spaces.Dict(camera=image(6, 4, 3))), None)
    with pytest.raises(ValueError, match=r"\['sensors'\] must be one image or vector, .*; flatten nested spaces"):
        StandardEnv(nested, obs="state")


def test_a_space_of_no_fixed_size_is_answered_with_what_to_do():
    env = Shows(spaces.Sequence(box(2)), None)
    with pytest.raises(ValueError, match=r'obs="state" needs an observation of fixed size, got Sequence.*; rewrite it'):
        StandardEnv(env, obs="state")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joints": np.array([[1.0, np.nan]])}, r"observation\['joints'\] must be finite in float32, got \[ 1. nan\]"),
        ({"joints": np.ones(3)}, r"observation\['joints'\] must flatten to \[2\], got \[3\]"),
        (
            {"front": CAMERA / 255},
            r"observation\['front'\] must be uint8 with 3 channels, last, got float64 \[6, 4, 3\]",
        ),
        ({"wrist": CAMERA}, r"observation\['wrist'\] must be uint8 with 3 channels, first, got uint8 \[6, 4, 3\]"),
        (
            {"more": 1},
            r"must have the entries \['front', 'joints', 'wrist'\], got \['front', 'joints', 'wrist', 'more'\]",
        ),
    ],
)
def test_an_observation_unlike_its_space_is_named_with_its_entry(changes, message):
    env = StandardEnv(robot(**changes))
    with pytest.raises(ValueError, match=f"the environment's {message}" if message[0] == "o" else message):
        env.reset()


def test_an_observation_that_is_no_dictionary_is_named():
    env = robot()
    env.observation = CAMERA
    with pytest.raises(ValueError, match=r"must have the entries \['front', 'joints', 'wrist'\], got ndarray"):
        StandardEnv(env).reset()


def test_dictionaries_go_through_collection_into_replay():
    from planet_lib.data import SequenceReplay, random_policy, run_episode

    env = StandardEnv(gymnasium.wrappers.TimeLimit(robot(), 4), image_size=(6, 4))
    shapes = {name: space.shape for name, space in env.observation_space.items()}
    replay = SequenceReplay(10, obs_shape=shapes, action_dim=1)
    replay.add(run_episode(env, random_policy(1, np.random.default_rng(0))))
    obs = replay.sample(1, 5).obs
    assert np.array_equal(obs["front"][4, 0].numpy(), CAMERA.transpose(2, 0, 1))
    assert obs["joints"][4, 0].tolist() == [1, 2]


def test_whole_numbers_are_seen_one_hot_and_tuples_in_their_order():
    lake = make_env("gym:FrozenLake-v1", obs="state", is_slippery=False)
    assert lake.reset(seed=0)[0].tolist() == [1.0] + [0.0] * 15
    right = np.eye(4, dtype=np.float32)[2]
    assert lake.step(right)[0].tolist() == [0.0, 1.0] + [0.0] * 14
    cards = make_env("gym:Blackjack-v1", obs="state")
    hand, dealer, ace = gymnasium.make("Blackjack-v1").reset(seed=1)[0]
    expected = np.concatenate([np.eye(32)[hand], np.eye(11)[dealer], np.eye(2)[ace]])
    assert cards.reset(seed=1)[0].tolist() == expected.tolist()


def test_whole_numbers_beside_an_image_are_one_hot_entries():
    space = spaces.Dict(camera=image(6, 4, 3), facing=spaces.Discrete(4, start=1), doors=spaces.MultiBinary(3))
    env = StandardEnv(Shows(space, {"camera": CAMERA, "facing": 2, "doors": [1, 0, 1]}), image_size=(6, 4))
    seen = env.reset()[0]
    assert seen["facing"].tolist() == [0, 1, 0, 0]
    assert seen["doors"].tolist() == [1, 0, 1]
    assert env.observation_space.contains(seen)


@pytest.mark.parametrize(
    ("space", "observation", "message"),
    [
        (spaces.Discrete(3), 3, r"observation must be one of Discrete\(3\), got 3"),
        (spaces.Dict(a=box(2), b=box(1)), {"a": np.zeros(2)}, r"observation must be one of Dict.*, got \{'a'"),
        (box(2), "up", r"observation must be one of Box.*, got 'up'"),
    ],
)
def test_a_state_that_is_none_of_its_space_is_named(space, observation, message):
    with pytest.raises(ValueError, match=message):
        StandardEnv(Shows(space, observation), obs="state").reset()


def test_text_is_seen_by_the_places_of_its_letters():
    env = StandardEnv(Shows(spaces.Text(3, charset="ab"), "ba"), obs="state")
    seen = env.reset()[0]
    assert seen.shape == (3,)
    assert seen.tolist() == spaces.flatten(env.unwrapped.observation_space, "ba").tolist()

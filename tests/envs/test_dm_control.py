import itertools
import signal

import numpy as np
import pytest

from planet_lib.envs import make_env


@pytest.fixture
def make():
    """`make_env` whose environments are closed after the test."""
    made = []

    def build(name, **settings):
        made.append(make_env(name, **settings))
        return made[-1]

    yield build
    for env in made:
        env.close()


def play(env, seed, decisions=4):
    """Play the same actions from `seed`: observations and rewards."""
    generator = np.random.default_rng(5)
    observations, rewards = [env.reset(seed=seed)[0]], []
    for _ in range(decisions):
        observation, reward, *_ = env.step(generator.uniform(-1, 1, env.action_space.shape))
        observations.append(observation)
        rewards.append(reward)
    return np.stack(observations), rewards


# finger moves its target, quadruped-escape makes a terrain, swimmer draws joints: all of it hangs on the seed.
TASKS = ["cartpole-balance", "finger-turn_hard", "ball_in_cup-catch", "swimmer-swimmer6", "lqr-lqr_2_1", "fish-swim"]


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_gives_exactly_the_same_episode_whatever_came_before(make, task):
    first, second = make(f"dmc:{task}", obs="state"), make(f"dmc:{task}", obs="state")
    observations, rewards = play(first, seed=3)
    play(first, seed=8)
    first.reset()
    again, again_rewards = play(first, seed=3)
    other, other_rewards = play(second, seed=3)
    assert np.array_equal(observations, again)
    assert np.array_equal(observations, other)
    assert rewards == again_rewards == other_rewards
    assert not np.array_equal(observations, play(second, seed=4)[0])


def test_a_seed_gives_exactly_the_same_pixels(gl, make):
    first, second = make("dmc:cartpole-balance"), make("dmc:cartpole-balance")
    observations, _ = play(first, seed=3, decisions=2)
    play(second, seed=8, decisions=1)
    assert np.array_equal(observations, play(second, seed=3, decisions=2)[0])
    assert not np.array_equal(observations, play(second, seed=4, decisions=2)[0])
    assert not np.array_equal(observations[0], observations[2])


def test_resets_without_a_seed_go_on_from_the_last_seed(make):
    env = make("dmc:cartpole-balance", obs="state")
    start = env.reset(seed=1)[0]
    following = env.reset()[0]
    assert not np.array_equal(start, following)
    env.reset(seed=1)
    assert np.array_equal(following, env.reset()[0])


def test_a_repeat_of_four_is_four_single_steps(make):
    single, fourfold = (make("dmc:cheetah-run", obs="state", action_repeat=repeat) for repeat in (1, 4))
    single.reset(seed=2)
    fourfold.reset(seed=2)
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 6)):
        steps = [single.step(action) for _ in range(4)]
        observation, reward, *_ = fourfold.step(action)
        assert reward == sum(step[1] for step in steps)
        assert np.array_equal(observation, steps[-1][0])


@pytest.mark.parametrize(("repeat", "decisions"), [(8, 125), (None, 125), (500, 2)])
def test_an_episode_is_truncated_after_a_thousand_steps(make, repeat, decisions):
    env = make("dmc:cartpole-balance", obs="state", action_repeat=repeat)
    env.reset(seed=0)
    ends = [env.step(np.zeros(1))[2:4] for _ in range(decisions)]
    assert ends == [(False, False)] * (decisions - 1) + [(False, True)]


def test_the_last_decision_is_shorter_where_the_repeat_does_not_divide(make):
    env = make("dmc:cartpole-balance", obs="state", action_repeat=4, time_limit=0.1)
    env.reset(seed=0)
    rewards = [env.step(np.zeros(1))[1] for _ in range(3)]
    assert rewards[0] == pytest.approx(4, abs=0.2)
    assert rewards[2] == pytest.approx(2, abs=0.2)


def test_an_end_with_discount_zero_is_a_termination(make, monkeypatch):
    env = make("dmc:cartpole-balance", obs="state")
    env.reset(seed=0)
    monkeypatch.setattr(type(env.unwrapped._env.task), "get_termination", lambda task, physics: 0.0)
    assert env.step(np.zeros(1))[2:4] == (True, False)


def test_state_and_reward_are_the_suites_own(make):
    from dm_control import suite

    env = make("dmc:reacher-easy", obs="state", action_repeat=1)
    start = env.reset(seed=6)[0]
    own = suite.load("reacher", "easy", task_kwargs={"random": 0})
    own.task.random.seed(int(np.random.default_rng(6).integers(2**32)))
    expected = own.reset().observation
    assert list(expected) == ["position", "to_target", "velocity"]
    assert start == pytest.approx(np.concatenate(list(expected.values())))
    action = np.array([0.3, -0.7])
    observation, reward, *_ = env.step(action)
    step = own.step(action)
    assert observation == pytest.approx(np.concatenate(list(step.observation.values())))
    assert reward == step.reward


def test_an_axis_without_limits_takes_the_action_as_it_is(make):
    env = make("dmc:lqr-lqr_2_1", obs="state", action_repeat=1)
    env.reset(seed=0)
    env.step(np.array([0.5]))
    assert env.unwrapped.physics.data.ctrl.tolist() == [0.5]


def test_an_axis_with_other_limits_than_one_is_stretched(make):
    env = make("dmc:quadruped-walk", obs="state", action_repeat=1)
    env.reset(seed=0)
    env.step(np.ones(12))
    limits = env.unwrapped.physics.model.actuator_ctrlrange
    assert limits.max() > 1
    assert env.unwrapped.physics.data.ctrl == pytest.approx(limits[:, 1])


def test_the_pole_stands_where_it_should_in_the_picture(gl, make):
    env = make("dmc:cartpole-balance")
    frame = env.reset(seed=0)[0].astype(int)
    assert frame.shape == (3, 64, 64)
    orange = (frame[0] > 120) & (frame[0] > frame[2] + 40)
    rows, columns = np.nonzero(orange)
    pole = columns[rows < 28]
    cart = columns[(rows > 29) & (rows < 35)]
    assert 10 <= rows.min() <= 14
    assert len(pole) > 12
    assert abs(pole.mean() - cart.mean()) < 3
    assert cart.max() - cart.min() >= 6


def test_image_size_is_height_and_width(gl, make):
    env = make("dmc:cartpole-balance", image_size=(48, 80))
    assert env.reset(seed=0)[0].shape == (3, 48, 80)
    assert env.render().shape == (48, 80, 3)


@pytest.mark.parametrize("name", ["dmc:cartpole-balance", "gym:InvertedPendulum-v5"])
def test_a_supersampled_frame_is_the_mean_of_one_drawn_larger(gl, make, name):
    small, large = make(name, image_size=(20, 32), supersample=3), make(name, image_size=(60, 96))
    got, drawn = small.reset(seed=0)[0], large.reset(seed=0)[0]
    mean = drawn.reshape(3, 20, 3, 32, 3).mean((2, 4))
    assert got.shape == (3, 20, 32)
    assert np.abs(got - mean).max() <= 0.5
    assert np.abs(got - make(name, image_size=(20, 32)).reset(seed=0)[0].astype(float)).max() > 5


def test_tuned_pictures_are_close_to_the_suites(gl, make):
    tuned, suite = (make("dmc:cartpole-balance", quality=quality).reset(seed=0)[0] for quality in ("tuned", "suite"))
    difference = np.abs(tuned.astype(int) - suite).mean()
    assert 0 < difference < 0.5


def test_cameras_go_by_index_and_name(gl, make):
    frames = {
        camera: make("dmc:cartpole-balance", camera=camera).reset(seed=0)[0] for camera in (None, 0, "fixed", 1, -1)
    }
    assert np.array_equal(frames[None], frames[0])
    assert np.array_equal(frames["fixed"], frames[0])
    assert not np.array_equal(frames[1], frames[0])
    assert not np.array_equal(frames[-1], frames[0])


@pytest.mark.parametrize("camera", [2, -2, True, "nobody"])
def test_an_unknown_camera_is_answered_with_those_there_are(camera):
    with pytest.raises(ValueError, match="camera must be -1 to 1 or one of fixed, lookatcart, got"):
        make_env("dmc:cartpole-balance", obs="state", camera=camera)


def test_a_seed_among_the_settings_is_refused():
    with pytest.raises(ValueError, match=r"random must not be set: give the seed to env.reset\(seed=...\)"):
        make_env("dmc:cartpole-balance", obs="state", random=3)


def test_a_state_environment_can_still_be_drawn(gl, make):
    env = make("dmc:cartpole-balance", obs="state")
    env.reset(seed=0)
    pixels = make("dmc:cartpole-balance")
    assert np.array_equal(env.render().transpose(2, 0, 1), pixels.reset(seed=0)[0])


def test_renderers_of_one_process_leave_each_others_frames_alone(gl, make):
    names = ["dmc:cartpole-balance", "gym:InvertedPendulum-v5", "dmc:quadruped-escape"]
    envs = {name: make(name) for name in names}
    frames = {name: env.reset(seed=1)[0] for name, env in envs.items()}
    for name in [names[0], names[1], names[0], names[2], names[1], names[2]]:
        assert np.array_equal(envs[name].reset(seed=1)[0], frames[name])
    make("gym:InvertedPendulum-v5").close()
    for name in names:
        assert np.array_equal(envs[name].reset(seed=1)[0], frames[name])
    for gone, left in itertools.pairwise(names):
        envs[gone].close()
        assert np.array_equal(envs[left].reset(seed=1)[0], frames[left])


def test_closing_takes_nothing_from_another_renderer(gl, make):
    gone, left = make_env("dmc:cartpole-balance"), make("gym:InvertedPendulum-v5")
    gone.reset(seed=1)
    frame = left.reset(seed=1)[0]
    gone.close()
    assert np.array_equal(left.reset(seed=1)[0], frame)


def test_a_closed_environment_can_be_closed_again(gl):
    env = make_env("dmc:cartpole-balance")
    env.reset(seed=0)
    env.close()
    env.close()


@pytest.mark.parametrize("quality", ["tuned", "fast", "suite"])
def test_the_name_of_the_renderer_tells_gl_with_its_quality(gl, make, quality):
    assert make("dmc:cartpole-balance", quality=quality, renderer="gl").renderer == f"gl-{quality}"
    assert make("dmc:cartpole-balance", quality=quality).renderer == f"gl-{quality}"


def test_rays_play_the_same_pixels_from_a_seed_and_need_no_context(make):
    first, second = (make("dmc:cartpole-balance", renderer="rays") for _ in range(2))
    observations, _ = play(first, seed=3, decisions=2)
    play(second, seed=8, decisions=1)
    assert np.array_equal(observations, play(second, seed=3, decisions=2)[0])
    assert not np.array_equal(observations[0], observations[2])
    assert first.renderer == "rays"
    assert first.unwrapped.physics._contexts is None
    first.close()
    first.close()
    assert np.array_equal(observations[0], second.reset(seed=3)[0])


def test_rays_show_any_size_and_camera(make):
    settings = {"renderer": "rays", "image_size": (20, 32)}
    frames = {
        camera: make("dmc:cartpole-balance", camera=camera, **settings).reset(seed=0)[0]
        for camera in (None, 0, "fixed", 1, "lookatcart", -1)
    }
    assert all(frame.shape == (3, 20, 32) for frame in frames.values())
    assert np.array_equal(frames[None], frames[0])
    assert np.array_equal(frames["fixed"], frames[0])
    assert np.array_equal(frames["lookatcart"], frames[1])
    assert len({frame.tobytes() for frame in frames.values()}) == 3


def test_rays_draw_a_state_environment_too(make):
    env = make("dmc:cartpole-balance", obs="state", renderer="rays")
    env.reset(seed=0)
    pixels = make("dmc:cartpole-balance", renderer="rays")
    assert np.array_equal(env.render().transpose(2, 0, 1), pixels.reset(seed=0)[0])


def test_a_body_with_a_skin_is_left_to_opengl(make):
    with pytest.raises(ValueError, match=r'no skins and no flexes, and the model has 1 and 0; .* \(renderer="gl"\)'):
        make("dmc:dog-stand", renderer="rays")


def test_a_task_that_needs_opengl_itself_says_what_to_install(make, monkeypatch):
    env = make("dmc:cartpole-balance", obs="state")

    def fail():
        raise RuntimeError("No OpenGL rendering backend is available.")

    monkeypatch.setattr(env.unwrapped._env, "reset", fail)
    with pytest.raises(
        RuntimeError, match="hands its terrain to OpenGL at each reset, and none works here; run apt-get"
    ):
        env.reset(seed=0)


@pytest.mark.parametrize("obs", ["pixels", "both"])
def test_a_renderer_that_fails_says_at_once_what_to_install(gl, monkeypatch, obs):
    from planet_lib.envs import dm_control

    def fail(*args, **kwargs):
        raise AttributeError("'NoneType' object has no attribute 'glGetError'\nand more")

    monkeypatch.setattr(dm_control.engine, "Camera", fail)
    with pytest.raises(
        RuntimeError, match=r"cannot render .*glGetError'; run apt-get install .* libegl1 libgl1"
    ) as caught:
        make_env("dmc:cartpole-balance", obs=obs, renderer="gl")
    assert "\n" not in str(caught.value)


def test_ctrl_c_waits_until_a_gl_context_is_whole(gl, make, monkeypatch):
    from planet_lib.envs import dm_control

    camera, whole = dm_control.engine.Camera, []

    def pressed_within(*args, **settings):
        signal.raise_signal(signal.SIGINT)
        whole.append(camera(*args, **settings))
        return whole[0]

    monkeypatch.setattr(dm_control.engine, "Camera", pressed_within)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            make("dmc:cartpole-balance")
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(whole) == 1

import gc

import gymnasium
import numpy as np
import pytest

from planet_lib.envs import make_env
from planet_lib.envs.images import resize_area


def test_pendulum_states_are_gymnasiums_own_with_the_torque_scaled():
    env, own = make_env("gym:Pendulum-v1", obs="state"), gymnasium.make("Pendulum-v1")
    assert np.array_equal(env.reset(seed=4)[0], own.reset(seed=4)[0])
    for value in (0.5, -1.0, 0.1):
        observation, reward, terminated, truncated, _ = env.step(np.array([value], np.float32))
        expected = own.step(np.array([2 * value], np.float32))
        assert np.array_equal(observation, expected[0])
        assert reward == pytest.approx(expected[1], rel=1e-6)
        assert (terminated, truncated) == (False, False)


def test_pendulum_pixels_are_its_picture_averaged_down():
    env = make_env("gym:Pendulum-v1")
    own = gymnasium.make("Pendulum-v1", render_mode="rgb_array")
    own.reset(seed=2)
    frame = env.reset(seed=2)[0]
    assert frame.shape == (3, 64, 64)
    assert np.array_equal(frame, resize_area(own.render(), (64, 64)).transpose(2, 0, 1))
    assert 0.01 < (frame.min(axis=0) < 200).mean() < 0.2
    moved = env.step(np.array([1.0]))[0]
    assert not np.array_equal(frame, moved)
    assert np.array_equal(env.reset(seed=2)[0], frame)
    env.close()
    own.close()


def test_pendulum_is_truncated_after_two_hundred_steps():
    env = make_env("gym:Pendulum-v1", obs="state", action_repeat=60)
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[2:4] for _ in range(4)] == [(False, False)] * 3 + [(False, True)]


def test_mujoco_draws_at_the_image_size_with_tuned_settings(gl):
    env = make_env("gym:InvertedPendulum-v5", image_size=(48, 64))
    frame = env.reset(seed=0)[0]
    vis = env.unwrapped.model.vis
    assert frame.shape == (3, 48, 64)
    assert env.render().shape == (48, 64, 3)
    assert (vis.quality.shadowsize, vis.quality.numslices, vis.global_.offwidth) == (128, 12, 64)
    assert frame.max() > 60
    assert np.array_equal(env.reset(seed=0)[0], frame)
    env.close()


def test_the_suite_quality_leaves_a_model_as_it_is(gl):
    own = gymnasium.make("InvertedPendulum-v5").unwrapped.model.vis.quality
    env = make_env("gym:InvertedPendulum-v5", quality="suite")
    assert env.unwrapped.model.vis.quality.shadowsize == own.shadowsize
    assert env.unwrapped.model.vis.quality.numslices == own.numslices
    env.close()


def test_a_mujoco_camera_goes_by_index(gl):
    frames = []
    for camera in (None, -1, 0):
        env = make_env("gym:Hopper-v5", camera=camera)
        frames.append(env.reset(seed=0)[0])
        env.close()
    assert np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[0], frames[2])


@pytest.mark.parametrize(
    ("name", "camera"),
    [("InvertedPendulum-v5", None), ("HalfCheetah-v5", None), ("Hopper-v5", 0), ("Reacher-v5", None)],
)
def test_rays_show_what_gymnasiums_camera_shows(gl, name, camera):
    frames = []
    for renderer in ("gl", "rays"):
        env = make_env(f"gym:{name}", renderer=renderer, camera=camera, image_size=(48, 64))
        env.reset(seed=0)
        frames.append(env.step(env.action_space.low)[0])
        assert env.renderer == {"gl": "gl-tuned", "rays": "rays"}[renderer]
        env.close()
    assert frames[1].shape == (3, 48, 64)
    assert 0 < np.abs(frames[0].astype(int) - frames[1]).mean() < 9


def test_rays_need_a_running_episode_as_gymnasium_does_and_free_themselves():
    env = make_env("gym:InvertedPendulum-v5", renderer="rays")
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.render()
    frame = env.reset(seed=0)[0]
    assert np.array_equal(env.reset(seed=0)[0], frame)
    env.close()
    env.close()


def test_a_camera_for_an_environment_without_cameras_is_refused():
    with pytest.raises(ValueError, match="camera must be None for gym:Pendulum-v1, which has no cameras, got 0"):
        make_env("gym:Pendulum-v1", camera=0)


@pytest.mark.parametrize("camera", ["nope", 7, -2, True])
def test_an_unknown_camera_of_a_model_is_answered_with_those_there_are(camera):
    with pytest.raises(ValueError, match=f"camera must be -1 to 0 or one of track, got {camera!r}"):
        make_env("gym:HalfCheetah-v5", obs="state", camera=camera)


def test_a_model_without_cameras_has_only_the_free_one():
    make_env("gym:InvertedPendulum-v5", obs="state", camera=-1).close()
    with pytest.raises(ValueError, match=r"camera must be -1 \(the model has no cameras\), got 0"):
        make_env("gym:InvertedPendulum-v5", obs="state", camera=0)


def test_pictures_larger_than_opengl_draws_are_refused_with_the_limit(gl):
    env = make_env("gym:InvertedPendulum-v5", image_size=(100_000, 8), renderer="gl")
    with pytest.raises(ValueError, match=r"image_size must be (at most \d+ each|less) .*got \(100000, 8\)"):
        env.reset(seed=0)
    env.close()


def test_discrete_actions_are_taken_one_hot():
    env, own = make_env("gym:CartPole-v1", obs="state"), gymnasium.make("CartPole-v1")
    assert env.num_actions == 2
    assert np.array_equal(env.reset(seed=1)[0], own.reset(seed=1)[0])
    assert np.array_equal(env.step(np.array([0.0, 1.0], np.float32))[0], own.step(1)[0])
    assert np.array_equal(env.step(np.array([1.0, 0.0], np.float32))[0], own.step(0)[0])


def test_a_specification_can_be_made_again():
    env = make_env("gym:Pendulum-v1", obs="state", action_repeat=3)
    again = env.spec.make()
    assert again.get_wrapper_attr("action_repeat") == 3
    assert np.array_equal(again.reset(seed=1)[0], env.reset(seed=1)[0])


def test_a_closed_environment_takes_nothing_from_another_one(gl):
    left, gone = (make_env("gym:InvertedPendulum-v5") for _ in range(2))
    gone.reset(seed=1)
    frame = left.reset(seed=1)[0]
    gone.close()
    left.render()
    del gone
    gc.collect()
    assert np.array_equal(left.reset(seed=1)[0], frame)
    left.close()


def test_a_viewer_that_fails_says_what_to_install(gl, monkeypatch):
    env = make_env("gym:InvertedPendulum-v5", renderer="gl")

    with pytest.raises(gymnasium.error.ResetNeeded):
        env.render()

    def fail(render_mode):
        raise RuntimeError("no display")

    monkeypatch.setattr(env.unwrapped.mujoco_renderer, "_get_viewer", fail)
    with pytest.raises(RuntimeError, match="cannot render pixels here: no display; run apt-get install"):
        env.reset(seed=0)
    env.close()


def test_an_id_behind_a_module_is_found_after_importing_the_module(tmp_path, monkeypatch):
    (tmp_path / "my_swing.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('MySwing-v0', 'gymnasium.envs.classic_control:PendulumEnv', max_episode_steps=7)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    env = make_env("gym:my_swing:MySwing-v0", obs="state")
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[3] for _ in range(7)] == [False] * 6 + [True]
    gymnasium.registry.pop("MySwing-v0")
    with pytest.raises(ImportError, match="names the module 'no_such_module', which must be importable and register"):
        make_env("gym:no_such_module:MySwing-v0")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (gymnasium.error.DependencyNotInstalled("Box2D is\nnot there"), ImportError, "needs a package .* Box2D is not"),
        (ModuleNotFoundError("No module named 'jax'"), ImportError, "gym:Broken-v0 needs a package .*'jax'"),
        (gymnasium.error.InvalidAction("odd"), ValueError, "gym:Broken-v0 cannot be made: odd"),
    ],
)
def test_what_gymnasium_cannot_make_is_said_in_one_line(error, kind, message):
    def entry_point(**kwargs):
        raise error

    gymnasium.register("Broken-v0", entry_point)
    try:
        with pytest.raises(kind, match=message) as raised:
            make_env("gym:Broken-v0", obs="state")
    finally:
        gymnasium.registry.pop("Broken-v0")
    assert "\n" not in str(raised.value)

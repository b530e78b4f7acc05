"""The ray caster on the suite's tasks: against MuJoCo's own rays, against OpenGL's pictures, and without OpenGL."""

import os
import subprocess
import sys

import numpy as np
import pytest

from planet_lib.envs import make_env

TASKS = [
    "cartpole-swingup",
    "reacher-easy",
    "cheetah-run",
    "finger-spin",
    "ball_in_cup-catch",
    "walker-walk",
    "pendulum-swingup",
]


@pytest.fixture
def physics():
    """Call it with a task and a seed for the task's physics after some random decisions."""
    made = []

    def play(task, seed, decisions=3):
        env = make_env(f"dmc:{task}", obs="state")
        made.append(env)
        generator = np.random.default_rng(seed)
        env.reset(seed=seed)
        for _ in range(decisions):
            env.step(generator.uniform(-1, 1, env.action_space.shape))
        return env.unwrapped.physics

    yield play
    for env in made:
        env.close()


def mujocos_ids(physics, origins, directions):
    """Return the geom that MuJoCo finds along each ray, one call each: the slow and reliable way."""
    import mujoco

    groups, found = np.array([1, 1, 1, 0, 0, 0], np.uint8), np.zeros(1, np.int32)
    model, data = physics.model.ptr, physics.data.ptr
    ids = []
    for origin, direction in zip(origins, directions, strict=True):
        distance = mujoco.mj_ray(model, data, origin, direction, groups, 1, -1, found)
        ids.append(found[0] if distance >= 0 else -1)
    return np.array(ids)


@pytest.mark.parametrize("task", TASKS)
def test_each_ray_shows_the_geom_that_mujocos_own_ray_meets(physics, task):
    from planet_lib.envs.rays import RayRenderer

    for seed in range(3):
        moved = physics(task, seed, decisions=4 * seed)
        renderer = RayRenderer(moved.model.ptr, moved.data.ptr, 64, 64, 0, min_width=0)
        origins, directions = (rays[:, :, seed].reshape(-1, 3).copy() for rays in renderer.rays())
        shown = renderer.geom_ids()[:, :, seed].ravel()
        expected = mujocos_ids(moved, origins, directions)
        assert len(np.unique(expected)) >= 3
        # Rounding may decide a ray that grazes an edge.
        assert (shown != expected).sum() <= 1


@pytest.mark.parametrize("task", TASKS)
def test_widening_thin_parts_changes_no_other_ray(physics, task):
    from planet_lib.envs.rays import RayRenderer

    moved = physics(task, 1)
    exact, drawn = (
        RayRenderer(moved.model.ptr, moved.data.ptr, 64, 64, 0, **settings).geom_ids()
        for settings in ({"min_width": 0}, {})
    )
    capsules = np.flatnonzero(moved.model.geom_type == 3)
    assert np.isin(drawn[drawn != exact], capsules).all()
    assert (drawn != exact).mean() < 0.01


def test_cartpoles_rails_are_seen_along_the_whole_picture(physics):
    from planet_lib.envs.rays import RayRenderer

    moved = physics("cartpole-swingup", 0, decisions=0)
    frame = RayRenderer(moved.model.ptr, moved.data.ptr, 64, 64, 0).render().astype(int)
    sky, rail = frame[20:26].mean(axis=0), frame[30:34].max(axis=0)
    columns = np.r_[0:20, 44:64]
    assert (rail[columns, 2] - sky[columns, 2]).min() > 15


@pytest.mark.parametrize("size", [24, 64])
def test_the_string_of_the_cup_has_no_gap(physics, size):
    from planet_lib.envs.rays import RayRenderer

    moved = physics("ball_in_cup-catch", 0, decisions=10)
    renderer = RayRenderer(moved.model.ptr, moved.data.ptr, size, size, 0)
    with_string = renderer.render().astype(int)
    moved.model.tendon_rgba[:, 3] = 0
    without = renderer.render()
    changed = np.abs(with_string - without).sum(axis=2).max(axis=1) > 10
    # Its shadow and its mirror image lie on the floor, further down.
    rows = np.flatnonzero(changed[: round(0.8 * size)])
    assert len(rows) > size / 5
    assert np.diff(rows).max() == 1


@pytest.mark.parametrize("task", TASKS)
def test_pictures_are_close_to_opengls(gl, task):
    frames = {}
    for renderer in ("gl", "rays"):
        env = make_env(f"dmc:{task}", renderer=renderer)
        generator = np.random.default_rng(0)
        frames[renderer] = [env.reset(seed=5)[0]]
        for _ in range(8):
            action = generator.uniform(-1, 1, env.action_space.shape)
            frames[renderer].append(env.step(action)[0])
        env.close()
    difference = np.abs(np.array(frames["gl"]).astype(int) - np.array(frames["rays"]))
    assert 0 < difference.mean() < 3
    assert (difference.max(axis=1) > 60).mean() < 0.02


WITHOUT_GL = """
import os, warnings
import numpy as np
from planet_lib.envs import make_env

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    first, second = (make_env("dmc:cartpole-swingup", time_limit=1) for _ in range(2))
    observations, ended = [first.reset(seed=0)[0]], False
    while not ended:
        observation, _, _, ended, _ = first.step(np.ones(1))
        observations.append(observation)
said = [str(each.message) for each in caught if each.category.__name__ == "RendererWarning"]
assert len(said) == 1, said
assert "ray caster, since OpenGL is not available (MUJOCO_GL=disabled)" in said[0]
assert "apt-get install -y --no-install-recommends libegl1 libgl1" in said[0]
assert first.renderer == second.renderer == "rays"
assert len(observations) > 5 and observations[0].shape == (3, 64, 64)
assert all((one != other).any() for one, other in zip(observations, observations[1:]))
first.close(), second.close()
maps = open("/proc/self/maps").read().lower() if os.path.exists("/proc/self/maps") else ""
loaded = [name for name in ("libgl.so", "libegl", "libosmesa", "libglx", "gallium", "libopengl") if name in maps]
assert not loaded, loaded
print("done")
"""


def test_an_episode_from_pixels_runs_without_any_opengl_library_and_says_so_once(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_GL],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "MUJOCO_GL": "disabled"},
    )
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr

"""Every environment that has a name: all tasks of the suite, and Gymnasium's own families, kept to the contract."""

import contextlib
import importlib
import importlib.util
import warnings

import gymnasium
import numpy as np
import pytest

from planet_lib.envs import make_env, select_backend
from planet_lib.testing import check_env

select_backend(required=False)
suite = pytest.importorskip("dm_control.suite")

FAMILIES = ("classic_control", "box2d", "toy_text", "mujoco")
# Gymnasium's own environments of those families, but for the old MuJoCo ones that it has moved elsewhere.
IDS = [
    name
    for name, spec in gymnasium.registry.items()
    if any(f"gymnasium.envs.{family}." in str(spec.entry_point) for family in FAMILIES)
]
MOVED = [name for name, spec in gymnasium.registry.items() if "mujoco_py" in str(spec.entry_point)]
IMAGES = {"CarRacing-v3"}  # observe images and nothing else
NEEDS_OLD_MUJOCO = {"Pusher-v4"}
NOT_PUT_BACK = {"BipedalWalkerHardcore-v3"}  # what its first step shows depends on the episodes before


def made(name, **settings):
    """Make an environment; where Gymnasium finds its id out of date, that is not our business."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
        return make_env(name, **settings)


def played(env, num_steps=3):
    """Check observations against their space for some random steps, and the closing."""
    with contextlib.closing(env):
        env.action_space.seed(0)
        seen = [env.reset(seed=0)[0]]
        for _ in range(num_steps):
            action = env.action_space.sample()
            if env.num_actions is not None:
                action = np.eye(env.num_actions, dtype=np.float32)[action.argmax()]
            observation, reward, terminated, truncated, _ = env.step(action)
            assert np.isfinite(reward)
            seen.append(observation)
            if terminated or truncated:
                break
        assert all(env.observation_space.contains(each) for each in seen)
    return seen


def needs(name):
    """Skip where Gymnasium's environment needs a package that is not here."""
    entry_point = str(gymnasium.registry[name].entry_point)
    if ".box2d." in entry_point:
        if importlib.util.find_spec("Box2D") is None:
            pytest.skip("Box2D is not installed; the message is tested elsewhere")
        with warnings.catch_warnings():  # Box2D's own wrapper crashes where a warning of its import is an error
            warnings.simplefilter("ignore")
            importlib.import_module("Box2D")
    if name in NEEDS_OLD_MUJOCO:
        pytest.skip("Gymnasium supports it with mujoco below 3 alone; the message is tested elsewhere")


@pytest.mark.parametrize("domain", suite.TASKS_BY_DOMAIN)
def test_every_task_of_the_suite_keeps_the_contract(domain):
    if domain == "quadruped" and select_backend(required=False) == "disabled":
        pytest.skip("dm_control uploads the terrain of quadruped-escape to the renderer, which is not there")
    for task in suite.TASKS_BY_DOMAIN[domain]:
        check_env(made(f"dmc:{domain}-{task}", obs="state"), num_steps=3)


@pytest.mark.slow
@pytest.mark.parametrize("domain", suite.TASKS_BY_DOMAIN)
def test_every_task_of_the_suite_is_seen(domain, gl):
    for task in suite.TASKS_BY_DOMAIN[domain]:
        pictures = played(made(f"dmc:{domain}-{task}"))
        assert all(picture.shape == (3, 64, 64) for picture in pictures)
        assert pictures[0].std() > 5, f"{task} shows one colour"


@pytest.mark.parametrize("name", [name for name in IDS if name not in IMAGES])
def test_every_environment_of_gymnasium_keeps_the_contract(name):
    needs(name)
    check_env(made(f"gym:{name}", obs="state"), num_steps=20, random=name in NOT_PUT_BACK)


@pytest.mark.slow
@pytest.mark.parametrize("name", IDS)
def test_every_environment_of_gymnasium_is_seen(name, gl):
    needs(name)
    pictures = played(made(f"gym:{name}"))
    assert all(picture.shape == (3, 64, 64) for picture in pictures)
    assert pictures[0].std() > 1, f"{name} shows one colour"


@pytest.mark.parametrize("obs", ["state", "both"])
def test_an_environment_of_images_alone_says_what_to_ask_for(obs):
    needs("CarRacing-v3")
    with pytest.raises(
        ValueError, match=f'obs="{obs}" needs vectors, but this .* observes images, .*: use obs="pixels"'
    ):
        made("gym:CarRacing-v3", obs=obs)


def test_choices_of_car_racing_are_one_hot():
    needs("CarRacing-v3")
    env = made("gym:CarRacing-v3", continuous=False)
    assert env.num_actions == 5
    played(env)


@pytest.mark.skipif(importlib.util.find_spec("Box2D") is not None, reason="Box2D is installed")
def test_box2d_that_is_not_there_is_named_with_the_command():
    with pytest.raises(ImportError, match=r'gym:LunarLander-v3 needs a package .*: Box2D .*"gymnasium\[box2d\]"'):
        made("gym:LunarLander-v3", obs="state")


@pytest.mark.parametrize("name", sorted(NEEDS_OLD_MUJOCO))
def test_what_needs_an_old_mujoco_says_so(name):
    with pytest.raises(ImportError, match=rf"gym:{name} needs a package .*`mujoco<3`"):
        made(f"gym:{name}", obs="state")


@pytest.mark.parametrize("name", MOVED)
def test_what_gymnasium_has_moved_says_where(name):
    with pytest.raises(ImportError, match=rf"gym:{name} needs a package .*gymnasium-robotics"):
        made(f"gym:{name}", obs="state")


def test_the_families_are_all_there():
    assert len(suite.ALL_TASKS) >= 50
    for name in ("CartPole-v1", "LunarLander-v3", "Taxi-v4", "HalfCheetah-v5", "Ant-v4"):
        assert name in IDS
    assert len(IDS) >= 38
    assert "Hopper-v3" in MOVED

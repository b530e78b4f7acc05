"""The entries of planet_lib.envs, fuzzed: by name, by constructor, wrapped, several at once, and drawn by rays."""

import os

import gymnasium
import mujoco
import numpy as np
import pytest
from fuzzing import Entry, fuzz
from torch import nn
from toy_envs import STEPS, Answers, Choices, Toy, played

from planet_lib.envs import default_action_repeat, make_env, make_vector_env, select_backend, widest_action
from planet_lib.envs.rays import RayRenderer
from planet_lib.envs.wrappers import PadActions, StandardEnv


def answered(**answers):
    env = toy(Answers)
    env.unwrapped.answers = tuple(answers.values())
    return env.step(np.zeros(2, np.float32))


def passed_on(given, answer):
    """What an environment said is what the agent gets."""
    assert answer[0].tolist() == np.asarray(given["observation"], np.float32).ravel().tolist()
    assert answer[1] == pytest.approx(float(given["reward"]))
    assert answer[2:4] == (bool(given["terminated"]), bool(given["truncated"]))


def seen_rightly(given, answer):
    """The spaces are those that were asked for."""
    space, actions, repeat, _ = answer
    assert (actions.low == (0 if actions.shape == (3,) else -1)).all()  # `Choices` has three
    assert (actions.high == 1).all()
    if given.get("action_repeat") is not None:
        assert repeat == given["action_repeat"]
    images = space["pixels"] if given["obs"] == "both" else space
    if given["obs"] != "state":
        assert images.shape == (3 if given["channels"] == "all" else 1, *given["image_size"])
        assert images.dtype == np.uint8
    else:
        assert len(space.shape) == 1


def own_error_aside(env):
    """A callable that needs arguments raises what it wants: that error is not ours."""
    return Toy if isinstance(env, nn.Module) else env


def own_errors_aside(tasks):
    return [own_error_aside(task) for task in tasks] if type(tasks) is list else tasks


def toy(kind=Toy):
    env = StandardEnv(kind(), obs="state")
    env.reset(seed=1)
    return env


def several(**settings):
    envs = make_vector_env(Toy, 2, workers=False, obs="state", **settings)
    envs.reset(seed=1)
    return envs


def looked_at(envs, answer):
    assert envs.observation_space.contains(answer[0])


def stepped(given, answer):
    observation, reward, terminated, truncated, _ = answer
    action = np.asarray(given["action"], np.float64)
    assert reward == pytest.approx(2 * np.float32(np.clip(action[0], -1, 1)), abs=1e-5)
    assert observation.tolist()[1:] == [1.0, 1.0]
    assert not terminated
    assert not truncated


def make_simulation():
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><geom size='1' rgba='1 0 0 1'/>"
        "<camera name='front' pos='0 -5 0' xyaxes='1 0 0 0 0 1'/></worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


MODEL, DATA = make_simulation()


def drawn(**given):
    return RayRenderer(**given).render()


def draws_the_ball(given, answer):
    assert answer.shape == (given["height"], given["width"], 3)
    assert answer.dtype == np.uint8
    assert (answer[..., 1:] <= answer[..., :1]).all()  # nothing but red


SEEN = {"image_size": (8, 8), "channels": "all"}
ENTRIES = [
    Entry(
        "envs.default_action_repeat",
        default_action_repeat,
        lambda: {"env": "dmc:cartpole-balance"},
        lambda given, answer: (
            (answer in (2, 8) if isinstance(given["env"], str) and given["env"].startswith("dmc") else answer == 1)
            or pytest.fail(f"repeat {answer}")
        ),
        also={"env": ["dmc:", "gym:", ":", "cartpole-balance", Toy, "gym:Pendulum-v1", "dmc:walker-walk"]},
    ),
    Entry(
        "envs.make_env",
        lambda **given: played(make_env(own_error_aside(given.pop("env")), **given)),
        lambda: {
            **SEEN,
            "env": Toy,
            "obs": "pixels",
            "action_repeat": 2,
            "camera": None,
            "quality": "tuned",
            "renderer": "auto",
            "supersample": 1,
        },
        seen_rightly,
        state=lambda _: STEPS[0],
        also={
            "env": [Toy(), Choices, "gym:NoSuch-v0", "dmc:no-such", "dmc:cartpole", "gym:a/b/c"],
            "obs": ["both", "state"],
            "image_size": [(16, 4), [4, 4], np.array([4, 4]), (4.0, 4), (8, 8, 3), (2**31, 1), 8],
            "action_repeat": [None, np.int64(2), 2**40],
            "channels": ["red", "grey"],
            "camera": [0, "front"],
            "renderer": ["rays", "gl"],
        },
        errors=(ImportError,),
    ),
    Entry(
        "envs.make_env of a suite",
        lambda **given: played(make_env(own_error_aside(given.pop("env")), **given)),
        lambda: {"env": "dmc:pendulum-swingup", "obs": "state", **SEEN, "camera": 0, "action_repeat": 3},
        seen_rightly,
        also={"env": ["dmc:no-such", "dmc:pendulum-no", "dmc:pendulum", "dmc:-", "dmc:a-b-c"], "camera": ["fixed", -1]},
        known_as={"env": ("camera",)},
        keep=("obs",),
    ),
    Entry(
        "envs.make_env of gymnasium",
        lambda **given: played(make_env(own_error_aside(given.pop("env")), **given)),
        lambda: {"env": "gym:Pendulum-v1", "obs": "state", **SEEN, "camera": None, "action_repeat": 3},
        seen_rightly,
        also={"env": ["gym:no_module:Env-v0", "gym:a/b/c", "gym:Pendulum", "gym: Pendulum-v1", "gym::", "gym:v1"]},
        errors=(ImportError,),
        keep=("obs",),
    ),
    Entry(
        "envs.make_vector_env",
        lambda **given: played(make_vector_env(own_error_aside(given.pop("env")), **given)),
        lambda: {
            "env": Toy,
            "num_envs": 2,
            "workers": False,
            "timeout": 5.0,
            "max_restarts": 1,
            "action_dim": 4,
            "obs": "state",
            "action_repeat": 2,
            **SEEN,
        },
        lambda given, answer: (
            (answer[0].shape[0] == given["num_envs"] and answer[1].shape[1] == (given["action_dim"] or 2))
            or pytest.fail(f"spaces {answer[:2]}")
        ),
        state=lambda _: STEPS[0],
        also={"env": ["gym:NoSuch-v0"], "action_dim": [None, 1, 2, 0], "max_restarts": [0]},
        keep=("workers", "obs"),
    ),
    Entry(
        "envs.select_backend",
        select_backend,
        lambda: {"required": False},
        lambda given, answer: isinstance(answer, str) or pytest.fail(f"backend {answer!r}"),
        state=lambda _: os.environ.get("MUJOCO_GL"),
        errors=(RuntimeError,),
    ),
    Entry(
        "envs.widest_action",
        lambda tasks, obs: widest_action(own_errors_aside(tasks), obs=obs),
        lambda: {"tasks": [Toy, "gym:Pendulum-v1"], "obs": "pixels"},
        lambda given, answer: answer in (1, 2) or pytest.fail(f"width {answer}"),
        also={"tasks": ["gym:Pendulum-v1", [Toy, Toy], [Toy, Choices], (Toy,), [Toy()], ["gym:NoSuch-v0"], {Toy}]},
        known_as={"tasks": ("env",)},
    ),
    Entry(
        "envs.wrappers.StandardEnv",
        lambda **given: played(StandardEnv(**given)),
        lambda: {"env": Toy(), "obs": "both", **SEEN, "action_repeat": 2, "renderer": "own"},
        seen_rightly,
        also={
            "env": [Toy, toy(), gymnasium.Env(), Choices()],
            "image_size": [(16, 4), [4, 4], np.array([4, 4]), (4.0, 4), (8, 8, 3), (2**31, 1), 8],
        },
    ),
    Entry(
        "envs.wrappers.StandardEnv.reset",
        lambda env, **given: env.reset(**given),
        lambda: {"env": toy(), "seed": 3, "options": None},
        lambda given, answer: looked_at(given["env"], answer),
        state=lambda given: (given["env"].unwrapped.place, given["env"].unwrapped.count),
        also={"options": [{"start": 1}, "no"]},
        keep=("env",),
    ),
    Entry(
        "envs.wrappers.StandardEnv.step",
        lambda env, action: env.step(action),
        lambda: {"env": toy(), "action": np.array([0.5, -1.0], np.float32)},
        stepped,
        state=lambda _: STEPS[0],
        also={"action": [[0.5, 1], (1, 1), [0.5], [[0.5, 1]], [1.5, 0], "ab", [10**40, 0], [0.5, "x"]]},
        keep=("env",),
    ),
    Entry(
        "envs.wrappers.StandardEnv.step of choices",
        lambda env, action: env.step(action),
        lambda: {"env": toy(Choices), "action": np.eye(3, dtype=np.float32)[1]},
        lambda given, answer: answer[1] == np.asarray(given["action"]).argmax() or pytest.fail(f"reward {answer[1]}"),
        state=lambda _: STEPS[0],
        also={"action": [1, [1, 0, 0], [1, 1, 0], [0, 0, 0], [True, False, False]]},
        keep=("env",),
    ),
    Entry(
        "envs.wrappers.StandardEnv.step of an environment's answers",
        answered,
        lambda: {
            "observation": np.array([0.5, 1.0, -1.0], np.float32),
            "reward": 1.5,
            "terminated": False,
            "truncated": np.bool_(False),
        },
        passed_on,
        also={"observation": [[0.5, 1, 2], (1, 2, 3)], "reward": [np.float64(2)], "terminated": [1, np.array(True)]},
    ),
    Entry(
        "envs.wrappers.PadActions",
        lambda **given: played(PadActions(**given)),
        lambda: {"env": toy(), "action_dim": 4},
        lambda given, answer: answer[1].shape == (given["action_dim"],) or pytest.fail(f"actions {answer[1]}"),
        also={"env": [Toy(), Toy], "action_dim": [2, np.int64(4), 2**40]},
    ),
    Entry(
        "envs.wrappers.PadActions.step",
        lambda env, action: env.step(action),
        lambda: {"env": padded(), "action": np.array([0.5, -1.0, 0.0, 1.0], np.float32)},
        stepped,
        state=lambda _: STEPS[0],
        also={"action": [[0.5, 1], [0.5, 1, 1, 2], [0, 0, 0, np.nan]]},
        keep=("env",),
    ),
    Entry(
        "envs.StandardVectorEnv.reset",
        lambda env, **given: env.reset(**given),
        lambda: {"env": several(), "seed": 3, "options": {"reset_mask": np.array([True, False])}},
        lambda given, answer: looked_at(given["env"], answer),
        also={"seed": [[1, 2], [None, 3], (1,), [1, "x"], [-1, 0]], "options": [{"reset_mask": [True, True]}, None]},
        known_as={"options": ("reset_mask",)},
        keep=("env",),
    ),
    Entry(
        "envs.StandardVectorEnv.step",
        lambda env, actions: env.step(actions),
        lambda: {"env": several(), "actions": np.array([[0.5, -1.0], [1.0, 0.0]], np.float32)},
        lambda given, answer: np.testing.assert_allclose(
            answer[1], 2 * np.asarray(given["actions"], np.float32)[:, 0], atol=1e-5
        ),
        state=lambda _: STEPS[0],
        also={"actions": [[[0.5, 1], [1, 1]], [[0.5, 1]], [[0.5, 1], [1, 2]], [[1, 1], [1, "x"]]]},
        known_as={"actions": ("action",)},
        keep=("env",),
    ),
    Entry(
        "envs.rays.RayRenderer",
        drawn,
        lambda: {
            "model": MODEL,
            "data": DATA,
            "height": 4,
            "width": 6,
            "camera": "front",
            "antialias": True,
            "min_width": 0.5,
        },
        draws_the_ball,
        also={"camera": [0, -1, 1, np.int64(0), mujoco.MjvCamera()], "data": [mujoco.MjData(MODEL), MODEL]},
    ),
]
LEFT_OUT = {
    "envs.RendererWarning": "a warning, which takes any text",
    "envs.make_vector_env(workers=True)": "processes take seconds; its arguments are those of workers=False",
}


def padded():
    env = PadActions(toy(), 4)
    env.reset(seed=1)
    return env


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_answers_rightly_or_names_what_is_wrong(entry):
    fuzz(entry)


@pytest.mark.parametrize("workers", [None, "no", 2, 0.0, [], object()])
def test_workers_are_chosen_by_true_or_false_alone(workers):
    with pytest.raises(TypeError, match="workers must be True or False, got"):
        make_vector_env(Toy, 2, workers=workers)

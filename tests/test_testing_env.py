"""The contract of environments: those of the library keep it, and each way to break it is named."""

import itertools

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from planet_lib.data import random_policy, run_episode
from planet_lib.envs import make_env, select_backend
from planet_lib.envs.wrappers import PadActions, StandardEnv
from planet_lib.testing import ContractError, check_env

A = 2


class Slider:
    """A right environment without Gymnasium, to be broken one piece at a time: a point that two actions push."""

    length = 12

    def reset(self, *, seed=None):
        self.place, self.time = np.random.default_rng(seed).normal(size=3), 0
        return self.seen(), {}

    def step(self, action):
        if not (action.shape == (A,) and np.isfinite(action).all() and np.abs(action).max() <= 1):
            raise ValueError("action must be two numbers in [-1, 1]")
        if self.time >= self.length:
            raise RuntimeError("the episode is over")
        self.move(action)
        self.time += 1
        return self.seen(), self.reward(), *self.end(), {}

    def move(self, action):
        self.place[:A] += action

    def seen(self):
        return self.place.astype(np.float32)

    def reward(self):
        return -float(np.square(self.place).sum())

    def end(self):
        return False, self.time >= self.length


def broken_by(**members):
    return type("Broken", (Slider,), members)()


def check(env, **settings):
    check_env(env, **{"action_dim": A, **settings})


def broken(env, match, **settings):
    """One complaint and no other, with these words."""
    with pytest.raises(ContractError, match=match) as caught:
        check(env, **settings)
    assert "promises" not in str(caught.value), str(caught.value)
    return str(caught.value)


def answering(change):
    """Environments whose step answers are changed: a function of (answer, env)."""
    return broken_by(step=lambda self, action: change(Slider.step(self, action), self))


# What keeps the contract.


@pytest.mark.parametrize("seed", range(4))
def test_a_class_written_by_hand_keeps_the_contract_at_any_seed(seed):
    check(Slider(), seed=seed)
    check(broken_by(seen=lambda self: {"joints": self.place.copy(), "camera": np.zeros((3, 4, 4), np.uint8)}))


def test_the_suite_keeps_the_contract_by_its_state():
    check_env(make_env("dmc:cartpole-swingup", obs="state"), num_steps=130)


def test_the_suite_keeps_the_contract_by_pixels_and_both():
    if select_backend(required=False) == "disabled":
        pytest.skip("no OpenGL on this machine")
    check_env(make_env("dmc:cartpole-swingup", action_repeat=2), num_steps=15)
    check_env(make_env("dmc:reacher-easy", obs="both"), num_steps=5)


@pytest.mark.parametrize("name", ["Pendulum-v1", "CartPole-v1", "MountainCar-v0", "FrozenLake-v1"])
def test_gymnasium_keeps_the_contract_with_boxes_and_choices(name):
    check_env(make_env(f"gym:{name}", obs="state", action_repeat=2), num_steps=250)


def test_padded_environments_keep_the_contract():
    check_env(PadActions(make_env("gym:Pendulum-v1", obs="state", action_repeat=3), 4))
    check_env(PadActions(make_env("gym:CartPole-v1", obs="state"), 4))


def test_an_environment_may_have_one_start():
    check(broken_by(reset=lambda self, *, seed=None: Slider.reset(self, seed=0)))


def test_a_step_after_the_end_may_end_again():
    def step(self, action):
        self.time = min(self.time, self.length - 1)
        return Slider.step(self, action)

    check(broken_by(step=step))


def test_what_would_do_harm_or_cannot_be_replayed_is_left_out():
    robot = broken_by(seen=lambda self: np.random.default_rng().normal(size=3))
    check(robot, random=True)
    broken(robot, "must give exactly the same episode")
    tried = []

    def step(self, action):
        tried.append(action)
        return Slider.step(self, np.clip(action, -1, 1))

    check(broken_by(step=step), bad_actions=False)
    assert np.isfinite(tried).all()
    assert np.abs(tried).max() == 1


def test_closing_is_left_out_where_the_environment_is_still_needed():
    env = make_env("dmc:cartpole-swingup", obs="state")
    check_env(env, num_steps=5, close=False)
    assert env.reset(seed=0)[0].shape == (5,)
    env.close()


# What breaks it.


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"reset": None}, "env.reset must be a method, got none; see planet_lib.data.run_episode"),
        ({"step": 3}, "env.step must be a method, got none"),
        (
            {"action_space": spaces.Box(-2, 2, (A,), np.float32)},
            r"env.action_space must be a Box from -1 to 1 of shape \(A,\), got Box\(-2.0, 2.0, .*make_env",
        ),
        ({"action_space": spaces.Box(-1, 1, (1, A), np.float32)}, r"must be a Box from -1 to 1 of shape \(A,\)"),
        ({"action_space": spaces.Discrete(3)}, r"got Discrete\(3\); planet_lib.envs.make_env\(lambda: env\) makes it"),
        ({"num_actions": 3}, "env.num_actions must be None or from 1 to A=2, got 3; it is n of Discrete"),
        ({"action_repeat": 0}, "env.action_repeat must be a whole number of at least 1, got 0; give 1"),
    ],
)
def test_a_missing_member_or_a_wrong_setting_is_named(members, message):
    broken(broken_by(**members), message)


@pytest.mark.parametrize(
    ("reset", "message"),
    [
        (lambda self: None, r"env.reset\(seed=0\) must run, got TypeError: .*seed.*; take seed by keyword, None incl"),
        (lambda self, seed: (np.random.default_rng(seed + 1), {})[1:], r"must return a tuple .*, got 1 values"),
        (lambda self, seed=None: self.place, r"env.reset\(seed=0\) must run, got AttributeError: .*has no attribute"),
        (lambda self, seed=None: np.zeros(3), r"must return a tuple \(observation, info\), got ndarray; return both"),
        (lambda self, seed=None: (Slider.reset(self, seed=seed)[0], None), "env.reset's info must be a dictionary"),
    ],
)
def test_a_reset_that_does_not_answer_as_gymnasiums_is_named(reset, message):
    broken(broken_by(reset=reset), message)


def test_a_reset_that_needs_a_seed_is_named():
    def reset(self, *, seed):
        return Slider.reset(self, seed=seed + 0)

    broken(broken_by(reset=reset), r"env.reset\(seed=None\) must run, got TypeError: .*; take seed by keyword, None")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda answer, env: answer[:4],
            "env.step must return a tuple of five, got 4 values; give observation, reward",
        ),
        (lambda answer, env: list(answer), "env.step must return a tuple of five, got list"),
        (
            lambda answer, env: (*answer[:4], None),
            "step 1: env.step's info must be a dictionary, got NoneType; give {}",
        ),
        (lambda answer, env: (answer[0], None, *answer[2:]), r"step 1: reward must be one number, .*, got None"),
        (lambda answer, env: (answer[0], np.ones(1), *answer[2:]), r"reward must be one number.*, got array\(\[1.\]\)"),
        (lambda answer, env: (answer[0], np.nan, *answer[2:]), r"got nan; give float\(reward\), and a finite penalty"),
        (lambda answer, env: (answer[0], 1e300, *answer[2:]), "reward must be one number, finite in float32, got 1e"),
        (
            lambda answer, env: (answer[0], "high", *answer[2:]),
            "step 1: reward must be one number, finite in float32, got 'high'",
        ),
        (
            lambda answer, env: (*answer[:2], 0, *answer[3:]),
            r"step 1: terminated must be a bool, got 0 \(int\); give bool\(terminated\)",
        ),
        (lambda answer, env: (*answer[:3], None, answer[4]), "step 1: truncated must be a bool, got None"),
        (
            lambda answer, env: (*answer[:2], answer[3], False, {"TimeLimit.truncated": bool(answer[3])}),
            "step 12: truncated must be True where the time is up, got False and a note in info; terminated is for",
        ),
    ],
)
def test_a_step_that_does_not_answer_as_it_must_is_named(change, message):
    env = answering(change)
    if "truncated must be a bool" in message:
        env.length = 200  # never ends, since None is no end
    broken(env, message)


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        (lambda self: self.time, r"env.reset's observation must be uint8 pixels or a vector of floats, got int64 \[\]"),
        (lambda self: None, r"observation must be uint8 pixels or a vector of floats, got object"),
        (lambda self: [[1.0], [1.0, 2.0]], "observation must be an array or a dictionary of arrays, got list; convert"),
        (
            lambda self: np.float32(1),
            r"must be a uint8 image \[C, Y, X\] or a vector \[N\] of floats, got float32 \[\]",
        ),
        (lambda self: np.zeros((3, 8, 8)), r"got float64 \[3, 8, 8\]; give pixels as uint8 \[C, Y, X\]"),
        (lambda self: np.zeros(0), r"got float64 \[0\]"),
        (lambda self: np.zeros((8, 8, 3), np.uint8), r"have its channels first, got .*; give obs.transpose\(2, 0, 1\)"),
        (lambda self: np.array([1, np.inf]), "must be finite, got inf; clip it or end the episode before"),
        (lambda self: {}, r"must have entries named by printable strings .*, got \[\]; rename them"),
        (lambda self: {"a/b": np.zeros(2)}, r"named by printable strings without slash.*, got \['a/b'\]"),
        (lambda self: {"a": {"b": np.zeros(2)}}, r"observation\['a'\] must be uint8 pixels or a vector"),
        (lambda self: np.zeros(3 + (self.time == 2)), r"step 2: .* must be float64 \[3\] as at .*, got float64 \[4\]"),
        (lambda self: np.zeros(3, "fd"[self.time % 2]), r"step 1: .* must be float32 \[3\] as .*, got float64 \[3\]"),
        (
            lambda self: {"a": np.zeros(1), **({"b": np.zeros(1)} if self.time else {})},
            r"step 1: env.step's observation\['b'\] must be absent as at the first reset, got float64 \[1\]",
        ),
    ],
)
def test_an_observation_that_cannot_be_kept_is_named(seen, message):
    broken(broken_by(seen=seen), message)


def test_an_observation_outside_its_space_is_named():
    space = spaces.Box(-1, 1, (3,), np.float32)
    message = r"must lie in env.observation_space Box\(-1.0, 1.0, .*, got observation float32 \[3\] from -2 to 0; corr"
    broken(broken_by(observation_space=space, seen=lambda self: np.array([0, -2, 0], np.float32)), message)
    parts = broken_by(observation_space=spaces.Dict(a=space), seen=lambda self: {"a": np.full(3, 5, np.float32)})
    broken(parts, r"got a float32 \[3\] from 5 to 5")


def test_an_observation_that_later_steps_write_over_is_named():
    remedy = r"must be left alone by later steps, got it changed; return a copy"
    broken(broken_by(seen=lambda self: self.place), f"observation at reset {remedy}")
    broken(broken_by(seen=lambda self: {"joints": self.place}), rf"observation\['joints'\] at reset {remedy}")
    buffer = np.zeros((3, 4, 4), np.uint8)

    def camera(self):
        buffer[:] = self.time
        return buffer

    broken(broken_by(seen=camera), f"observation (at reset|of a step) {remedy}")


def test_a_world_that_reset_does_not_put_back_is_named():
    def move(self, action):
        self.wear = getattr(self, "wear", 0) + 1
        self.place[:A] += action / self.wear

    message = broken(broken_by(move=move), r"reset\(seed=0\) and the same actions must give exactly the same episode")
    assert "it differs in the observation of step 1; draw all random numbers" in message


def test_noise_that_the_seed_does_not_decide_is_named():
    generator = np.random.default_rng(0)
    noisy = broken_by(reward=lambda self: generator.normal())
    broken(noisy, r"must give exactly the same episode, got another; it differs in the reward of step 1")


def test_an_end_that_the_seed_does_not_decide_is_named():
    count = itertools.count(5)

    def reset(self, *, seed=None):
        self.length = next(count)
        return Slider.reset(self, seed=seed)

    broken(broken_by(reset=reset), "it differs in terminated or truncated of step 5", bad_actions=False)


def test_an_episode_that_begins_another_by_itself_is_named():
    def step(self, action):
        if self.time >= self.length:
            self.reset(seed=0)
        return Slider.step(self, action)

    broken(broken_by(step=step), "env.step after the end must raise, or end again, got a step that goes on; reset noth")


def test_a_corner_of_the_box_that_is_not_taken_is_named():
    def move(self, action):
        if np.abs(action).min() == 1:
            raise ZeroDivisionError("too hard")

    broken(broken_by(move=move), r"must take \[-1. -1.\] of float32 \[2\], got ZeroDivisionError: too hard; every acti")


def test_an_action_that_is_written_into_is_named():
    def move(self, action):
        action *= 0.5

    broken(broken_by(move=move), "env.step must not write into the action, got .* changed to .*; work on a copy")


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (np.nan_to_num, "must refuse an action with an entry of nan, took it; raise unless np.isfinite"),
        (
            lambda action: np.where(np.abs(action) < 9, action.clip(-1, 1), np.nan),
            "with an entry of -1.5, took it; rai",
        ),
        (lambda action: action[:A], r"with 3 entries, took it; raise unless its shape is \(2,\)"),
    ],
)
def test_a_bad_action_that_is_taken_is_named(replace, message):
    def step(self, action):
        if np.isinf(action).any():
            raise ValueError("infinite")
        return Slider.step(self, replace(action))

    broken(broken_by(step=step), message)


def test_a_choice_that_is_not_one_is_named():
    class Chooses(Slider):
        num_actions = A

        def step(self, action):
            return super().step(np.where(action > 0.4, 1.0, 0.0) if np.isfinite(action).all() else action)

    with pytest.raises(ContractError) as caught:
        check(Chooses())
    assert "with entries that are all 0, took it; raise unless one entry is 1" in str(caught.value)


def test_a_refusal_that_changes_the_episode_is_named():
    def step(self, action):
        self.place += 1
        return Slider.step(self, action)

    broken(broken_by(step=step), "an entry of nan must be refused before anything changes, got another episode; it dif")

    def once(self, action):
        if not np.isfinite(action).all():
            self.time = self.length
        return Slider.step(self, action)

    broken(broken_by(step=once), "must be refused before anything changes, got an error; step 1: env.step must take")


class Standard(StandardEnv):
    """Whose step is replaced, to break the repeat."""

    def step(self, action):
        return self.stepper(action)


class Line(gymnasium.Env):
    """A point on a line, ten steps long."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = self.np_random.normal(), 0
        return np.array([self.place]), {}

    def step(self, action):
        self.place, self.time = self.place + float(action[0]), self.time + 1
        return np.array([self.place]), 1.0, False, self.time >= 10, {}


def repeating(stepper):
    env = Standard(Line(), obs="state", action_repeat=3)
    env.stepper = lambda action: stepper(env, action)
    return env


def test_a_repeat_that_is_right_passes_with_its_shorter_end():
    check_env(repeating(StandardEnv.step))


def test_counting_steps_puts_back_what_was_there():
    inner = Line()
    check_env(StandardEnv(inner, obs="state", action_repeat=3), close=False)
    assert "step" not in vars(inner)
    calls = []
    inner.step = watched = lambda action: calls.append(action) or Line.step(inner, action)
    check_env(StandardEnv(inner, obs="state", action_repeat=3), close=False)
    assert inner.step is watched
    assert calls


def test_a_repeat_that_is_not_honoured_is_named():
    def once(env, action):
        env.action_repeat = 1
        try:
            return StandardEnv.step(env, action)
        finally:
            env.action_repeat = 3

    def changing(env, action):
        command = env._command(action)
        total = 0.0
        for number in range(3):
            seen, reward, terminated, truncated, info = env.env.step(command * (1 - 0.1 * number))
            total += reward
            if truncated:
                break
        return seen.astype(np.float32), total, terminated, truncated, info

    def last_reward(env, action):
        seen, _, *rest = StandardEnv.step(env, action)
        return seen, 1.0, *rest

    settings = {"bad_actions": False, "action_dim": None}
    broken(repeating(once), r"must take 3 steps of the inner environment, got 1 \(step 1\); .*StandardEnv", **settings)
    broken(repeating(changing), r"must repeat one and the same action, got others; an inner step", **settings)
    broken(repeating(last_reward), "must return the sum of the inner rewards, 3, got 1", **settings)


def test_a_close_that_fails_is_named():
    def close(self):
        self.closed = getattr(self, "closed", 0) + 1
        if self.closed > limit:
            raise RuntimeError("freed twice")

    limit = 0
    broken(broken_by(close=close), "env.close must run, got RuntimeError: freed twice; free each thing once")
    limit = 1
    broken(broken_by(close=close), "env.close must be harmless when called twice, got RuntimeError: freed twice")


def test_all_complaints_come_in_one_error_with_their_remedies():
    env = broken_by(seen=lambda self: self.place, reward=lambda self: np.nan, end=lambda self: (0, self.time >= 12))
    with pytest.raises(ContractError) as caught:
        check(env)
    lines = str(caught.value).splitlines()
    assert lines[0] == "env breaks 3 promises:"
    assert [line[:5] for line in lines[1:]] == ["  1. ", "  2. ", "  3. "]
    assert all(";" in line for line in lines[1:])
    for words, line in zip(("reward", "terminated", "left alone"), lines[1:], strict=True):
        assert words in line


def test_what_stops_the_trial_comes_with_what_was_found_before_and_its_cause():
    def seen(self):
        if self.time == 3:
            raise KeyError("sensor")
        return self.place.astype(np.float32)

    with pytest.raises(
        ContractError, match=r"(?s)1. step 1: reward.* 2. step 3: env.step must take .*KeyError"
    ) as caught:
        check(broken_by(seen=seen, reward=lambda self: None))
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("env", "settings", "error", "message"),
    [
        (Slider, {}, TypeError, "env must be an instance, got the class Slider; make one first"),
        ("dmc:cartpole-balance", {}, TypeError, "env must be an instance, got the name 'dmc:cartpole-balance'"),
        (Slider(), {"num_steps": 0}, ValueError, "num_steps must be at least 1, got 0"),
        (Slider(), {"action_dim": None}, ValueError, "action_dim must be at least 1 where env has no action_space"),
        (Line(), {"action_dim": 3}, ValueError, "action_dim must be 1, as env.action_space says, got 3; leave it out"),
    ],
)
def test_what_cannot_be_tried_at_all_is_refused(env, settings, error, message):
    with pytest.raises(error, match=message):
        check(env, **settings)


def test_what_passes_is_taken_by_run_episode():
    env = Slider()
    check(env)
    episode = run_episode(env, random_policy(A, np.random.default_rng(0)), seed=1)
    assert len(episode.reward) == Slider.length + 1
    assert episode.truncated[-1]

"""An episode that goes on in a new worker: exactly as it was, or lost with the reason."""

import numpy as np
import pytest
from gymnasium import Env, spaces

from planet_lib.envs import _history
from planet_lib.envs._history import checksum
from planet_lib.envs._slots import LostError, call, describe
from planet_lib.envs.standard_vector import StandardVectorEnv
from planet_lib.envs.wrappers import StandardEnv


class Drift(Env):
    """Sees [position, step]: the position moves by the action and by the environment's own noise; ends after 6."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    render_mode = None
    wind = 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = self.np_random.normal() + (options or {}).get("start", [0.0])[0], 0
        return self.seen(), {}

    def step(self, action):
        self.t += 1
        self.x += float(action[0]) + 0.1 * self.np_random.normal() + self.wind
        return self.seen(), float(self.x) ** 3, self.t == 6, False, {"made": id(self)}

    def seen(self):
        return np.array([self.x, self.t], np.float32)

    def set_wind(self, wind):
        self.wind = wind


class Frail:
    """A slot whose worker k fails as `failures[k]` says, a step and a reason, step 0 being the reset."""

    def __init__(self, *failures, make=Drift):
        self.failures, self.make, self.made = failures, make, 0
        self.restart()

    def restart(self):
        self.env = StandardEnv(self.make(), obs="state")
        self.fails = self.failures[self.made] if self.made < len(self.failures) else None
        self.made, self.step, self.log = self.made + 1, 0, []

    def describe(self):
        return describe(self.env)

    def ask(self, name, *args, **kwargs):
        self.question = name, args, kwargs

    def answer(self):
        name, args, kwargs = self.question
        self.step = 0 if name == "reset" else self.step + 1 if name == "step" else self.step
        self.log.append(name)
        if name in ("reset", "step") and self.fails is not None and self.step == self.fails[0]:
            raise LostError(self.fails[1])
        return call(self.env, name, args, kwargs)

    def hang_up(self):
        pass

    def end(self, deadline):
        self.env.close()


ACTIONS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(6, 2, 1)


def played(envs, *, seed=5, options=None, before_step=lambda step: None):
    """All that an episode of two rows gives, infos apart."""
    given = [envs.reset(seed=seed, options=options)[0]]
    infos = []
    for step, actions in enumerate(ACTIONS, 1):
        before_step(step)
        *result, info = envs.step(actions)
        given.extend(result)
        infos.append(info)
    return given, infos


def same(given, expected):
    return all(np.array_equal(one, other) for one, other in zip(given, expected, strict=True))


@pytest.fixture
def expected():
    return played(StandardVectorEnv([Frail(), Frail()]))[0]


@pytest.mark.parametrize("step", [1, 3, 6])
def test_an_episode_goes_on_in_a_new_worker_as_if_nothing_had_happened(expected, step):
    slots = [Frail(), Frail((step, "it was killed"))]
    envs = StandardVectorEnv(slots)
    with pytest.warns(RuntimeWarning, match="^environment 1 has a new worker, which goes on for it: it was killed$"):
        given, infos = played(envs)
    assert same(given, expected)
    assert [info["restored"].tolist() for info in infos] == [[False, number == step] for number in range(1, 7)]
    assert not any(info["restarted"].any() for info in infos)
    assert infos[step - 1]["restart_reason"].tolist() == [None, "it was killed"]
    assert slots[1].made == 2
    assert slots[1].log == ["reset"] + ["step"] * 6  # the new worker's: each step once
    assert slots[0].made == 1
    assert same(played(envs, seed=8)[0], played(StandardVectorEnv([Frail(), Frail()]), seed=8)[0])


def test_rows_that_fail_at_once_and_again_are_all_taken_up(expected):
    slots = [Frail((4, "first"), (2, "while it was played again"), (0, "in its reset")), Frail((4, "second"))]
    with pytest.warns(RuntimeWarning, match="which goes on for it") as caught:
        given, infos = played(StandardVectorEnv(slots))
    assert same(given, expected)
    assert [str(warning.message)[-6:] for warning in caught] == [" first", "second"]
    assert infos[3]["restored"].tolist() == [True, True]
    assert [slot.made for slot in slots] == [4, 2]


def test_an_unfinished_episode_may_fail_only_so_often():
    slots = [Frail((4, "a"), (2, "b"), (3, "c")), Frail()]
    message = r"^environment 0 failed 3 times without finishing an episode \(max_restarts=2\), the last time with: c$"
    envs = StandardVectorEnv(slots, max_restarts=2)
    with pytest.raises(RuntimeError, match=message):
        played(envs)
    slots = [Frail(), Frail()]
    envs = StandardVectorEnv(slots, max_restarts=1)
    for _ in range(3):  # a finished episode begins the count anew
        slots[0].fails = (4, "a")
        with pytest.warns(RuntimeWarning, match="goes on"):
            played(envs)


def test_the_options_of_the_reset_are_given_again_as_they_were():
    start = [3.0]
    expected = played(StandardVectorEnv([Frail(), Frail()]), options={"start": start})[0]
    envs = StandardVectorEnv([Frail(), Frail((3, "killed"))])
    with pytest.warns(RuntimeWarning, match="goes on"):
        given, _ = played(envs, options={"start": start}, before_step=lambda step: start.__setitem__(0, -step))
    assert same(given, expected)


class Forgetful(Drift):
    """Draws from a generator that no seed starts."""

    def step(self, action):
        self.x += np.random.default_rng().normal() if self.t == 1 else 0
        return super().step(action)


@pytest.mark.parametrize(
    ("slot", "settings", "why", "made"),
    [
        (Frail((4, "killed")), {"seed": [5, None]}, "its reset had no seed", 2),
        (Frail((4, "a"), (4, "a")), {}, "step 4 failed again when it was played again", 3),
        (Frail((4, "a"), (2, "b"), (2, "b")), {}, "step 2 failed again when it was played again", 4),
        (Frail((4, "a"), (0, "b"), (0, "b")), {}, "step 0 failed again when it was played again", 4),
        (
            Frail((4, "killed"), make=Forgetful),
            {},
            "step 2 gave something else when it was played again with the same seed and actions",
            2,
        ),
    ],
)
def test_an_episode_that_cannot_go_on_is_lost_and_the_warning_says_why(expected, slot, settings, why, made):
    envs = StandardVectorEnv([Frail(), slot])
    with pytest.warns(RuntimeWarning, match=rf"^environment 1 has a new worker, and its episode is lost \({why}\): "):
        given, infos = played(envs, **settings)
    assert [info["restarted"].tolist() for info in infos] == [[False, False]] * 3 + [[False, True]] * 3
    assert not any(info["restored"].any() for info in infos)
    np.testing.assert_array_equal(given[13][1], given[9][1])  # the observations after steps 4 and 3
    assert given[14][1] == 0
    np.testing.assert_array_equal(given[-4][0], expected[-4][0])
    assert slot.made == made
    again = played(envs, seed=9)
    assert not any(info["restarted"].any() for info in again[1])


def test_what_a_call_may_have_changed_is_not_played_again_until_the_worker_is_new():
    slots = [Frail((4, "first")), Frail()]
    envs = StandardVectorEnv(slots)
    envs.call("set_wind", 0.5)
    with pytest.warns(RuntimeWarning, match=r"lost \(`call` may have changed its environment\): first"):
        played(envs)
    slots[0].fails = (2, "second")
    with pytest.warns(RuntimeWarning, match="which goes on for it: second"):
        played(envs, before_step=lambda step: envs.get_attr("wind"))
    slots[0].fails = (6, "third")
    with pytest.warns(RuntimeWarning, match=r"lost \(`call`"):
        played(envs, before_step=lambda step: step == 3 and envs.call("set_wind", 0.5))


def test_no_more_steps_are_remembered_than_pay(monkeypatch, expected):
    monkeypatch.setattr(_history, "LONGEST", 4)
    with pytest.warns(RuntimeWarning, match="which goes on"):
        assert same(played(StandardVectorEnv([Frail((4, "a")), Frail()]))[0], expected)
    envs = StandardVectorEnv([Frail((5, "a")), Frail()])
    with pytest.warns(RuntimeWarning, match=r"lost \(it has 4 steps or more, too many to be remembered\)"):
        played(envs)
    assert len(envs._replacing._histories[1]) == 4


def test_a_checksum_tells_every_part_apart_but_infos():
    obs = {"camera": np.zeros((3, 2, 2), np.uint8), "joints": np.array([0.0, -0.0], np.float32)}
    base = checksum((obs, 1.0, False, False, {}))
    assert checksum(({**obs}, 1.0, False, False, {"took": 0.1})) == base
    camera = obs["camera"].copy()
    camera[2, 1, 1] = 1
    others = [
        ({**obs, "camera": camera}, 1.0, False, False, {}),
        ({**obs, "joints": np.array([0.0, 0.0], np.float32)}, 1.0, False, False, {}),
        ({**obs, "joints": np.nextafter(obs["joints"], np.float32(1))}, 1.0, False, False, {}),
        (obs, np.nextafter(1.0, 2), False, False, {}),
        (obs, 1.0, True, False, {}),
        (obs, 1.0, False, True, {}),
    ]
    assert base not in [checksum(other) for other in others]
    assert len({checksum(other) for other in others}) == len(others)
    transposed = np.arange(6, dtype=np.uint8).reshape(2, 3).T
    assert checksum((transposed, {})) == checksum((transposed.copy(), {}))


def test_a_worker_that_is_lost_in_its_reset_takes_with_it_what_a_call_had_set_and_the_warning_says_so():
    slots = [Frail(), Frail()]
    envs = StandardVectorEnv(slots)
    envs.call("set_wind", 0.5)
    slots[0].fails = (0, "it was killed")
    gone = r"^environment 0 has a new worker: it was killed \(what `call` had set in the old one is gone\)$"
    with pytest.warns(RuntimeWarning, match=gone):
        envs.reset(seed=1)
    assert envs.call("wind") == (0.0, 0.5)

"""Collection: the alignment of rows, the policy's state, and every bad value named with its step."""

import numpy as np
import pytest
import torch

from planet_lib.data import SequenceReplay, random_policy, run_episode


class Counter:
    """Observation (t, last action); reward 10 * t + action; ends after `length` steps."""

    def __init__(self, length=4, terminates=True, **replacements):
        self.length, self.terminates, self.replacements, self.seeds = length, terminates, replacements, []

    def replaced(self, name, value):
        return self.replacements.get(f"{name}_{self.t}", value)

    def reset(self, *, seed=None):
        self.seeds.append(seed)
        self.t = 0
        self.obs = np.zeros(2)
        return self.replaced("obs", self.obs), {}

    def step(self, action):
        self.t += 1
        self.obs[:] = self.t, action[0]  # in place: many environments reuse their buffer
        reward = self.replaced("reward", 10 * self.t + float(action[0]))
        action[:] = 99  # an environment may scribble on what it is given
        over = self.t == self.length
        return self.replaced("obs", self.obs), reward, over and self.terminates, over and not self.terminates, {}


class Images:
    """Four images of one brightness each."""

    def __init__(self, shape=(3, 4, 5)):
        self.shape = shape

    def reset(self, *, seed=None):
        self.t = 0
        self.frame = np.zeros(self.shape, np.uint8)
        return self.frame, {}

    def step(self, action):
        self.t += 1
        self.frame[:] = 80 * self.t
        return self.frame, 1, False, self.t == 3, {}


class Named:
    """Observes a dictionary: camera of brightness t, joints [t, -t]; `replaced` stands in at step `at`."""

    def __init__(self, at=-1, replaced=None, **entries):
        self.at, self.replaced, self.entries = at, replaced, entries

    def observe(self):
        self.camera[:] = self.t
        self.joints[:] = self.t, -self.t
        seen = {"camera": self.camera, "joints": self.joints}
        if self.t != self.at:
            return seen
        return self.replaced if self.replaced is not None else {**seen, **self.entries}

    def reset(self, *, seed=None):
        self.t, self.camera, self.joints = 0, np.zeros((3, 8, 6), np.uint8), np.zeros(2)
        return self.observe(), {}

    def step(self, action):
        self.t += 1
        return self.observe(), float(self.t), self.t == 3, False, {}


def counting(obs, is_first, state):
    """Acts 0.1, 0.2, ... by counting in its state."""
    count = 1 if state is None else state + 1
    return torch.tensor([[count / 10]]), count


def acting(value):
    return lambda obs, is_first, state: (value, state)


@pytest.mark.parametrize("terminates", [True, False])
def test_each_row_holds_the_action_and_reward_that_led_to_it(terminates):
    episode = run_episode(Counter(3, terminates), counting)
    np.testing.assert_allclose(episode.obs, [[0, 0], [1, 0.1], [2, 0.2], [3, 0.3]], rtol=1e-6)
    np.testing.assert_allclose(episode.action, [[0], [0.1], [0.2], [0.3]], rtol=1e-6)
    np.testing.assert_allclose(episode.reward, [0, 10.1, 20.2, 30.3], rtol=1e-6)
    assert episode.is_first.tolist() == [True, False, False, False]
    assert episode.terminated.tolist() == [False, False, False, terminates]
    assert episode.truncated.tolist() == [False, False, False, not terminates]
    assert [str(field.dtype) for field in episode] == ["float32", "float32", "float32", "bool", "bool", "bool"]


def test_images_stay_bytes_and_the_final_one_is_a_row():
    episode = run_episode(Images(), acting(torch.zeros(1, 2)))
    assert episode.obs.dtype == np.uint8
    assert episode.obs[:, 0, 0, 0].tolist() == [0, 80, 160, 240]
    assert (episode.obs == episode.obs[:, :1, :1, :1]).all()


def test_an_episode_goes_straight_into_replay():
    replay = SequenceReplay(10, obs_shape=(3, 4, 5), action_dim=2)
    replay.add(run_episode(Images(), random_policy(2, np.random.default_rng(0))))
    assert replay.sample(1, 4).obs[:, 0, 0, 0, 0].tolist() == [0, 80, 160, 240]


def test_the_policy_sees_observation_is_first_and_its_own_state():
    calls = []

    def policy(obs, is_first, state):
        calls.append((obs.clone(), is_first, state))
        obs.fill_(7)  # its input is its own
        return torch.full((1, 1), 0.5, requires_grad=True) * 1, {"call": len(calls)}

    episode = run_episode(Counter(3), policy)
    assert [state for _, _, state in calls] == [None, {"call": 1}, {"call": 2}]
    assert [is_first.tolist() for _, is_first, _ in calls] == [[True], [False], [False]]
    assert torch.equal(torch.cat([obs for obs, _, _ in calls]), torch.from_numpy(episode.obs[:-1]))
    assert episode.obs[:, 0].tolist() == [0, 1, 2, 3]


def test_the_policy_runs_without_gradients():
    def policy(obs, is_first, state):
        assert not torch.is_grad_enabled()
        return torch.zeros(1, 1), state

    run_episode(Counter(), policy)
    assert torch.is_grad_enabled()


def test_the_seed_goes_to_reset_and_each_step_is_reported():
    env, steps = Counter(3), []
    run_episode(env, counting, seed=5, on_step=steps.append)
    run_episode(env, counting)
    assert env.seeds == [5, None]
    assert steps == [1, 2, 3]


@pytest.mark.parametrize(
    ("replacements", "error", "message"),
    [
        ({"obs_0": np.array([np.nan, 0])}, ValueError, "^step 0: observation must be finite in float32, got nan"),
        ({"obs_2": np.array([0, 1e300])}, ValueError, "^step 2: observation must be finite in float32, got inf"),
        ({"obs_0": np.zeros(2, np.int64)}, TypeError, "^step 0: observation must be uint8 .* got int64; convert"),
        ({"obs_0": object()}, TypeError, "^step 0: observation must be uint8 .* got object"),
        (
            {"obs_1": {"a": np.zeros(2)}},
            TypeError,
            r"^step 1: observation must be float32 \[2\] as at reset, got a dict",
        ),
        (
            {"obs_0": np.zeros((2, 2))},
            ValueError,
            r"^step 0: observation must be a vector \(N,\) of floats, got float64",
        ),
        ({"obs_0": np.zeros((4, 4), np.uint8)}, ValueError, r"must be a uint8 image \(C, Y, X\), got uint8 \[4, 4\]"),
        (
            {"obs_0": np.zeros(0)},
            ValueError,
            r"^step 0: observation must be a vector \(N,\) of floats, got float64 \[0\]",
        ),
        (
            {"obs_3": np.zeros(3)},
            ValueError,
            r"^step 3: observation must be float32 \[2\] as at reset, got float32 \[3\]",
        ),
        ({"obs_3": np.zeros((1, 1, 2), np.uint8)}, ValueError, r"^step 3: .* as at reset, got uint8 \[1, 1, 2\]"),
        ({"reward_2": np.nan}, ValueError, "^step 2: reward must be one finite number, got nan"),
        ({"reward_4": 1e300}, ValueError, r"^step 4: reward must be one finite number, got 1e\+300"),
        ({"reward_1": np.zeros(2)}, ValueError, "^step 1: reward must be one finite number, got"),
        ({"reward_1": None}, ValueError, "^step 1: reward must be one finite number, got None"),
    ],
)
def test_a_bad_value_of_the_environment_is_named_with_its_step(replacements, error, message):
    with pytest.raises(error, match=message):
        run_episode(Counter(**replacements), counting)


def test_a_dictionary_comes_out_as_rows_by_name():
    episode = run_episode(Named(), acting(torch.zeros(1, 1)))
    assert list(episode.obs) == ["camera", "joints"]
    assert (episode.obs["camera"] == np.arange(4, dtype=np.uint8)[:, None, None, None]).all()
    assert episode.obs["camera"].shape == (4, 3, 8, 6)
    assert episode.obs["joints"].tolist() == [[0, 0], [1, -1], [2, -2], [3, -3]]
    assert [str(value.dtype) for value in episode.obs.values()] == ["uint8", "float32"]


def test_the_order_of_the_names_may_change_and_the_first_one_stays():
    env = Named(2, {"joints": np.ones(2), "camera": np.zeros((3, 8, 6), np.uint8)})
    episode = run_episode(env, acting(torch.zeros(1, 1)))
    assert list(episode.obs) == ["camera", "joints"]
    assert episode.obs["joints"][2].tolist() == [1, 1]


def test_the_policy_sees_a_dictionary_of_its_own():
    seen = []

    def policy(obs, is_first, state):
        seen.append({name: value.clone() for name, value in obs.items()})
        for value in obs.values():
            value.fill_(7)
        obs.clear()
        return torch.zeros(1, 1), state

    episode = run_episode(Named(), policy)
    for name, rows in episode.obs.items():
        assert torch.equal(torch.cat([obs[name] for obs in seen]), torch.from_numpy(rows[:-1])), name


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (
            np.zeros((3, 8, 8), np.float32),
            TypeError,
            r"must be a uint8 image \(C, Y, X\) .* got float32 \[3, 8, 8\]; give uint8 0 to 255: multiply by 255 first "
            r"where it lies in 0 to 1, then cast with astype\(np.uint8\)",
        ),
        (np.zeros((8, 8, 3)), TypeError, r"got float64 \[8, 8, 3\]; give uint8 0 to 255"),
        (
            np.zeros((8, 6, 3), np.uint8),
            ValueError,
            r"must be a uint8 image \(C, Y, X\), channels first, got uint8 \[8, 6, 3\], which is channels last; "
            r"give obs.transpose\(2, 0, 1\) \(in torch, obs.movedim\(-1, 0\)\)",
        ),
        (np.zeros((5, 6, 1), np.uint8), ValueError, "channels last"),
        (np.zeros((8, 6, 4), np.uint8), ValueError, "channels last"),
    ],
)
def test_an_image_in_another_form_is_answered_with_what_to_do(image, error, message):
    with pytest.raises(error, match=rf"^step 0: observation {message}" if message.startswith("must") else message):
        run_episode(Counter(obs_0=image), counting)
    with pytest.raises(error, match=rf"^step 2: observation\['camera'\] .*{message}"):
        run_episode(Named(2, camera=image), acting(torch.zeros(1, 1)))


@pytest.mark.parametrize("shape", [(4, 4, 3), (9, 8, 8), (3, 8, 3), (1, 6, 1)])
def test_an_image_that_may_well_be_channels_first_is_taken(shape):
    assert run_episode(Images(shape), acting(torch.zeros(1, 1))).obs.shape == (4, *shape)


NOT_PLAIN = "must have printable names without slash, backslash or dot, got"


@pytest.mark.parametrize(
    ("env", "error", "message"),
    [
        (Named(0, {}), ValueError, "^step 0: observation must have at least one entry, got an empty dictionary"),
        (Named(0, {3: 1}), TypeError, r"^step 0: observation must have strings as names, got 3 \(int\); rename it"),
        (Named(0, {"a/b": np.zeros(1)}), ValueError, f"^step 0: observation {NOT_PLAIN} 'a/b'; rename it"),
        (Named(0, {"a.b": np.zeros(1)}), ValueError, f"{NOT_PLAIN} 'a.b'"),
        (Named(0, {"": np.zeros(1)}), ValueError, f"{NOT_PLAIN} ''"),
        (Named(0, {"a\0": np.zeros(1)}), ValueError, NOT_PLAIN),
        (
            Named(0, {"a": {"b": 1}}),
            TypeError,
            r"^step 0: observation\['a'\] must be an array, got a dictionary; flatten",
        ),
        (
            Named(0, {"a": np.zeros(2, int)}),
            TypeError,
            r"^step 0: observation\['a'\] must be uint8 pixels .* got int64",
        ),
        (Named(2, joints=np.array([0, np.inf])), ValueError, r"^step 2: observation\['joints'\] must be finite .* inf"),
        (
            Named(1, joints=np.zeros(3)),
            ValueError,
            r"^step 1: observation\['joints'\] must be float32 \[2\] as at reset, got float32 \[3\]",
        ),
        (Named(1, joints=np.zeros((1, 1, 1), np.uint8)), ValueError, r"must be float32 \[2\] as at reset, got uint8"),
        (
            Named(2, {"camera": np.zeros((3, 8, 6), np.uint8)}),
            ValueError,
            r"^step 2: observation must have the entries \['camera', 'joints'\] as at reset, got \['camera'\]; give",
        ),
        (Named(1, extra=np.zeros(1)), ValueError, r"^step 1: .* as at reset, got \['camera', 'joints', 'extra'\]"),
        (
            Named(3, np.zeros(2)),
            TypeError,
            r"^step 3: observation must be a dictionary with the entries \['camera', 'joints'\] .*reset, got ndarray",
        ),
    ],
)
def test_a_bad_dictionary_is_named_with_its_step_and_entry(env, error, message):
    with pytest.raises(error, match=message):
        run_episode(env, acting(torch.zeros(1, 1)))


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (torch.tensor([[1.01]]), ValueError, r"^step 1: action must be finite and in \[-1, 1\], got \[1.00"),
        (torch.tensor([[-1.01]]), ValueError, "^step 1: action must be finite and in"),
        (torch.tensor([[np.nan]]), ValueError, r"^step 1: action must be finite .* got \[nan\]"),
        (torch.zeros(1), ValueError, r"^step 1: action must be \[1, A\], got \[1\]"),
        (torch.zeros(2, 1), ValueError, r"^step 1: action must be \[1, A\], got \[2, 1\]"),
        (torch.zeros(1, 1).long(), TypeError, "^step 1: action must be a floating tensor .* got a torch.int64 tensor"),
        (np.zeros((1, 1)), TypeError, r"^step 1: action must be a floating tensor \[1, A\], got ndarray"),
    ],
)
def test_a_bad_action_is_named_with_its_step_and_never_executed(action, error, message):
    env = Counter()
    with pytest.raises(error, match=message):
        run_episode(env, acting(action))
    assert env.t == 0


def test_the_length_of_actions_is_the_environments_or_else_the_first_ones():
    env = Counter()
    with pytest.raises(ValueError, match=r"^step 3: action must be \[1, A\] with A=1, got \[1, 3\]"):
        run_episode(env, lambda obs, is_first, state: (torch.zeros(1, 3 if env.t == 2 else 1), state))
    env.action_space = type("Box", (), {"shape": (2,)})()
    with pytest.raises(ValueError, match=r"^step 1: action must be \[1, A\] with A=2, got \[1, 1\]"):
        run_episode(env, counting)
    env.action_space = type("Discrete", (), {"shape": ()})()
    with pytest.raises(ValueError, match=r"env.action_space must be a Box of shape \(A,\), got shape \(\)"):
        run_episode(env, counting)


@pytest.mark.parametrize("make", [np.random.default_rng, lambda seed: torch.Generator().manual_seed(seed)])
def test_the_random_policy_is_uniform_and_follows_its_seed_alone(make):
    def draw(seed, count=3000):
        policy = random_policy(2, make(seed))
        return torch.cat([policy(torch.zeros(1, 1), torch.tensor([True]), None)[0] for _ in range(count)])

    actions = draw(0)
    assert ((actions >= -1) & (actions <= 1)).all()
    counts = torch.histc(actions, bins=10, min=-1, max=1)
    assert ((counts - 600) ** 2 / 600).sum() < 27.9  # 9 degrees of freedom: exceeded once in a thousand
    assert abs(torch.corrcoef(actions.T)[0, 1]) < 0.08
    torch.manual_seed(9)
    assert torch.equal(actions[:50], draw(0, 50))
    assert not torch.equal(actions[:50], draw(1, 50))


def test_bad_arguments_of_the_random_policy_are_named():
    with pytest.raises(ValueError, match="action_dim must be greater than 0, got 0"):
        random_policy(0, np.random.default_rng(0))
    with pytest.raises(
        TypeError, match=r"generator must be a numpy.random.Generator or torch.Generator, got int; make"
    ):
        random_policy(1, 0)

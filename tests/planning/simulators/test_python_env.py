import copy
import itertools

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.utils._pytree import tree_leaves

from planet_lib.planning import CEMPlanner
from planet_lib.planning.simulators import EnvDynamics, MuJoCoDynamics
from planet_lib.testing import check_dynamics


class Corridor(gymnasium.Env):
    """Walk from 0 by the action in [-1, 1]; each step costs the distance from 1, and beyond 2 the episode is over."""

    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self):
        self.place, self.steps = 0.0, 0

    def step(self, action):
        assert action.dtype == np.float32
        assert action.shape == (1,)
        self.place += float(action[0])
        self.steps += 1
        if self.place > 10:
            raise RuntimeError("through the wall")
        if self.place < -2:
            return self.place, float("nan"), False, False, {}
        action[0] = 99.0  # an environment may
        return self.place, -abs(self.place - 1), self.place > 2, False, {}


def place(env):
    return env.unwrapped.place, env.unwrapped.steps


def put(env, saved):
    env.unwrapped.place, env.unwrapped.steps = saved


WAYS = {"deep copies": {}, "its own functions": {"get_state": place, "set_state": put}}


@pytest.fixture(params=sorted(WAYS))
def corridor(request):
    """Dynamics of the corridor, for both ways to save it."""
    return EnvDynamics(Corridor(), **WAYS[request.param])


def walks(*rows):
    """Actions [H, 1, J, 1] of J candidates."""
    return torch.tensor(rows, dtype=torch.float64).T[:, None, :, None]


def test_a_return_is_the_sum_of_rewards_by_hand(corridor):
    returns = corridor.rollout(corridor.state(), walks([1.0, 0.0, 0.0], [0.5, 0.5, 1.0], [-1.0, -1.0, 0.0]))
    np.testing.assert_allclose(returns[0], [0.0, -0.5 - 0.0 - 1.0, -2.0 - 3.0 - 3.0])
    assert returns.dtype == torch.float64


def test_the_discount_weighs_later_rewards():
    dynamics = EnvDynamics(Corridor(), discount=0.5)
    assert dynamics.rollout(dynamics.state(), walks([-1.0, 0.0, 1.0])).item() == -2 - 0.5 * 2 - 0.25 * 1


def test_after_the_end_nothing_is_earned_and_nothing_is_stepped():
    for end in (True, False):

        class Short(Corridor):
            def step(self, action, end=end):
                assert self.steps < 2, "stepped after the end"
                observation, reward, *_ = super().step(action)
                return observation, reward, end and self.steps == 2, not end and self.steps == 2, {}

        dynamics = EnvDynamics(Short())
        assert dynamics.rollout(dynamics.state(), walks([0.0] * 5)).item() == -2


def test_the_environment_has_afterwards_the_state_that_it_had(corridor):
    corridor.env.place, corridor.env.steps = 0.25, 3
    corridor.rollout(corridor.state(), walks([1.0, 1.0], [-1.0, 0.5]))
    assert place(corridor.env) == (0.25, 3)
    corridor.env.place = 9.5
    with pytest.raises(RuntimeError, match="through the wall"):
        corridor.rollout(corridor.state(), walks([1.0, 1.0]))
    assert place(corridor.env) == (9.5, 3)


def test_rollouts_start_from_the_saved_state_and_not_from_where_the_environment_is(corridor):
    state = corridor.state()
    corridor.env.place = 1.5
    assert corridor.rollout(state, walks([1.0])).item() == 0.0
    assert corridor.env.place == 1.5
    assert corridor.rollout(state, walks([1.0])).item() == 0.0


def test_a_reward_that_is_not_a_number_spoils_its_own_candidate_alone(corridor):
    returns = corridor.rollout(corridor.state(), walks([-1.0, -1.0, -1.0, 1.0], [1.0, 0.0, 0.0, 0.0]))
    assert returns[0, 0].isnan()
    assert returns[0, 1] == 0.0


def test_named_errors_of_step_spoil_their_candidate_and_others_pass(corridor):
    corridor.env.place = 9.5
    state = corridor.state()
    with pytest.raises(RuntimeError):
        corridor.rollout(state, walks([1.0], [-1.0]))
    tolerant = EnvDynamics(Corridor(), get_state=place, set_state=put, errors=(RuntimeError,))
    tolerant.env.place = 9.5
    returns = tolerant.rollout(tolerant.state(), walks([1.0], [-1.0]))
    np.testing.assert_allclose(returns[0], [np.nan, -7.5])


def test_several_environments_are_rows_in_their_order(corridor):
    envs = [Corridor() for _ in range(3)]
    for index, env in enumerate(envs):
        env.place = index / 2
    state = corridor.state(envs)
    actions = torch.zeros(1, 3, 2, 1)
    actions[:, :, 1] = 0.5
    assert corridor.rollout(state, actions).tolist() == [[-1.0, -0.5], [-0.5, 0.0], [0.0, -0.5]]
    picked = state._replace(row=torch.tensor([2, 2]))
    assert corridor.rollout(picked, actions[:, :2]).tolist() == [[0.0, -0.5], [0.0, -0.5]]
    assert [env.place for env in envs] == [0.0, 0.5, 1.0]


def test_what_is_saved_is_not_taken_for_rows_of_the_state():
    """A planner looks at the tensors of a state; those inside a saved environment are none of its business."""
    dynamics = EnvDynamics(
        Corridor(), get_state=lambda env: {"inside": torch.zeros(7)}, set_state=lambda env, saved: None
    )
    tensors = [leaf for leaf in tree_leaves(dynamics.state()) if isinstance(leaf, torch.Tensor)]
    assert [leaf.shape for leaf in tensors] == [(1,)]


def test_the_contract_of_dynamics_is_kept(corridor):
    envs = [Corridor() for _ in range(3)]
    for index, env in enumerate(envs):
        env.place = index / 10
    check_dynamics(corridor, corridor.state(envs), low=-0.3, high=0.3, action_dim=1)


def test_a_planner_finds_the_known_optimum(corridor):
    """Straight to 1 and stay: worth nothing less than 0, which no other sequence is."""
    planner = CEMPlanner(
        corridor, [-1.0], [1.0], horizon=3, num_candidates=100, num_elites=10, num_iterations=8, min_std=0.0
    )
    plan = planner(corridor.state(), generator=torch.Generator().manual_seed(0))
    assert plan.value.item() == pytest.approx(0.0, abs=0.02)
    assert plan.mean.flatten().tolist() == pytest.approx([1.0, 0.0, 0.0], abs=0.02)
    assert place(corridor.env) == (0.0, 0)


def test_every_sequence_of_a_discrete_environment_is_played_as_its_one_hot_actions_say():
    class Digits(gymnasium.Env):
        """The reward of step t is the action, which starts at 5, times 10^t."""

        action_space = spaces.Discrete(3, start=5)
        steps = 0

        def step(self, action):
            assert isinstance(action, int)
            self.steps += 1
            return None, action * 10 ** (self.steps - 1), False, False, {}

    dynamics = EnvDynamics(Digits())
    choices = torch.tensor(list(itertools.product(range(3), repeat=2)))  # [9, 2]
    actions = torch.nn.functional.one_hot(choices, 3).double().permute(1, 0, 2)[:, None]
    expected = [first + 5 + 10 * (second + 5) for first, second in choices.tolist()]
    assert dynamics.rollout(dynamics.state(), actions)[0].tolist() == expected


def test_to_action_decides_what_step_takes():
    received = []

    class Any:
        def step(self, action):
            received.append(action)
            return None, 1.0, False, False, {}

    dynamics = EnvDynamics(Any(), get_state=lambda env: None, set_state=lambda env, saved: None, to_action=str)
    dynamics.rollout(dynamics.state(), torch.tensor([[[[2.0, 3.0]]]]))
    assert received == ["[2. 3.]"]


def test_an_environment_that_works_on_its_argument_changes_no_candidate():
    class Greedy:
        def step(self, action):
            action += 1
            return None, float(action[0]), False, False, {}

    dynamics = EnvDynamics(Greedy())
    actions = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    assert dynamics.rollout(dynamics.state(), actions).item() == 2.0
    assert actions.count_nonzero() == 0


def pendulum_state(env):
    return env.unwrapped.state.copy()


def set_pendulum(env, saved):
    env.unwrapped.state = saved.copy()


@pytest.mark.parametrize(
    "functions",
    [{}, {"get_state": pendulum_state, "set_state": set_pendulum}],
    ids=["deep copies", "its own functions"],
)
def test_gymnasiums_pendulum_agrees_with_its_step_and_keeps_its_episode(functions):
    env = gymnasium.make("Pendulum-v1", max_episode_steps=20)
    env.reset(seed=3)
    dynamics = EnvDynamics(env, **functions)
    actions = torch.rand(5, 1, 4, 1) * 4 - 2
    for _ in range(4):
        state, before = dynamics.state(), env.unwrapped.state.copy()
        returns = dynamics.rollout(state, actions)
        np.testing.assert_array_equal(env.unwrapped.state, before)
        steps = [env.step(action.numpy()) for action in actions[:, 0, 2]]
        assert returns[0, 2].item() == pytest.approx(sum(float(step[1]) for step in steps), abs=1e-12)
        again = dynamics.rollout(state, actions)
        torch.testing.assert_close(again, returns, rtol=0, atol=0)
    # 20 real steps and 160 imagined ones: the time limit has counted the real ones alone.
    assert [step[3] for step in steps] == [False] * 4 + [True]


def test_near_the_time_limit_no_candidate_earns_past_it():
    env = gymnasium.make("Pendulum-v1", max_episode_steps=3)
    env.reset(seed=0)
    dynamics = EnvDynamics(env)
    actions = torch.zeros(6, 1, 2, 1)
    returns = dynamics.rollout(dynamics.state(), actions)
    rewards = [env.step(action.numpy())[1] for action in actions[:3, 0, 0]]
    assert returns[0].tolist() == pytest.approx([sum(map(float, rewards))] * 2, abs=1e-12)


def test_a_deep_copy_foresees_the_chances_that_the_environment_will_have():
    class Dice(gymnasium.Env):
        action_space = spaces.Box(-1, 1, (1,))

        def step(self, action):
            return None, float(self.np_random.integers(1, 7)), False, False, {}

    env = Dice()
    env.reset(seed=4)
    dynamics = EnvDynamics(env)
    returns = dynamics.rollout(dynamics.state(), torch.zeros(6, 1, 3, 1))[0].tolist()
    assert returns == [sum(env.step(None)[1] for _ in range(6))] * 3


def test_it_agrees_with_mujocos_native_rollouts(make):
    """Two ways to the same returns: stepping the suite's environment itself, and simulating in MuJoCo's threads."""
    env = make("dmc:cartpole-swingup")
    env.reset(seed=2)

    def get_state(env):
        base = env.unwrapped
        return (
            base.physics.get_state(),
            base.physics.data.qacc_warmstart.copy(),
            base.physics.data.time,
            base._env._step_count,
        )

    def set_state(env, saved):
        base = env.unwrapped
        with base.physics.reset_context():
            base.physics.set_state(saved[0])
            base.physics.data.time = saved[2]
        base.physics.data.qacc_warmstart[:] = saved[1]
        base._env._step_count = saved[3]

    stepped = EnvDynamics(env, get_state=get_state, set_state=set_state)
    native = MuJoCoDynamics.from_env(env)
    actions = torch.rand(3, 1, 4, 1) * 2 - 1
    torch.testing.assert_close(
        stepped.rollout(stepped.state(), actions), native.rollout(native.state(), actions), rtol=0, atol=1e-9
    )


def test_arguments_that_do_not_fit_are_refused_by_name(corridor):
    with pytest.raises(ValueError, match="set_state must be given with get_state, got None"):
        EnvDynamics(Corridor(), get_state=place)
    with pytest.raises(ValueError, match="get_state must be given with set_state, got None"):
        EnvDynamics(Corridor(), set_state=put)
    with pytest.raises(ValueError, match=r"discount must be in \(0, 1\], got 1.5"):
        EnvDynamics(Corridor(), discount=1.5)
    with pytest.raises(ValueError, match=r"actions must be \[H, B, J, A\], got \[3, 1, 1\]"):
        corridor.rollout(corridor.state(), torch.zeros(3, 1, 1))
    with pytest.raises(ValueError, match=r"state.row must be \[B\] with B=2 \(as the actions\), got \[1\]"):
        corridor.rollout(corridor.state(), torch.zeros(3, 2, 1, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env": Corridor}, "env must be an environment, got the class Corridor; call it first"),
        ({"env": None}, "env must be an environment, got NoneType without step"),
        ({"to_action": 3}, "to_action must be a function, got 3"),
        ({"errors": (RuntimeError("wall"),)}, "errors must be a tuple of exceptions' classes, got"),
    ],
)
def test_settings_of_another_kind_are_named(settings, message):
    with pytest.raises(TypeError, match=message):
        EnvDynamics(**{"env": Corridor(), **settings})


def test_a_state_that_is_none_or_points_nowhere_is_named(corridor):
    state, actions = corridor.state(), torch.zeros(1, 1, 1, 1)
    for wrong in (-1, 1):  # the first would be the last of those saved
        with pytest.raises(ValueError, match=rf"state.row must be at least 0 and less than 1 .*, got {wrong}"):
            corridor.rollout(state._replace(row=torch.tensor([wrong])), actions)
    with pytest.raises(TypeError, match=r"state must be an EnvState, what state.. returns, got None"):
        corridor.rollout(None, actions)
    with pytest.raises(ValueError, match="envs must be a list of at least one environment, or None, got an empty one"):
        corridor.state([])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((0.0, 1.0, False, {}), "env.step must return observation, reward, .*, got 4 of them"),
        (None, "env.step must return observation, reward, .*, got None"),
        ((0.0, None, False, False, {}), "env.step must return a number and two flags .*, got None, False, False"),
    ],
)
def test_an_environment_that_steps_otherwise_is_named(answer, message):
    class Odd(Corridor):
        def step(self, action):
            return answer

    dynamics = EnvDynamics(Odd())
    with pytest.raises(TypeError, match=message):
        dynamics.rollout(dynamics.state(), walks([1.0]))


def test_an_environment_that_cannot_be_copied_is_named_with_the_remedy():
    class Locked(Corridor):
        def __deepcopy__(self, memo):
            raise TypeError("cannot pickle 'lock'")

    with pytest.raises(TypeError, match=r"env must be one that copy.deepcopy can copy, got Locked .*give get_state"):
        EnvDynamics(Locked()).state()


def test_dynamics_of_deep_copies_can_be_copied():
    dynamics = copy.deepcopy(EnvDynamics(Corridor()))
    assert dynamics.rollout(dynamics.state(), walks([1.0])).item() == 0.0

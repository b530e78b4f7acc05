"""What cannot be simulated: candidates that diverge, environments and arguments that do not fit."""

import copy
import sys

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

from planet_lib.planning.simulators import MuJoCoDynamics, MuJoCoState

pytestmark = pytest.mark.filterwarnings("ignore:compiler attribute")


def forces(*rows):
    """Actions [H, 1, J, 1] of J candidates, each a list of H forces."""
    return torch.tensor(rows, dtype=torch.float64).T[:, None, :, None]


def speed(moments):
    return moments.qvel[:, 0]


def test_what_an_earlier_call_tried_does_not_spoil_a_later_one(slider):
    slider.actuator_gear[0, 0] = 10  # so that a control that MuJoCo accepts is enough
    dynamics = MuJoCoDynamics(slider, speed, steps_per_action=1, data=[mujoco.MjData(slider)])
    assert dynamics.rollout(dynamics.state(), forces([0.0, 5e9])).isnan().all()
    assert dynamics.rollout(dynamics.state(), forces([0.0])).tolist() == [[0.0]]


def test_a_candidate_that_diverges_is_worth_nan_and_its_neighbours_do_not_notice(unstable):
    dynamics = MuJoCoDynamics(
        unstable, lambda moments: np.ones(len(moments.time)), steps_per_action=2, data=[mujoco.MjData(unstable)]
    )
    for horizon in (3, 4, 20):
        quiet = [0.0] * horizon
        returns = dynamics.rollout(dynamics.state(), forces(quiet, [1.0, *quiet[1:]], quiet, [*quiet[1:], 1.0]))
        np.testing.assert_array_equal(returns[0], [horizon, np.nan, horizon, horizon])
    # It diverges later than one decision: so far, its return counts.
    assert dynamics.rollout(dynamics.state(), forces([1.0])).tolist() == [[1.0]]


@pytest.mark.parametrize("autoreset", [True, False])
def test_divergence_is_found_wherever_dm_control_raises_it(autoreset, unstable):
    from dm_control import mujoco as suite_mujoco
    from dm_control.rl.control import PhysicsError

    if not autoreset:
        unstable.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET.value
    physics = suite_mujoco.Physics.from_model(suite_mujoco.wrapper.MjModel(unstable))
    dynamics = MuJoCoDynamics(
        unstable, lambda moments: np.ones(len(moments.time)), steps_per_action=1, data=[mujoco.MjData(unstable)]
    )
    raised = 0
    for horizon in range(1, 10):
        physics.reset()
        physics.set_control([1.0])
        try:
            for _ in range(horizon):
                physics.step()
        except PhysicsError:
            raised += 1
            assert dynamics.rollout(dynamics.state(), forces([1.0] * horizon)).isnan().all(), horizon
    assert raised > 2
    # Grown to what MuJoCo takes for diverged, with the last step and without a warning before.
    data = mujoco.MjData(unstable)
    unstable.actuator_gainprm[0, 0], unstable.actuator_biasprm[0, 2] = 1.0, 0.0
    physics.reset()
    data.qvel[:] = physics.data.qvel[:] = 9.99e9
    dynamics = MuJoCoDynamics(unstable, lambda moments: np.ones(len(moments.time)), steps_per_action=1, data=[data])
    assert dynamics.rollout(dynamics.state(), forces([5e8], [5e9])).isnan().tolist() == [[False, True]]
    physics.set_control([5e9])
    with pytest.raises(PhysicsError):
        physics.step()


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_actions_that_are_not_numbers_are_worth_nan_without_a_word_from_mujoco(broken, make, capfd):
    env = make("dmc:cartpole-swingup")
    env.reset(seed=0)
    dynamics = MuJoCoDynamics.from_env(env)
    actions = torch.zeros(3, 1, 3, 1)
    expected = dynamics.rollout(dynamics.state(), actions)
    actions[1, 0, 1] = broken
    returns = dynamics.rollout(dynamics.state(), actions)
    assert returns[0, 1].isnan()
    torch.testing.assert_close(returns[:, [0, 2]], expected[:, [0, 2]], rtol=0, atol=0)
    assert "WARNING" not in "".join(capfd.readouterr())


def test_a_reward_that_is_not_a_number_is_worth_nan(slider):
    def broken(moments):
        return np.where(moments.qvel[:, 0] > 0, np.inf, moments.qvel[:, 0])

    dynamics = MuJoCoDynamics(slider, broken, steps_per_action=1, data=[mujoco.MjData(slider)])
    returns = dynamics.rollout(dynamics.state(), forces([1.0, 1.0], [-1.0, 0.0]))
    np.testing.assert_allclose(returns[0], [np.nan, -0.02])


def test_forces_that_a_rollout_would_leave_out_are_refused(slider):
    data = mujoco.MjData(slider)
    dynamics = MuJoCoDynamics(slider, speed, steps_per_action=1, data=[data])
    data.ctrl[:] = 4  # what the environment did last is no matter
    dynamics.state()
    data.xfrc_applied[1, 0] = 1.0
    with pytest.raises(ValueError, match=r"environment 0 applies forces.*use EnvDynamics"):
        dynamics.state()


def test_an_environment_that_has_made_a_new_model_is_refused(slider):
    class Rebuilt(gymnasium.Env):
        action_space = gymnasium.spaces.Box(-1, 1, (1,))
        frame_skip = 2

        def reset(self):
            self.model = copy.deepcopy(slider)
            self.data = mujoco.MjData(self.model)

    env = Rebuilt()
    env.reset()
    dynamics = MuJoCoDynamics.from_env(env, reward=speed)
    dynamics.state()
    env.reset()
    with pytest.raises(ValueError, match=r"environment 0 has made a new model; call MuJoCoDynamics.from_env again"):
        dynamics.state()


def test_a_wrapper_that_changes_actions_is_refused():
    env = gymnasium.wrappers.RescaleAction(gymnasium.make("InvertedPendulum-v5"), np.float32([-1.0]), np.float32([1.0]))
    with pytest.raises(ValueError, match=r"env must hand its actions to the simulation unchanged.*to_ctrl"):
        MuJoCoDynamics.from_env(env, reward=speed)
    env.close()


def test_environments_that_do_not_go_together_are_refused(make):
    walk, stand = make("dmc:walker-walk"), make("dmc:walker-stand")
    with pytest.raises(ValueError, match=r"env must be environments of one task, got .*speed=1.*speed=0"):
        MuJoCoDynamics.from_env([walk, stand])
    with pytest.raises(ValueError, match="got an empty list"):
        MuJoCoDynamics.from_env([])
    with pytest.raises(TypeError, match=r"env must simulate with MuJoCo.*got PendulumEnv; use EnvDynamics"):
        MuJoCoDynamics.from_env(make("gym:Pendulum-v1"), reward=speed)
    with pytest.raises(ValueError, match=r"reward must be given for gymnasium.*HalfCheetahEnv: a function"):
        MuJoCoDynamics.from_env(make("gym:HalfCheetah-v5"))
    lagging = make("dmc:cartpole-swingup")
    lagging.unwrapped.physics.legacy_step = False
    with pytest.raises(ValueError, match="legacy_step=True"):
        MuJoCoDynamics.from_env(lagging)


def test_settings_out_of_their_range_are_refused(slider):
    for wrong, message in [
        ({"steps_per_action": 0}, "steps_per_action must be a whole number of at least 1, got 0"),
        ({"action_repeat": 1.5}, "action_repeat must be a whole number of at least 1, got 1.5"),
        ({"num_threads": 0}, "num_threads must be a whole number of at least 1, got 0"),
        ({"discount": 0.0}, r"discount must be in \(0, 1\], got 0.0"),
        ({"data": []}, "data must be one for each of the 1 models, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            MuJoCoDynamics(slider, speed, **{"steps_per_action": 1, **wrong})
    other = mujoco.MjModel.from_xml_string("<mujoco><worldbody/></mujoco>")
    with pytest.raises(ValueError, match="models must be one or more of the same sizes"):
        MuJoCoDynamics([slider, other], speed, steps_per_action=1)


def test_arguments_that_do_not_fit_are_refused_by_name(make, slider):
    env = make("dmc:cheetah-run")
    env.reset(seed=0)
    dynamics = MuJoCoDynamics.from_env(env)
    state, actions = dynamics.state(), torch.zeros(2, 1, 3, 6)
    with pytest.raises(ValueError, match=r"actions must be \[H, B, J, A\], got \[2, 1, 6\]"):
        dynamics.rollout(state, actions[:, :, 0])
    with pytest.raises(ValueError, match=r"state.physics must be \[B, N\] with B=2, N=19"):
        dynamics.rollout(state, actions.expand(2, 2, 3, 6))
    with pytest.raises(ValueError, match=r"actions must be within \[-1, 1\], got one of size 1.5; plan in the box"):
        dynamics.rollout(state, actions - 1.5)
    for wrong in (1, 4):  # one would broadcast
        with pytest.raises(ValueError, match=r"actions must end in A=6 \(the environment's\), got"):
            dynamics.rollout(state, actions[..., :wrong])
    plain = MuJoCoDynamics(slider, lambda moments: moments.qpos, steps_per_action=1)
    with pytest.raises(ValueError, match=r"state\(\) needs data=\[...\]"):
        plain.state()
    plain = MuJoCoDynamics(slider, lambda moments: moments.qpos, steps_per_action=1, data=[mujoco.MjData(slider)])
    with pytest.raises(ValueError, match=r"reward must return \[N\] with N=2, one value per moment, got \[2, 1\]"):
        plain.rollout(plain.state(), torch.zeros(2, 1, 1, 1))
    with pytest.raises(
        ValueError, match=r"actions must become controls \[..., 1\] \(the model's nu\), got \[2, 1, 3\]"
    ):
        plain.rollout(plain.state(), torch.zeros(2, 1, 1, 3))


def test_a_missing_mujoco_is_named_with_the_remedy(slider, monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ImportError, match=r'MuJoCoDynamics needs mujoco: pip install "planet-worldmodel\[dmc\]"'):
        MuJoCoDynamics(slider, speed, steps_per_action=1)


def test_a_start_that_mujoco_would_reset_is_worth_nothing_and_no_other_row_notices(slider, tmp_path):
    dynamics = MuJoCoDynamics(slider, speed, steps_per_action=1, data=[mujoco.MjData(slider)])
    state = MuJoCoState(*(part.repeat(4, *[1] * (part.ndim - 1)) for part in dynamics.state()))
    state.physics[1, 1], state.physics[2, 2] = float("nan"), 1e11
    state.warmstart[3, 0] = float("inf")
    returns = dynamics.rollout(state, torch.ones(2, 4, 3, 1))
    assert returns.isnan().all(1).tolist() == [False, True, True, True]
    assert not (tmp_path / "MUJOCO_LOG.TXT").exists()


def test_what_is_no_place_in_the_list_of_models_is_named(slider):
    dynamics = MuJoCoDynamics(slider, speed, steps_per_action=1, data=[mujoco.MjData(slider)])
    state, actions = dynamics.state(), torch.zeros(1, 1, 1, 1)
    for wrong in (-1, 1):  # the first would be the last model
        message = rf"state.model must be at least 0 and less than 1 \(the number of models\), got {wrong}"
        with pytest.raises(ValueError, match=message):
            dynamics.rollout(state._replace(model=torch.tensor([wrong])), actions)
    with pytest.raises(TypeError, match=r"state.model must be whole numbers, got torch.float32"):
        dynamics.rollout(state._replace(model=torch.zeros(1)), actions)
    with pytest.raises(TypeError, match=r"state must be a MuJoCoState, what state.. returns, got tuple"):
        dynamics.rollout(tuple(state), actions)


def test_data_of_another_model_is_refused_before_it_is_read(slider):
    other = mujoco.MjData(mujoco.MjModel.from_xml_string("<mujoco><worldbody/></mujoco>"))
    with pytest.raises(ValueError, match="data must be made of models of the same sizes as the models, got one of"):
        MuJoCoDynamics(slider, speed, steps_per_action=1, data=[other])
    for wrong in (mujoco.MjData(slider), ["data"]):
        with pytest.raises(TypeError, match=r"data must be a list of mujoco.MjData, got"):
            MuJoCoDynamics(slider, speed, steps_per_action=1, data=wrong)
    with pytest.raises(TypeError, match=r"models must be a mujoco.MjModel, or a list of such, got 'slider'"):
        MuJoCoDynamics("slider", speed, steps_per_action=1)

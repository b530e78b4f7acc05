"""Plan with dynamics of your own: a formula, and a step with a reward. Exits with 1 where the optimum is not reached.

python examples/plan_custom_dynamics.py
"""

import sys

import torch
from torch import Tensor

from planet_lib.planning import CEMPlanner, Dynamics, FunctionDynamics, StepDynamics
from planet_lib.testing import check_dynamics

HORIZON = 10
TOLERANCE = 0.02  # of the best return


def reach(x: Tensor, actions: Tensor) -> Tensor:
    """Return what moving x [B] by all actions [H, B, J, 1] is worth [B, J]: end near 1, with little effort."""
    effort = actions.square().sum((0, 3))
    return -(x[:, None] + actions.sum((0, 3)) - 1).square() - effort


def push(crane: Tensor, action: Tensor) -> Tensor:
    """Push N cranes: place and speed of the trolley, angle of its load and how fast that changes [N, 4]."""
    place, speed, angle, turn = crane.unbind(-1)
    speed, turn = speed + 0.5 * action[:, 0], turn - 0.5 * action[:, 0] - 0.3 * angle
    return torch.stack([place + 0.5 * speed, speed, angle + 0.5 * turn, turn], -1)


def calm(crane: Tensor, action: Tensor) -> Tensor:
    """Return what that earned [N]: the trolley belongs at place 0, and its load must not swing."""
    return -crane[:, 0].square() - 3 * crane[:, 2].square() - 0.3 * action[:, 0].square()


def best_return(dynamics: Dynamics, state: Tensor) -> Tensor:
    """Return the most there is: quadratic in the actions, as it is here, so one step of Newton's method finds it."""

    def worth(actions: Tensor) -> Tensor:
        return dynamics.rollout(state, actions.reshape(HORIZON, 1, 1, 1)).sum()

    start, slope = torch.zeros(HORIZON), torch.func.jacrev(worth)
    return worth(-torch.linalg.solve(torch.func.jacrev(slope)(start), slope(start)))


if __name__ == "__main__":
    torch.manual_seed(0)
    good, cranes = True, torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.25, -0.25, 0.0]])
    for dynamics, state in ((FunctionDynamics(reach), torch.tensor([0.0, 3.0])), (StepDynamics(push, calm), cranes)):
        check_dynamics(dynamics, state, action_dim=1)  # or a ContractError says what to mend
        planner = CEMPlanner(
            dynamics, -1.0, 1.0, action_dim=1, horizon=HORIZON, num_elites=50, num_iterations=20, momentum=0.3
        )
        plan = planner(state)  # for all rows at once
        for row, planned in zip(state, dynamics.rollout(state, plan.mean.unsqueeze(2)), strict=True):
            best = best_return(dynamics, row.unsqueeze(0))
            good &= bool(planned >= best - TOLERANCE * best.abs())
            print(f"{type(dynamics).__name__} from {row.tolist()}: planned {float(planned):.4f}, best {best:.4f}")
    sys.exit(0 if good else 1)

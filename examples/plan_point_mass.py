"""The planner alone: bring a point mass to rest at the origin, and compare with the best there is.

    python examples/plan_point_mass.py

No model, no learning. The dynamics are a class of a few lines, and the best possible return is known from the Riccati
equation, so this shows what `CEMPlanner` needs, and that what it finds is right. Exits with 1 where it is not.
"""

import sys

import torch
from torch import Tensor

from planet_lib.planning import CEMPlanner

TOLERANCE = 0.02  # of the best return
STEPS = 20
DT = 0.25  # seconds per step
TRANSITION = torch.tensor([[1.0, DT], [0.0, 1.0]])  # of state [position, velocity]
CONTROL = torch.tensor([DT**2 / 2, DT])
STATE_COST = torch.tensor([1.0, 0.5])
ACTION_COST = 1.0


def move(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Advance states [..., 2] by actions [..., 1]; return the new states and the rewards [...]."""
    state = state @ TRANSITION.T + action * CONTROL
    return state, -(state.square() @ STATE_COST) - ACTION_COST * action.square().sum(-1)


class PointMass:
    """All a planner asks for: what would these actions earn, from this state?"""

    def rollout(self, state: Tensor, actions: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return [B, J] from state [B, 2] and actions [H, B, J, 1]."""
        states = state.unsqueeze(1)
        total = torch.zeros(())
        for action in actions:
            states, reward = move(states, action)
            total = total + reward
        return total


def best_return(state: Tensor) -> float:
    """Return what the optimal actions earn in STEPS steps, by the Riccati recursion: -state' (P - Q) state."""
    cost = q = torch.diag(STATE_COST)
    for _ in range(STEPS):
        coupling = CONTROL @ cost @ TRANSITION
        cost = (
            q
            + TRANSITION.T @ cost @ TRANSITION
            - torch.outer(coupling, coupling) / (ACTION_COST + CONTROL @ cost @ CONTROL)
        )
    return -float(state @ (cost - q) @ state)


def main() -> int:
    """Plan, execute the first action, and plan anew, as an agent does; then compare."""
    torch.manual_seed(0)
    planner = CEMPlanner(PointMass(), [-1.0], [1.0], horizon=STEPS, num_candidates=500, num_elites=50)
    state = start = torch.tensor([1.0, 0.0])
    total = 0.0
    print("step  position  velocity  action   reward  predicted return")
    for t in range(STEPS):
        plan = planner(state.unsqueeze(0))
        state, reward = move(state, plan.action[0])
        total += float(reward)
        print(
            f"{t:4d}  {state[0]:8.3f}  {state[1]:8.3f}  {float(plan.action):6.3f}  {float(reward):7.3f}"
            f"  {float(plan.value):16.3f}"
        )
    best = best_return(start)
    gap = (best - total) / abs(best)
    print(f"planned return {total:.4f}, best return {best:.4f}: {gap:.2%} short, {TOLERANCE:.0%} allowed")
    return 0 if -1e-4 <= gap <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())

"""Plan in a Python environment of your own: buy power when it is cheap. Exits with 1 where the optimum is not reached.

python examples/plan_custom_env.py
"""

import sys
from itertools import product
from typing import Any

import torch

from planet_lib.planning import CEMPlanner, EnvDynamics

PRICES = (3.0, 1.0, 2.0, 6.0, 4.0, 2.0, 5.0, 7.0)  # of one unit, hour by hour
CAPACITY = 2.0
TOLERANCE = 0.02  # of the best return


class Battery:
    """Gymnasium's `reset` and `step`, no more. The action in [-1, 1] sells or buys up to a unit; the reward is cash."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[float, dict[str, Any]]:
        self.hour, self.level = 0, 0.0
        return self.level, {}

    def step(self, action: Any) -> tuple[float, float, bool, bool, dict[str, Any]]:
        amount = min(max(float(action[0]), -1.0, -self.level), 1.0, CAPACITY - self.level)
        reward = -PRICES[self.hour] * amount
        self.hour, self.level = self.hour + 1, self.level + amount
        return self.level, reward, self.hour == len(PRICES), False, {}


def put(env: Battery, saved: tuple[int, float]) -> None:
    env.hour, env.level = saved


if __name__ == "__main__":
    torch.manual_seed(0)
    env, total, done, plan = Battery(), 0.0, False, None
    env.reset()
    dynamics = EnvDynamics(env, get_state=lambda env: (env.hour, env.level), set_state=put)  # without: deep copies
    planner = CEMPlanner(dynamics, -1.0, 1.0, action_dim=1, horizon=8, num_candidates=200, num_elites=20)
    # Capacity and rate are whole numbers, so the best is among buying, waiting and selling a whole unit, hour by hour.
    every = torch.tensor(list(product((-1.0, 0.0, 1.0), repeat=8))).T.reshape(8, 1, -1, 1)
    best = float(dynamics.rollout(dynamics.state(), every).max())
    while not done:
        plan = planner(dynamics.state(), previous=plan)  # anew each hour, starting from the plan of the hour before
        level, reward, done = env.step(plan.action[0])[:3]
        total += reward
        print(
            f"price {PRICES[env.hour - 1]:.0f}: action {float(plan.action):5.2f}, level {level:.2f}, sum {total:5.2f}"
        )
    print(f"earned {total:.2f}, best of {every.shape[2]} ways {best:.2f}")
    sys.exit(0 if total >= best * (1 - TOLERANCE) else 1)

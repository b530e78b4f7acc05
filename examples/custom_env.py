"""Train an agent on an environment of your own, from pixels; exits with 1 where it stays too far from the optimum.

    python examples/custom_env.py             # a minute or two on a CPU

The environment is a page of Gymnasium. All else is what works for any other: see examples/train_planet.py.
"""

import argparse
import dataclasses
import sys
from typing import Any

import gymnasium
import numpy as np
import torch

import planet_lib as pl
from planet_lib.data import random_policy, run_episode
from planet_lib.envs import make_env
from planet_lib.training import update
from planet_lib.training.presets import PRESETS, build_agent, build_model, build_objective

SIZE, LENGTH, SPEED, TARGET = 32, 15, 0.15, np.array([0.7, 0.3])
WANTED = 0.9  # of the way from random actions to the optimum


class Steer(gymnasium.Env[Any, Any]):
    """Steer the red spot onto the green one: the action is its velocity, the reward minus the distance |dy| + |dx|."""

    observation_space = gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start anywhere."""
        super().reset(seed=seed)
        self.steps, self.place = 0, self.np_random.uniform(0.0, 1.0, 2)
        return self.draw(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move, and pay for the distance that is left."""
        self.steps, self.place = self.steps + 1, np.clip(self.place + SPEED * action, 0.0, 1.0)
        reward = -float(np.abs(self.place - TARGET).sum())
        return self.draw(), reward, False, self.steps == LENGTH, {}

    def draw(self) -> Any:
        """Return the picture [Y, X, C]: a spot in each of two colours."""
        image, centres = np.zeros((SIZE, SIZE, 3)), (np.arange(SIZE) + 0.5) / SIZE
        for colour, place in enumerate((self.place, TARGET)):
            rows, columns = np.exp(-50.0 * (centres - place[:, None]) ** 2)
            image[..., colour] = 255 * np.outer(rows, columns)
        return image.astype(np.uint8)

    def best_return(self) -> float:
        """From here: both coordinates go at full speed, and stop on the target."""
        left = np.abs(self.place - TARGET) - SPEED * np.arange(1, LENGTH + 1)[:, None]
        return -float(np.maximum(left, 0.0).sum())


def main() -> int:
    """Learn in turn with acting, then compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="of 60 updates and an episode each")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    args = parser.parse_args()
    torch.set_num_threads(1)  # networks this small gain nothing from more, and lose much on a busy machine
    torch.manual_seed(args.seed)
    generator = np.random.default_rng(args.seed)
    sizes: dict[str, Any] = {
        "image_size": SIZE,
        "deter_dim": 64,
        "hidden_dim": 64,
        "embed_dim": 64,
        "stoch_dim": 8,
        "depth": 32,
    }
    # The reward is dense, so three steps ahead are enough, and a plan of six numbers is found precisely.
    planner: dict[str, Any] = {"horizon": 3, "num_candidates": 100, "num_elites": 10, "num_iterations": 5}
    preset = dataclasses.replace(PRESETS["cpu"], **sizes, **planner, reward_scale=100.0, batch_size=16, window=10)

    env = make_env(Steer, image_size=(SIZE, SIZE))
    steer: Any = env.unwrapped
    replay = pl.SequenceReplay(10_000, obs_shape=(3, SIZE, SIZE), action_dim=2, seed=args.seed)
    model = build_model(preset, "rssm", (3, SIZE, SIZE), 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=preset.learning_rate, eps=preset.adam_eps, fused=True)
    objective, agent = build_objective(preset), build_agent(preset, model)
    for number in range(50):
        replay.add(run_episode(env, random_policy(2, generator), seed=1000 * args.seed + number))
    for number in range(50, 50 + args.rounds):
        for _ in range(60):
            batch = replay.sample(preset.batch_size, preset.window)
            result = update(model, optimizer, batch, objective, grad_clip=preset.grad_clip)
        episode = run_episode(env, agent.policy(explore=True), seed=1000 * args.seed + number)
        replay.add(episode)
        losses = ", ".join(f"{name} {float(value):.4f}" for name, value in result.losses.raw.items())
        print(f"episode {number + 1}: return {episode.reward.sum():.2f}; {losses}", flush=True)

    seeds = range(10**6, 10**6 + 20)  # new starts, the same for all three
    returns = {
        name: np.mean([run_episode(env, policy, seed=seed).reward.sum() for seed in seeds])
        for name, policy in {"random": random_policy(2, generator), "agent": agent.policy(explore=False)}.items()
    }
    best = np.mean([env.reset(seed=seed) and steer.best_return() for seed in seeds])
    share = (returns["agent"] - returns["random"]) / (best - returns["random"])
    print(f"random {returns['random']:.2f}, agent {returns['agent']:.2f}, optimum {best:.2f}: {share:.1%} of the way")
    return 0 if share >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())

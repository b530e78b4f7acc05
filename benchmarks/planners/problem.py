"""One thing to plan for: sizes, weights, start state, our planners over it, and the ceiling."""

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor

import planet_lib as pl
from planet_lib.planning import CEMPlanner, LatentDynamics

# The paper's (arXiv:1811.04551, appendix A), with six actions as cheetah has.
SIZES = {"horizon": 12, "num_iterations": 10, "num_candidates": 1000, "num_elites": 100}
SIZES |= {"action_dim": 6, "deter_dim": 200, "stoch_dim": 30, "hidden_dim": 200}
QUICK = {"horizon": 3, "num_iterations": 2, "num_candidates": 16, "num_elites": 4}
QUICK |= {"action_dim": 2, "deter_dim": 10, "stoch_dim": 3, "hidden_dim": 10}


class Problem:
    """The same model and state every time: recurrent state-space model, reward head of two hidden layers, B states."""

    def __init__(self, args: Namespace, batch_size: int) -> None:
        torch.manual_seed(0)
        self.args, self.batch_size, self.device = args, batch_size, torch.device(args.device)
        sizes = {"deter_dim": args.deter_dim, "stoch_dim": args.stoch_dim, "hidden_dim": args.hidden_dim}
        self.cell = pl.RSSMCell(args.action_dim, 1, **sizes)
        self.head = pl.RewardHead(self.cell.feature_dim, hidden_dim=args.hidden_dim)
        encoder, decoder = pl.VectorEncoder(1, embed_dim=1), pl.Decoder(self.cell.feature_dim, (1,))
        self.model = pl.WorldModel(encoder, self.cell, decoder, self.head).to(self.device)
        deter, stoch = (torch.randn(batch_size, dim).to(self.device) for dim in (args.deter_dim, args.stoch_dim))
        self.state = pl.State(deter.tanh(), stoch, stoch, torch.ones_like(stoch))
        self.dynamics = LatentDynamics(self.model)

    def planner(self) -> CEMPlanner:
        """Ours, with the sizes of the problem."""
        names = ("action_dim", "horizon", "num_iterations", "num_candidates", "num_elites")
        return CEMPlanner(self.dynamics, -1.0, 1.0, **{name: getattr(self.args, name) for name in names})

    def weights(self) -> dict[str, Tensor]:
        """What the others are given: `cell.` and `reward.` with our names."""
        parts: dict[str, Any] = {"cell": self.cell, "reward": self.head}
        return {f"{part}.{name}": value for part in parts for name, value in parts[part].state_dict().items()}

    def noise(self) -> tuple[Tensor, Tensor]:
        """Candidates' noise [H, B, J, A] and dynamics' noise [H, B, J, S] of one iteration, for comparisons."""
        size = (self.args.horizon, self.batch_size, self.args.num_candidates)
        draws = (torch.randn(*size, dim) for dim in (self.args.action_dim, self.args.stoch_dim))
        candidates, dynamics = (draw.to(self.device) for draw in draws)
        return candidates, dynamics

    def returns(self, candidates: Tensor, dynamics: Tensor) -> Tensor:
        """What the candidates of the first iteration are worth by our dynamics [B, J]."""
        return self.dynamics.rollout(self.state, candidates.clamp(-1.0, 1.0), noise=dynamics)


class Ceiling:
    """The plan's matrix products alone: those of one step with B * J rows, H * I times.

    No bias, activation, noise, ranking or allocation: `torch.mm` into outputs that are there already.
    """

    def __init__(self, problem: Problem) -> None:
        weights = [value for name, value in problem.weights().items() if value.ndim == 2 and "posterior" not in name]
        rows = problem.batch_size * problem.args.num_candidates
        inputs = {size: torch.randn(rows, size, device=problem.device) for size in {each.shape[1] for each in weights}}
        self.repeats: int = problem.args.horizon * problem.args.num_iterations
        self.products = [(inputs[w.shape[1]], w.t(), w.new_empty(rows, w.shape[0])) for w in weights]

    @property
    def operations(self) -> int:
        """Floating-point multiplications and additions of one plan."""
        return 2 * self.repeats * sum(left.numel() * right.shape[1] for left, right, _ in self.products)

    def __call__(self) -> None:
        """Compute all of them once."""
        for _ in range(self.repeats):
            for left, right, out in self.products:
                torch.mm(left, right, out=out)

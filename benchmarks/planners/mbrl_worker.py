"""mbrl-lib's cross-entropy method over the same model, run by mbrl-lib's own Python: `python -m planners.mbrl_worker`.

Its `TrajectoryOptimizer` plans for one state; B > 1 is a loop. Settings nearest to ours: samples clipped to the bounds,
no momentum, the elites' mean returned, nothing kept between plans. Its standard deviation is the unbiased one. The
model stands here in plain torch, as the function that evaluates trajectories, since planet_lib isn't installed there.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from mbrl.planning import TrajectoryOptimizer
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.functional import linear, softplus

from planners.measure import Watch, seconds, usage


class Worker:
    """The planner, and the answers to what may be asked."""

    def __init__(self, path: str) -> None:
        self.path, problem = path, torch.load(path, weights_only=True)
        self.args, self.weights = problem["args"], problem["weights"]
        self.device = torch.device(self.args["device"])
        torch.set_num_threads(self.args["threads"])
        self.states = list(zip(problem["deter"], problem["stoch"], strict=True))
        size, num_elites = self.args["num_candidates"], self.args["num_elites"]
        bound = np.ones(self.args["action_dim"], np.float32)
        settings = {
            "_target_": "mbrl.planning.CEMOptimizer",
            "num_iterations": self.args["num_iterations"],
            "elite_ratio": (num_elites - 0.5) / size,  # it rounds up
            "population_size": size,
            "alpha": 0.0,
            "device": self.args["device"],
            "lower_bound": "???",
            "upper_bound": "???",
            "return_mean_elites": True,
            "clipped_normal": True,
        }
        config = DictConfig(settings)
        self.planner = TrajectoryOptimizer(config, -bound, bound, self.args["horizon"], keep_last_solution=False)

    def layer(self, name: str, inputs: Tensor) -> Tensor:
        """One linear layer."""
        return linear(inputs, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def evaluate(self, deter: Tensor, stoch: Tensor, actions: Tensor) -> Tensor:
        """What sequences [J, H, A] earn from one state [J]."""
        deter, stoch = (value.expand(len(actions), -1) for value in (deter, stoch))
        gru = [self.weights[f"cell.path.gru.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        total = actions.new_zeros(len(actions))
        for action in actions.unbind(1):
            hidden = self.layer("cell.path.layers.0", torch.cat([stoch, action], -1)).relu()
            deter = torch.gru_cell(hidden, deter, *gru)
            hidden = self.layer("cell.prior_head.layers.0", deter).relu()
            mean, raw = self.layer("cell.prior_head.out", hidden).chunk(2, -1)
            stoch = mean + (softplus(raw) + 0.1) * torch.randn_like(mean)
            hidden = torch.cat([deter, stoch], -1)
            for number in range(2):
                hidden = self.layer(f"reward.layers.{number}", hidden).relu()
            total = total + self.layer("reward.layers.2", hidden).squeeze(-1)
        return total

    def plan(self) -> None:
        """One plan for every state, one after the other."""
        for deter, stoch in self.states:
            self.planner.optimize(partial(self.evaluate, deter, stoch))

    def returns(self) -> list[list[float]]:
        """What the candidates of the first iteration are worth, with given noise."""
        noise = torch.load(self.path, weights_only=True)
        found = []
        for row, (deter, stoch) in enumerate(self.states):
            draws = [noise["candidates"][:, row].transpose(0, 1), *noise["dynamics"][:, row]]
            with Watch(draws) as watch:
                self.planner.optimize(partial(self.evaluate, deter, stoch))
            found.append(watch.scores[0].tolist())
        return found

    def answer(self, question: str) -> Any:
        """One answer, ready for JSON."""
        answers: dict[str, Callable[[], Any]] = {
            "version": lambda: version("mbrl"),
            "returns": self.returns,
            "seconds": lambda: seconds(self.plan, self.device),
            "usage": lambda: usage(self.plan, self.device),
        }
        return answers[question]()


def main() -> None:
    """Answer line by line; whatever a library prints goes elsewhere."""
    answers, sys.stdout = sys.stdout, sys.stderr
    worker = Worker(sys.argv[1])
    with torch.no_grad():
        for question in sys.stdin:
            print(json.dumps(worker.answer(question.strip())), file=answers, flush=True)


if __name__ == "__main__":
    main()

"""The planners that take turns, each planning for the same problem with the same weights.

Each is used as its own project ships it, with the settings that come nearest to ours: as many rollouts of as many
steps, actions in [-1, 1], every plan begun anew. What differs is said where it is built.
"""

import importlib
import json
import runpy
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import planet_lib as pl
from planet_lib.models.kaixhin import rename_kaixhin
from planet_lib.planning import CEMPlanner
from planners.measure import Watch, seconds, usage
from planners.problem import Ceiling, Problem


class Planner(NamedTuple):
    """One planner over one problem.

    plan: one plan, to the action [B, A]. returns: what it makes of one iteration's noise, candidates' [H, B, J, A] and
    dynamics' [H, B, J, S]: the worth of each candidate [B, J], or for ours the plan's value [B]. is_compiled: whether
    `torch.compile` made part of it. shares_candidates: whether all rows of the batch try the same ones. about: has
    `mode` and `reason` once it has planned, where there is more than one way to run it.
    """

    device: torch.device
    plan: Callable[[], Any]
    returns: Callable[[Tensor, Tensor], Tensor]
    is_compiled: bool = False
    shares_candidates: bool = False
    about: Any = None

    def seconds(self) -> float:
        """How long one plan takes."""
        return seconds(self.plan, self.device)

    def usage(self) -> dict[str, Any]:
        """What one plan takes besides; see `planners.measure.usage`."""
        found = usage(self.plan, self.device, is_compiled=self.is_compiled)
        return found if self.about is None else {**found, "mode": self.about.mode, "reason": self.about.reason}

    def close(self) -> None:
        """Nothing to end."""


def _ranked(plan: Callable[[], Any], axes: Sequence[int], candidates: Tensor, dynamics: Tensor) -> Tensor:
    """What a planner ranks by `topk` in its first iteration; `axes` are those of the noise that it draws."""
    with Watch([candidates.permute(*axes), *dynamics.flatten(1, 2)]) as watch:
        plan()
    scores: Tensor = watch.scores[0].reshape(candidates.shape[1:3])
    return scores


def ours(problem: Problem, *, wrap: Callable[[CEMPlanner], Any] | None = None) -> Planner:
    """`CEMPlanner` over `LatentDynamics`, as it is or wrapped."""
    planner: Any = problem.planner() if wrap is None else wrap(problem.planner())
    about = None if wrap is None else planner

    def value(candidates: Tensor, dynamics: Tensor) -> Tensor:
        found: Tensor = planner(problem.state, noise=candidates[None], dynamics_noise=dynamics[None]).value
        return found

    return Planner(problem.device, lambda: planner(problem.state), value, wrap is not None, about=about)


def ceiling(problem: Problem) -> Planner:
    """The plan's matrix products alone, which rank nothing."""
    return Planner(problem.device, Ceiling(problem), lambda candidates, dynamics: candidates.new_zeros(0))


def kaixhin(problem: Problem, checkout: Path) -> Planner:
    """Kaixhin/PlaNet: TorchScript, batched over rows."""
    args, port = problem.args, runpy.run_path(str(checkout / "models.py"))
    sizes = (args.deter_dim, args.stoch_dim)
    transition = port["TransitionModel"](*sizes, args.action_dim, args.hidden_dim, 1).to(problem.device)
    reward = port["RewardModel"](*sizes, args.hidden_dim).to(problem.device)
    parts = {"cell": ("transition_model", transition), "reward": ("reward_model", reward)}
    given = problem.weights()
    for part, (their_name, module) in parts.items():
        for name, value in rename_kaixhin(their_name, module.state_dict()).items():
            value.copy_(given[f"{part}.{name}"])
    counts = (args.action_dim, args.horizon, args.num_iterations, args.num_candidates, args.num_elites)
    planner_class = runpy.run_path(str(checkout / "planner.py"))["MPCPlanner"]
    planner = planner_class(*counts, transition, reward, -1.0, 1.0)

    def plan() -> Any:
        return planner(problem.state.deter, problem.state.stoch)

    return Planner(problem.device, plan, partial(_ranked, plan, (0, 1, 2, 3)))


class _Rows(nn.Module):
    """TorchRL's `RSSMPrior` on any leading axes; its GRU cell takes [N, ...] alone."""

    def __init__(self, prior: nn.Module) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, state: Tensor, belief: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next state and belief."""
        _, _, following, deter = self.prior(*(value.flatten(0, -2) for value in (state, belief, action)))
        return following.unflatten(0, state.shape[:-1]), deter.unflatten(0, state.shape[:-1])


def torchrl(problem: Problem) -> Planner:
    """TorchRL: its `CEMPlanner` over its `DreamerEnv` of its `RSSMPrior` and its `MLP`, with our weights.

    Its RSSMPrior has ELUs and max(softplus, 0.1) where the model has ReLUs and softplus + 0.1; these modules are put in
    their place. Its standard deviation is the unbiased one.
    """
    args, device = problem.args, problem.device
    modules, data = importlib.import_module("torchrl.modules"), importlib.import_module("torchrl.data")
    envs, tensordict = (
        importlib.import_module("torchrl.envs.model_based.dreamer"),
        importlib.import_module("tensordict"),
    )
    add_to = importlib.import_module("tensordict.nn")
    add_to.add_custom_mapping("softplus_and_a_tenth", _softplus_and_a_tenth)
    actions = data.Bounded(-1.0, 1.0, (args.action_dim,), device=device)
    sizes = {"hidden_dim": args.hidden_dim, "rnn_hidden_dim": args.deter_dim, "state_dim": args.stoch_dim}
    prior = modules.RSSMPrior(actions, **sizes, action_dim=args.action_dim)
    prior.action_state_projector[1] = prior.rnn_to_prior_projector[1] = nn.ReLU()
    prior.rnn_to_prior_projector[3] = add_to.NormalParamExtractor("softplus_and_a_tenth")
    features = problem.cell.feature_dim
    reward = modules.MLP(features, 1, depth=2, num_cells=args.hidden_dim, activation_class=nn.ReLU)
    linear = [module for module in reward if isinstance(module, nn.Linear)]
    pairs = {"cell.path.layers.0": prior.action_state_projector[0], "cell.path.gru": prior.rnn}
    pairs |= {"cell.prior_head.layers.0": prior.rnn_to_prior_projector[0]}
    pairs |= {"cell.prior_head.out": prior.rnn_to_prior_projector[2]}
    pairs |= {f"reward.layers.{number}": layer for number, layer in enumerate(linear)}
    given = problem.weights()
    for ours, module in pairs.items():
        module.load_state_dict({name: given[f"{ours}.{name}"] for name in module.state_dict()})
    world = modules.WorldModelWrapper(
        add_to.TensorDictModule(_Rows(prior), in_keys=["state", "belief", "action"], out_keys=["state", "belief"]),
        add_to.TensorDictModule(reward, in_keys=["belief", "state"], out_keys=["reward"]),
    )
    env = envs.DreamerEnv(world.to(device), (args.stoch_dim,), (args.deter_dim,), device=device)
    shapes = {"state": data.Unbounded((args.stoch_dim,)), "belief": data.Unbounded((args.deter_dim,))}
    env.observation_spec, env.state_spec = (data.Composite(**shapes, device=device) for _ in range(2))
    env.action_spec, env.reward_spec = actions, data.Unbounded((1,), device=device)
    planner = modules.CEMPlanner(env, args.horizon, args.num_iterations, args.num_candidates, args.num_elites)
    start = {"state": problem.state.stoch, "belief": problem.state.deter}

    def plan() -> Tensor:
        action: Tensor = planner(tensordict.TensorDict(start, [problem.batch_size], device=device))["action"]
        return action

    return Planner(device, plan, partial(_ranked, plan, (1, 2, 0, 3)))


def _softplus_and_a_tenth(raw: Tensor) -> Tensor:
    return nn.functional.softplus(raw) + 0.1


def pytorch_mppi(problem: Problem, *, is_compiled: bool = False) -> Planner:
    """pytorch-mppi, the optimiser alone: our cell and reward head as its dynamics and cost.

    `MPPI` for one row, `MPPI_Batched` for more, where all rows try the same perturbations. One plan is a reset and as
    many commands as the others have iterations, with as many samples as they have candidates, of unit deviation.
    `is_compiled` calls its own `compile`, which compiles dynamics and cost.
    """
    args, device, module = problem.args, problem.device, importlib.import_module("pytorch_mppi.mppi")
    deter_dim = args.deter_dim

    def dynamics(state: Tensor, action: Tensor) -> Tensor:
        deter, stoch = state[:, :deter_dim], state[:, deter_dim:]
        return problem.cell.features(problem.cell.prior(pl.State(deter, stoch, stoch, stoch), action))

    def cost(state: Tensor, action: Tensor) -> Tensor:
        reward: Tensor = problem.head(state)
        return -reward

    start = problem.cell.features(problem.state)
    settings = {"num_samples": args.num_candidates, "horizon": args.horizon, "device": device}
    settings |= {"u_min": -torch.ones(args.action_dim), "u_max": torch.ones(args.action_dim)}
    what = (dynamics, cost, start.shape[1], torch.eye(args.action_dim))
    if problem.batch_size == 1:
        planner, start = module.MPPI(*what, **settings), start[0]
    else:
        planner = module.MPPI_Batched(*what, num_envs=problem.batch_size, **settings)
    if is_compiled:
        planner.compile(dynamic=False)

    def plan() -> Tensor:
        planner.reset()
        for _ in range(args.num_iterations):
            action: Tensor = planner.command(start, shift_nominal_trajectory=False)
        return action

    def returns(candidates: Tensor, dynamics: Tensor) -> Tensor:
        draws = [torch.zeros_like(planner.U), candidates[:, 0].transpose(0, 1), *dynamics.flatten(1, 2)]
        with Watch(draws, [torch.ops.aten.min.default, torch.ops.aten.min.dim]) as watch:  # costs, lowest is best
            plan()
        costs: Tensor = watch.scores[0].reshape(candidates.shape[1:3])
        return -costs

    return Planner(device, plan, returns, is_compiled, shares_candidates=True)


class MbrlWorker:
    """mbrl-lib in a process of its own, since it pins an old Gymnasium; it answers questions over a pipe."""

    def __init__(self, problem: Problem, python: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "problem.pt"
        sizes = {name: value for name, value in vars(problem.args).items() if isinstance(value, int)}
        given = {"deter": problem.state.deter, "stoch": problem.state.stoch, "weights": problem.weights()}
        torch.save({**given, "args": {**sizes, "device": str(problem.device)}}, path)
        command = [python, "-m", "planners.mbrl_worker", str(path)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
        )
        self.path = path
        self.version: str = self.ask("version")

    def ask(self, question: str) -> Any:
        """Return the answer, or raise where the process has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(question + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self.process.stdout.readline()
        if not answer:
            self.close()
            raise RuntimeError(f"mbrl-lib's process ended with {self.process.returncode}; its error stands above")
        return json.loads(answer)

    def returns(self, candidates: Tensor, dynamics: Tensor) -> Tensor:
        """As `Planner.returns`."""
        torch.save({"candidates": candidates, "dynamics": dynamics}, self.path)
        return torch.tensor(self.ask("returns"), device=candidates.device)

    def seconds(self) -> float:
        """How long one plan takes, by its own clock."""
        return float(self.ask("seconds"))

    def usage(self) -> dict[str, Any]:
        """As `Planner.usage`."""
        found: dict[str, Any] = self.ask("usage")
        return found

    def close(self) -> None:
        """End the process."""
        self.process.communicate()
        self.folder.cleanup()

"""How fast and how large are `observe` and `latent_overshooting`, next to Kaixhin/PlaNet in the same run?

    python benchmarks/world_model.py --kaixhin ../PlaNet --threads 2 --out world-model.json

Both sides get the same weights, inputs and noise, and first have to compute the same. Then, forward and backward:
seconds, both sides taking turns in one process after a warm-up, each round giving one ratio theirs / ours; and memory,
a fresh process for each variant, the peak of one call above what was there just before it. T rows are T posteriors on
both sides (the port's chunk size is T + 1). Without --kaixhin: ours alone.
"""

import ctypes
import json
import os
import runpy
import statistics
import subprocess
import sys
import time
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import planet_lib as pl
from planet_lib.models.kaixhin import rename_kaixhin

# The paper's (arXiv:1811.04551, appendix A), six actions as cheetah has, and our batch columns per chunk.
SIZES = {"length": 50, "batch_size": 50, "action_dim": 6, "embed_dim": 1024, "deter_dim": 200, "stoch_dim": 30}
SIZES |= {"hidden_dim": 200, "distance": 50, "chunk_size": 10}
GOALS = {"observe": ">= 1.5", "overshooting": ">= 1.7, share <= 0.5"}  # of times_faster, and of memory_share
COLUMNS = "question variant seconds least most memory_mib times_faster least_faster most_faster memory_share goal"
TOLERANCE = 1e-4
Job = Callable[[], Tensor | list[Tensor]]


class Setup:
    """Both models with the same weights, one window of noise, and the jobs that are measured on it."""

    def __init__(self, args: Namespace) -> None:
        torch.manual_seed(0)
        self.args, length, columns = args, args.length, args.batch_size
        deter, stoch, hidden = args.deter_dim, args.stoch_dim, args.hidden_dim
        self.cell = pl.RSSMCell(args.action_dim, args.embed_dim, deter_dim=deter, stoch_dim=stoch, hidden_dim=hidden)
        head = pl.RewardHead(self.cell.feature_dim, hidden_dim=hidden)
        encoder, decoder = pl.VectorEncoder(1, embed_dim=args.embed_dim), pl.Decoder(self.cell.feature_dim, (1,))
        self.model = pl.WorldModel(encoder, self.cell, decoder, head).to(args.device)
        self.leaves: list[Tensor] = [*self.model.parameters()]
        if args.kaixhin:
            port = runpy.run_path(str(args.kaixhin / "models.py"))
            transition = port["TransitionModel"](deter, stoch, args.action_dim, hidden, args.embed_dim)
            self.transition, self.bottle = transition.to(args.device), port["bottle"]
            self.reward_model = port["RewardModel"](deter, stoch, hidden).to(args.device)
            self.cell.load_state_dict(rename_kaixhin("transition_model", self.transition.state_dict()))
            head.load_state_dict(rename_kaixhin("reward_model", self.reward_model.state_dict()))
            self.leaves += [*self.transition.parameters(), *self.reward_model.parameters()]
        flags = torch.zeros(length, columns, dtype=torch.bool)
        action, reward = torch.rand(length, columns, args.action_dim) * 2 - 1, torch.rand(length, columns)
        self.batch = pl.Batch(torch.zeros(length, columns, 1), action, reward, flags, flags, ~flags).to(args.device)
        # Embeddings of this size set prior and posterior nats apart even in an untrained model.
        self.embed = (2 * torch.randn(length, columns, args.embed_dim)).to(args.device).requires_grad_()
        self.noise = torch.randn(args.distance + 1, length, columns, args.stoch_dim).to(args.device)
        with torch.no_grad():
            seen = self.observe(prior_noise=self.noise[0], posterior_noise=self.noise[-1])
        self.leaves += [self.embed, *(output.requires_grad_() for output in seen)]
        self.prior, self.posterior = pl.State(*seen[:4]), pl.State(seen[0], *seen[4:])

    def observe(self, **noise: Any) -> list[Tensor]:
        """Ours: deter, then sample, mean and std of the prior, then of the posterior."""
        prior, posterior = pl.observe(self.cell, self.embed, self.batch.action, self.batch.is_first, **noise)
        return [*prior, *posterior[1:]]

    def peer_observe(self) -> list[Tensor]:
        """Theirs: the same seven tensors in the same order."""
        zero, going = self.cell.initial(self.args.batch_size), torch.ones_like(self.batch.action[..., :1])
        outputs: list[Tensor] = self.transition(zero.stoch, self.batch.action, zero.deter, self.embed, going)
        return outputs

    def overshooting(self, **settings: Any) -> Tensor:
        """Ours, with the settings of `latent_overshooting`."""
        settings["distance"] = self.args.distance
        return pl.latent_overshooting(self.model, self.batch, self.prior, self.posterior, **settings).total

    def peer_overshooting(self, *, free_nats: float = 3.0, reward: bool = False) -> Tensor:
        """Theirs: the procedure of Kaixhin/PlaNet's main.py in our words, around one call of its transition model.

        A chain starts at every row but the last. All of them run `distance` steps, those near the end over padding. The
        mean is over this whole grid, where distance 1 counts too and a padded cell as free_nats.
        """
        length, distance = self.args.length, self.args.distance

        def ahead(values: Tensor, fill: float = 0.0) -> Tensor:  # what each chain meets, [distance, chains * B, ...]
            rows = [values[start + 1 : start + 1 + distance] for start in range(length - 1)]
            axes = (0, 0) * (values.ndim - 1)
            return torch.cat([functional.pad(x, (*axes, 0, distance - len(x)), value=fill) for x in rows], 1)

        action, rewards = ahead(self.batch.action), ahead(self.batch.reward)
        mean, std = ahead(self.posterior.mean.detach()), ahead(self.posterior.std.detach(), 1.0)
        valid, going = ahead(torch.ones_like(self.posterior.mean)), ahead(torch.ones_like(self.batch.action[..., :1]))
        deter = torch.cat([self.posterior.deter[start] for start in range(length - 1)])
        stoch = torch.cat([self.posterior.stoch[start].detach() for start in range(length - 1)])
        deters, samples, means, stds = self.transition(stoch, action, deter, None, going)
        nats = (kl_divergence(Normal(mean, std), Normal(means, stds)) * valid).sum(2)
        loss: Tensor = torch.max(nats, nats.new_full((1,), free_nats)).mean()
        if reward:
            predicted = self.bottle(self.reward_model, (deters, samples)) * valid[:, :, 0]
            loss = loss + functional.mse_loss(predicted, rewards)
        return loss.mul(length / distance)

    def jobs(self) -> dict[str, dict[str, Job]]:
        """What is measured: by question, then by variant, what is run forward and backward."""
        jobs: dict[str, dict[str, Job]] = {"observe": {"ours": self.observe}}
        if self.args.kaixhin:
            jobs["observe"]["theirs"] = self.peer_observe
        for question, reward in (("overshooting", False), ("overshooting and reward", True)):
            ours = partial(self.overshooting, reward_scale=float(reward))
            jobs[question] = {"ours": ours, "ours in chunks": partial(ours, chunk_size=self.args.chunk_size)}
            if self.args.kaixhin:
                jobs[question]["theirs"] = partial(self.peer_overshooting, reward=reward)
        return jobs

    def differentiate(self, job: Job) -> None:
        """Forward, backward from the sum of all elements that come out, and nothing left running on the device."""
        for leaf in self.leaves:
            leaf.grad = None
        outputs = job()
        tensors = [outputs] if isinstance(outputs, Tensor) else outputs
        torch.autograd.backward(tensors, [torch.ones_like(tensor) for tensor in tensors])
        if self.embed.is_cuda:
            torch.cuda.synchronize()


class GivenNoise(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its base untyped
    """Hands out given tensors where `torch.randn_like` would draw, inside TorchScript as well."""

    def __init__(self, noise: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.noise = iter(noise)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run every operation but that one as it is."""
        return next(self.noise) if func is torch.ops.aten.randn_like.default else func(*args, **(kwargs or {}))


def differences(setup: Setup) -> dict[str, float]:
    """What both sides compute: the largest difference, relative to the largest value.

    Theirs becomes a sum over its grid. Ours becomes, by its weights, a sum over the rows that exist; to it come the two
    things that theirs counts besides: distance 1, and free_nats in each padded cell.
    """
    cell, noise, distance, (length, columns) = setup.cell, setup.noise, setup.args.distance, setup.batch.reward.shape
    with GivenNoise(noise[[0, -1]].transpose(0, 1).flatten(0, 1)):
        theirs = setup.peer_observe()
    pairs = zip(setup.observe(prior_noise=noise[0], posterior_noise=noise[-1]), theirs, strict=True)
    both: dict[str, tuple[Any, Any]] = {f"observe, output {number}": pair for number, pair in enumerate(pairs)}
    # At each step a chain takes the noise of the row that it meets; over padding any will do.
    steps = [torch.roll(noise[d - 1], -d, 0)[:-1].flatten(0, 1) for d in range(1, distance + 1)]
    counts = [max(0, length - d) * columns for d in range(1, distance + 1)]
    cells = distance * (length - 1) * columns
    given: dict[str, Any] = {"noise": noise[:-1], "weights": [distance * count for count in counts[1:]]}
    start = pl.State(*(field[:-1].detach() for field in setup.posterior))
    target = pl.State(*(field[1:].detach() for field in setup.posterior))
    first = cell.prior(start, setup.batch.action[1:], noise[0, 1:])
    kl = cell.divergence(target, first)
    error = (setup.model.reward_head(cell.features(first)) - setup.batch.reward[1:]).square().sum()
    # Ours halves the squared error, and theirs stops part of the gradient into the start.
    everything = {"reward_scale": 2.0, "chunk_size": setup.args.chunk_size, "stop_start_gradient": True}
    for name, nats, settings in (("KL", kl.mean().item(), {}), ("KL and reward in chunks", 0.0, everything)):
        ours = setup.overshooting(free_nats=nats, **given, **settings) + kl.clamp(min=nats).sum()
        ours = ours + (cells - sum(counts)) * nats + (error if settings else 0.0)
        with GivenNoise(steps):
            their = setup.peer_overshooting(free_nats=nats, reward=bool(settings)) * distance * cells / length
        both[f"overshooting, {name}"] = ours, their
    setup.differentiate(lambda: [ours, their])
    grads = {name: leaf.grad for name, leaf in setup.transition.named_parameters() if leaf.grad is not None}
    for name, grad in rename_kaixhin("transition_model", grads).items():
        both[f"overshooting, gradient of {name}"] = cell.get_parameter(name).grad, grad
    return {name: ((our - their).abs().max() / their.abs().max()).item() for name, (our, their) in both.items()}


def peak_memory(setup: Setup, job: Job) -> int:
    """Bytes that forward and backward need at their worst, above those in use just before."""
    if setup.embed.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        setup.differentiate(job)
        return torch.cuda.max_memory_allocated() - before
    status = Path("/proc/self/status")
    ctypes.CDLL(None).malloc_trim(0)  # else the call would fill what the setup has freed, and seem smaller
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = int(status.read_text().partition("VmRSS:")[2].split()[0])
    setup.differentiate(job)
    return 1024 * (int(status.read_text().partition("VmHWM:")[2].split()[0]) - before)


def take_turns(jobs: Mapping[str, Callable[[], object]], rounds: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of each job in each round; every round calls all of them in order, and the warm-up isn't counted."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(warmup + rounds):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[warmup:] for name, times in seconds.items()}


def summarise(question: str, seconds: dict[str, list[float]], memory: dict[str, int]) -> list[dict[str, Any]]:
    """One row per variant: median and range of the seconds and of theirs / ours round by round, and the memory."""
    rows = []
    for variant, times in seconds.items():
        cells: list[Any] = [question, variant, statistics.median(times), min(times), max(times)]
        cells.append(memory[variant] / 2**20 if memory else None)
        if "theirs" in seconds and variant != "theirs":
            ratios = [their / our for their, our in zip(seconds["theirs"], times, strict=True)]
            cells += [statistics.median(ratios), min(ratios), max(ratios)]
            cells += [memory[variant] / memory["theirs"] if memory else None, GOALS.get(question)]
        rows.append(dict(zip(COLUMNS.split(), [*cells, *[None] * 5], strict=False)))
    return rows


def describe(args: Namespace) -> dict[str, Any]:
    """What a reader needs to know of the machine and of both sides' code."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return {
        "cpu": info.partition("model name\t: ")[2].partition("\n")[0] or "unknown",
        "cores": f"{os.cpu_count()}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} before the start",
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device,
        "torch": torch.__version__,
        "commit": subprocess.run(git, stdout=subprocess.PIPE, text=True, check=False).stdout.strip() or "unknown",
        "their models.py": args.kaixhin and sha256((args.kaixhin / "models.py").read_bytes()).hexdigest(),
        **{name: getattr(args, name) for name in ("rounds", "warmup", *SIZES)},
    }


def main(argv: list[str] | None = None) -> None:
    """Check, measure, and print a table."""
    argv = sys.argv[1:] if argv is None else argv
    parser = ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kaixhin", type=Path, help="a checkout of Kaixhin/PlaNet")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-memory", action="store_true", help="seconds only; memory takes Linux or CUDA")
    parser.add_argument("--out", type=Path, help="a JSON file for all of it")
    parser.add_argument("--worker", help=SUPPRESS)
    for name, number in {"threads": torch.get_num_threads(), "rounds": 7, "warmup": 3, **SIZES}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=number)
    args = parser.parse_args(argv)
    if args.kaixhin and not (args.kaixhin / "models.py").is_file():
        parser.error(f"--kaixhin must be a checkout of Kaixhin/PlaNet, got {args.kaixhin}, which has no models.py")
    torch.set_num_threads(args.threads)
    if args.worker:
        print(json.dumps(work(args)))
        return

    def ask(task: str) -> Any:  # a fresh process: what it uses, and teaches TorchScript, is gone for what follows
        command = [sys.executable, __file__, *argv, "--worker", task]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)

    result: dict[str, Any] = {"facts": describe(args), "rows": []}
    print(*(f"{name}: {value}" for name, value in result["facts"].items()), sep="\n")
    if args.kaixhin:
        result["differences"] = ask("check")
        print("relative differences between ours and theirs:", json.dumps(result["differences"], indent=1))
        if not all(value < TOLERANCE for value in result["differences"].values()):
            raise SystemExit(f"the two sides do not compute the same: a difference is not below {TOLERANCE}")
    setup = Setup(args)
    print("", *COLUMNS.split(), "\n" + "|---" * len(COLUMNS.split()), "", sep="|")
    for question, jobs in setup.jobs().items():
        calls = {name: partial(setup.differentiate, job) for name, job in jobs.items()}
        seconds = take_turns(calls, args.rounds, args.warmup)
        memory = {} if args.no_memory else {name: ask(f"{question}/{name}") for name in jobs}
        for row in summarise(question, seconds, memory):
            result["rows"].append(row)
            print("", *(f"{x:.4g}" if isinstance(x, float) else x or "" for x in row.values()), "", sep="|", flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1))


def work(args: Namespace) -> Any:
    """What a fresh process is asked for: the check, or the peak memory of one variant."""
    if args.worker == "check":
        return differences(Setup(args))
    question, variant = args.worker.split("/")
    small = Namespace(**{**vars(args), "length": 3, "batch_size": 2, "distance": 3, "chunk_size": 1})
    for setup in (Setup(small), Setup(args)):  # the small one only wakes the libraries
        memory = peak_memory(setup, setup.jobs()[question][variant])
    return memory


if __name__ == "__main__":
    main()

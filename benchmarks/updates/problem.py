"""One thing to train on: a preset's sizes, one batch of floats, and our jobs over it. Noise everywhere, no data."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

import planet_lib as pl
from planet_lib.planning import CompiledPlanner
from planet_lib.training import Objective, update
from planet_lib.training.presets import PRESETS, Preset, build_agent, build_model

ACTION_DIM = 6  # as cheetah has
QUICK: dict[str, Any] = {
    "batch_size": 10,
    "window": 2,
    "horizon": 2,
    "num_candidates": 16,
    "num_elites": 4,
    "num_iterations": 2,
}
Job = Callable[[], object]
Jobs = dict[str, Job]


class Problem:
    """The same batch for everybody: images in [-0.5, 0.5], actions, rewards, no beginnings and no padding.

    Attributes:
        batch: windows [T, B, ...] of floats.
        preset: the preset of that name, with changes.
        embed, features: what observe and the decoder start from, as leaves.
        frame: one observation as bytes, for acting.
    """

    def __init__(self, name: str, device: str, **changes: Any) -> None:
        torch.manual_seed(0)
        self.name, self.device = name, torch.device(device)
        self.preset: Preset = replace(PRESETS[name], **changes)
        self.length, self.batch_size, size = self.preset.window, self.preset.batch_size, self.preset.image_size
        self.shape = (3, size, size)
        self.model = build_model(self.preset, "rssm", self.shape, ACTION_DIM).to(self.device)
        rows = (self.length, self.batch_size)
        flags = torch.zeros(rows, dtype=torch.bool)
        self.batch = pl.Batch(
            obs=torch.rand(*rows, *self.shape) - 0.5,
            action=torch.rand(*rows, ACTION_DIM) * 2 - 1,
            reward=torch.rand(rows),
            is_first=flags,
            terminated=flags,
            mask=~flags,
        ).to(self.device)
        cell, encoder = self.model.cell, cast(Any, self.model.encoder)
        self.embed = torch.randn(*rows, encoder.embed_dim).to(self.device).requires_grad_()
        self.features = torch.randn(*rows, cell.feature_dim).to(self.device).requires_grad_()
        self.frame = torch.randint(0, 256, (1, *self.shape), dtype=torch.uint8)

    @property
    def obs(self) -> Tensor:
        """The images [T, B, C, Y, X]."""
        assert isinstance(self.batch.obs, Tensor)
        return self.batch.obs

    def noise(self) -> list[Tensor]:
        """The prior's and the posterior's [T, B, S], for comparisons."""
        size = (self.length, self.batch_size, self.preset.stoch_dim)
        return [torch.randn(*size).to(self.device) for _ in range(2)]

    def loss(self, *, noise: Sequence[Tensor] = (), free_nats: float = 3.0) -> Tensor:
        """The loss as Kaixhin's port has it: whole squared errors instead of half of them."""
        given = dict(zip(("prior_noise", "posterior_noise"), noise, strict=False))
        seen = pl.observe(self.model.cell, self.model.encoder(self.obs), *self.batch[1:2], self.batch.is_first, **given)
        scales: dict[str, Any] = {"free_nats": free_nats, "obs_scale": 2.0, "reward_scale": 2.0}
        return pl.elbo_loss(self.model, self.batch, self.obs, *seen, **scales).total


def differentiate(make: Callable[[], Any], leaves: Sequence[Tensor]) -> None:
    """Forward, and backward from the sum of all elements that come out."""
    for leaf in leaves:
        leaf.grad = None
    made = make()
    tensors = [made] if isinstance(made, Tensor) else [*made]
    torch.autograd.backward(tensors, [torch.ones_like(tensor) for tensor in tensors])


def ours(problem: Problem, *, autocast: torch.dtype | None = None, is_compiled: bool = False) -> Jobs:
    """Our jobs: the update, its parts, and acting; an update in another type, or compiled, alone."""
    model, preset = problem.model, problem.preset
    optimizer = torch.optim.Adam(model.parameters(), lr=preset.learning_rate, eps=preset.adam_eps, fused=True)
    objective = Objective(obs_scale=2.0, reward_scale=2.0)

    def step() -> object:
        return update(model, optimizer, problem.batch, objective, grad_clip=preset.grad_clip, autocast=autocast)

    jobs: Jobs = {"update": torch.compile(step) if is_compiled else step}
    if autocast is not None or is_compiled:
        return jobs
    cell: Any = model.cell
    batch = problem.batch

    def observed() -> list[Tensor]:
        prior, posterior = pl.observe(cell, problem.embed, batch.action, batch.is_first)
        return [*prior, *posterior[1:]]

    jobs["encoder"] = partial(differentiate, lambda: model.encoder(problem.obs), [*model.encoder.parameters()])
    leaves = [problem.features, *model.decoder.parameters()]
    jobs["decoder"] = partial(differentiate, lambda: model.decoder(problem.features), leaves)
    jobs["observe"] = partial(differentiate, observed, [problem.embed, *cell.parameters()])
    jobs["acting"] = acting(problem)
    return jobs


def acting(problem: Problem, *, is_compiled: bool = False) -> Job:
    """Filter one frame and plan from it."""
    agent: Any = build_agent(problem.preset, problem.model)
    if is_compiled:
        agent.planner = CompiledPlanner(agent.planner)
    state, is_first = agent.initial(1), torch.zeros(1, dtype=torch.bool)
    return lambda: agent(problem.frame, is_first, state, explore=False)

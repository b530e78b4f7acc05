"""Random models and windows for the tests: every cell, every setting, episode ends, padding.

Sizes all differ, so that mixed-up axes do not pass unseen. Weights and biases are larger than a fresh module's, so that
activations, gates and floors all leave their linear range. Everything is float64 and depends on the seed alone.
"""

import functools
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from planet_lib import (
    Batch,
    ContinueHead,
    Decoder,
    DictDecoder,
    RewardHead,
    RNNCell,
    RSSMCell,
    SSMCell,
    State,
    WorldModel,
    observe,
)

A, E, D, S, HIDDEN, N = 2, 5, 4, 3, 6, 7
KINDS = ("rssm", "ssm", "rnn")
AnyCell = RSSMCell | SSMCell | RNNCell

seeds = st.integers(0, 2**31)
kinds = st.sampled_from(KINDS)


@st.composite
def settings_of_cells(draw: Any) -> tuple[str, dict[str, Any]]:
    """A kind of cell and its settings."""
    kind = draw(kinds)
    chosen = {
        "num_layers": draw(st.integers(1, 3)),
        "activation": draw(st.sampled_from(["relu", "elu", "silu", "gelu", "tanh"])),
    }
    if kind != "rnn":
        chosen["min_std"] = draw(st.sampled_from([0.05, 0.6]))
        chosen["min_std_mode"] = draw(st.sampled_from(["add", "clamp"]))
    if kind != "ssm":
        chosen["gru"] = draw(st.sampled_from(["reset_after", "reset_before"]))
    return kind, chosen


# One of each kind, and each setting at least once: for tests too slow to try them all.
SOME_CELLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("rssm", {}),
    ("rssm", {"gru": "reset_before", "min_std_mode": "clamp", "min_std": 0.6, "num_layers": 2, "activation": "elu"}),
    ("ssm", {}),
    ("ssm", {"min_std_mode": "clamp", "min_std": 0.6, "num_layers": 2, "activation": "elu"}),
    ("rnn", {}),
    ("rnn", {"gru": "reset_before", "num_layers": 2, "activation": "elu"}),
)
some_cells = st.sampled_from(SOME_CELLS)


def make_cell(kind: str, seed: int = 0, **settings: Any) -> AnyCell:
    if kind == "ssm":
        cell: AnyCell = SSMCell(A, E, stoch_dim=S, hidden_dim=HIDDEN, **settings)
    else:
        make = RSSMCell if kind == "rssm" else RNNCell
        cell = make(A, E, deter_dim=D, stoch_dim=S, hidden_dim=HIDDEN, **settings)
    return excite(cell, seed)


def excite(module: Any, seed: int) -> Any:
    """Draw every weight anew from N(0, 1 / inputs), so that nothing explodes, and every bias; in float64."""
    random = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            std = 0.5 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.normal_(0.0, std, generator=random)
    return module


class Sequence(NamedTuple):
    """What `observe` takes, T first."""

    embed: Tensor
    action: Tensor
    is_first: Tensor
    prior_noise: Tensor
    posterior_noise: Tensor

    def rows(self, first: int | None = None, last: int | None = None) -> "Sequence":
        return Sequence(*(field[first:last] for field in self))

    def filter(self, cell: AnyCell, initial: State | None = None) -> tuple[State, State]:
        embed, action, is_first, prior_noise, posterior_noise = self
        return observe(cell, embed, action, is_first, initial, prior_noise=prior_noise, posterior_noise=posterior_noise)


def draw_sequence(cell: Any, seed: int, *, length: int = 6, batch_size: int = 2, resets: float = 0.25) -> Sequence:
    random = torch.Generator().manual_seed(seed)
    normal = functools.partial(torch.randn, length, batch_size, generator=random, dtype=torch.float64)
    is_first = torch.rand(length, batch_size, generator=random) < resets
    return Sequence(normal(E), normal(A), is_first, normal(cell.noise_dim), normal(cell.noise_dim))


def draw_state(cell: AnyCell, seed: int, *leading: int) -> State:
    random = torch.Generator().manual_seed(seed)
    sizes = [field.shape[-1] for field in cell.initial(1)]
    return State(*(torch.rand(*leading, size, generator=random, dtype=torch.float64) + 0.1 for size in sizes))


class LinearImage(nn.Module):
    """A user's own decoder of images [2, 3, 5], so that no convolution stands between the test and the loss."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.project = nn.Linear(feature_dim, 30)

    def forward(self, features: Tensor) -> Tensor:
        return self.project(features).unflatten(-1, (2, 3, 5))


class Case(NamedTuple):
    """A model, a batch, what the encoder made of it, the same observation as floats, and all noise."""

    model: WorldModel
    batch: Batch
    obs: Tensor | dict[str, Tensor]
    sequence: Sequence
    chain_noise: Tensor

    def states(self) -> tuple[State, State]:
        return self.sequence.filter(self.model.cell)


def make_model(kind: str, seed: int = 0, *, obs: str = "vector", goes_on: bool = False, **settings: Any) -> WorldModel:
    """A model of excited weights; obs is "vector" [N], "image" [2, 3, 5] or "both", a dictionary of the two."""
    cell = make_cell(kind, seed, **settings)

    def decoder(name: str) -> nn.Module:
        if name == "vector":
            return Decoder(cell.feature_dim, (N,), hidden_dim=HIDDEN, num_layers=2)
        return LinearImage(cell.feature_dim)

    parts = DictDecoder({name: decoder(name) for name in ("image", "vector")}) if obs == "both" else decoder(obs)
    reward_head = RewardHead(cell.feature_dim, hidden_dim=HIDDEN)
    continue_head = ContinueHead(cell.feature_dim, hidden_dim=HIDDEN) if goes_on else None
    return excite(WorldModel(nn.Identity(), cell, parts, reward_head, continue_head), seed)


def draw_case(
    kind: str,
    seed: int,
    *,
    length: int = 6,
    batch_size: int = 2,
    distance: int = 1,
    resets: float = 0.25,
    padding: str = "none",
    obs: str = "vector",
    goes_on: bool = False,
    **settings: Any,
) -> Case:
    """padding is "none", "tail" (short windows, as replay makes them) or "holes" (anywhere)."""
    model = make_model(kind, seed, obs=obs, goes_on=goes_on, **settings)
    sequence = draw_sequence(model.cell, seed, length=length, batch_size=batch_size, resets=resets)
    random = torch.Generator().manual_seed(seed + 1)
    leading = (length, batch_size)
    normal = functools.partial(torch.randn, generator=random, dtype=torch.float64)
    if padding == "tail":
        lengths = torch.randint(1, length + 1, (batch_size,), generator=random)
        mask = torch.arange(length).unsqueeze(-1) < lengths
    else:
        mask = torch.rand(leading, generator=random) < (0.75 if padding == "holes" else 2.0)
    shapes = {"image": (2, 3, 5), "vector": (N,)}
    seen: Any = {name: normal(*leading, *shape) for name, shape in shapes.items()}
    seen = seen if obs == "both" else seen[obs]
    terminated = torch.rand(leading, generator=random) < 0.3
    batch = Batch(
        obs=seen,
        action=sequence.action,
        reward=normal(*leading),
        is_first=sequence.is_first,
        terminated=terminated,
        mask=mask,
    )
    chain_noise = normal(distance, *leading, model.cell.noise_dim)
    return Case(model, batch, seen, sequence, chain_noise)

"""One cell, one step, and random inputs to it: what the checks of a cell are made of.

Whatever a step returns is checked here each time for type, shape, dtype, device and finiteness.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from planet_lib.models import Cell
from planet_lib.testing.contract import ContractError, runs


class Inputs(NamedTuple):
    """What one step is given, with any leading axes."""

    state: Any
    action: Tensor
    embed: Tensor
    prior_noise: Tensor
    posterior_noise: Tensor


class Step(NamedTuple):
    """What one step returns."""

    prior: Any
    posterior: Any
    features: Tensor
    divergence: Tensor


class Probe:
    """A cell, the sizes to try it at, and a random generator that is nobody else's."""

    def __init__(self, cell: Cell[Any], embed_dim: int, batch_size: int, length: int, seed: int) -> None:
        self.cell, self.embed_dim, self.batch_size, self.length, self.seed = cell, embed_dim, batch_size, length, seed
        self.generator = torch.Generator().manual_seed(seed)
        with runs("cell.initial must run with a batch size of 1"):
            self.like = cell.initial(1)
        if not isinstance(self.like, tuple) or not hasattr(self.like, "_fields"):
            got = type(self.like).__name__
            raise ContractError(f"cell.initial must return a NamedTuple of tensors, got {got}; see planet_lib.State")
        floating = [field for field in self.like if isinstance(field, Tensor) and field.is_floating_point()]
        if not floating:
            raise ContractError("cell.initial must return a floating field, got none; no gradient could flow through")
        owner = next(cell.parameters(), floating[0]) if isinstance(cell, nn.Module) else floating[0]
        self.device, self.dtype = owner.device, owner.dtype
        if self.device.type == "meta":
            raise ContractError("cell must hold numbers, got weights on the meta device; move it with .to_empty(...)")

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers on the cell's device, in its dtype."""
        return torch.randn(shape, generator=self.generator).to(self.device, self.dtype)

    def noise(self, *lead: int) -> Tensor:
        """Draw the noise of one call of prior or posterior."""
        return self.normal(*lead, self.cell.noise_dim)

    def inputs(self, state: Any, *lead: int) -> Inputs:
        """Draw what goes with a state of these leading axes; actions lie in [-1, 1]."""
        action, embed = self.normal(*lead, self.cell.action_dim).tanh(), self.normal(*lead, self.embed_dim)
        return Inputs(state, action, embed, self.noise(*lead), self.noise(*lead))

    def state(self, rows: int) -> Any:
        """Return a state [rows, ...] such as there are in the midst of an episode."""
        state = self.cell.initial(rows)
        for _ in range(2):
            state = self.step(self.inputs(state, rows)).posterior
        return state

    def rows(self, rows: int) -> Inputs:
        """Draw all that one step takes, from the midst of an episode."""
        return self.inputs(self.state(rows), rows)

    def step(self, inputs: Inputs) -> Step:
        """Take one step, and check all that it returns."""
        cell, lead = self.cell, tuple(inputs.action.shape[:-1])
        with runs(f"cell.prior must run with leading axes {list(lead)}"):
            prior = cell.prior(inputs.state, inputs.action, inputs.prior_noise)
        self.check_state("prior", prior, lead)
        with runs(f"cell.posterior must run with leading axes {list(lead)}"):
            posterior = cell.posterior(prior, inputs.embed, inputs.posterior_noise)
        self.check_state("posterior", posterior, lead)
        return Step(prior, posterior, self.features(posterior, lead), self.divergence(posterior, prior, lead))

    def features(self, state: Any, lead: tuple[int, ...]) -> Tensor:
        """Ask for features, and check them."""
        with runs(f"cell.features must run with leading axes {list(lead)}"):
            features = self.cell.features(state)
        self.check_tensor("cell.features", features, (*lead, self.cell.feature_dim), self.dtype)
        return features

    def divergence(self, posterior: Any, prior: Any, lead: tuple[int, ...]) -> Tensor:
        """Ask for the divergence, and check it; it may be in float32 where the cell is in less."""
        with runs(f"cell.divergence must run with leading axes {list(lead)}"):
            nats = self.cell.divergence(posterior, prior)
        wide = torch.promote_types(self.dtype, torch.float32)
        is_wide = isinstance(nats, Tensor) and nats.dtype == wide
        self.check_tensor("cell.divergence", nats, lead, wide if is_wide else self.dtype)
        return nats

    def check_state(self, name: str, state: Any, lead: tuple[int, ...]) -> None:
        """Raise unless the state is like that of cell.initial, with these leading axes."""
        if type(state) is not type(self.like):
            expected, got = type(self.like).__name__, type(state).__name__
            raise ContractError(f"cell.{name} must return a {expected}, as cell.initial does, got {got}")
        for field, value, like in zip(self.like._fields, state, self.like, strict=True):
            if not isinstance(like, Tensor):
                raise ContractError(f"cell.initial's {field} must be a tensor, got {type(like).__name__}")
            dtype = self.dtype if like.is_floating_point() else like.dtype
            self.check_tensor(f"cell.{name}'s {field}", value, (*lead, *like.shape[1:]), dtype)

    def check_tensor(self, what: str, value: object, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Raise unless the value is a finite tensor of this shape and dtype on the cell's device."""
        if not isinstance(value, Tensor):
            raise ContractError(f"{what} must be a tensor, got {type(value).__name__}")
        if tuple(value.shape) != shape:
            remedy = "the leading axes are those of the arguments, however many, and the sizes behind them are fixed"
            raise ContractError(f"{what} must be {list(shape)}, got {list(value.shape)}; {remedy}")
        if value.dtype != dtype or value.device != self.device:
            raise ContractError(
                f"{what} must be {dtype} on {self.device}, got {value.dtype} on {value.device}; take dtype and device "
                "from the parameters and the arguments"
            )
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ContractError(f"{what} must be finite, got NaN or infinity from inputs of ordinary size")

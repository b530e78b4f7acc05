"""The NamedTuples that the parts of planet_lib exchange.

This module knows no other but the checks. Tensors travel in NamedTuples: build them by keyword and read them by name. A
NamedTuple is a pytree, so it passes `torch.vmap`, `torch.compile` and `default_collate` with no registration.

Letters: T time steps, B batch, L rows of one episode, H horizon, A action, D deter, S stoch, C Y X image. Time first.

Alignment, everywhere: row `t` holds `obs[t]` **and the action and reward that led to it**. At an episode's first row
action and reward are zero. The final observation of an episode is a row like any other.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from planet_lib._shapes import checked_device, shown

Array: TypeAlias = np.ndarray[Any, Any]
Observation: TypeAlias = Tensor | dict[str, Tensor]
"""What a model sees: images or vectors, or several of them by name (camera and proprioception, say)."""


class State(NamedTuple):
    """The latent state of the Gaussian cells.

    Shapes: deter [..., D] the deterministic path, stoch [..., S] the sample, mean and std [..., S] its distribution.
    `SSMCell` has D = 0. A cell may define a NamedTuple of its own instead: nothing outside the cell looks inside.

    Example:
        >>> import torch
        >>> state = State(*(torch.zeros(2, n) for n in (200, 30, 30, 30)))
        >>> state.deter.shape, state.stoch.shape
        (torch.Size([2, 200]), torch.Size([2, 30]))
    """

    deter: Tensor
    stoch: Tensor
    mean: Tensor
    std: Tensor


class Batch(NamedTuple):
    """Windows of experience, time first, for one update.

    Shapes: obs [T, B, C, Y, X] uint8 or [T, B, N] float, or a dictionary of such, one entry for each thing that is
    seen; action [T, B, A] float in [-1, 1], the one that *led to* the row; reward [T, B] float, likewise, summed over
    the action repeat; is_first, terminated, mask [T, B] bool. mask is False on rows that only pad a short window:
    losses leave them out.

    Example:
        >>> import torch
        >>> flags = torch.zeros(50, 4, dtype=torch.bool)
        >>> batch = Batch(
        ...     obs=torch.zeros(50, 4, 3, 64, 64, dtype=torch.uint8), action=torch.zeros(50, 4, 1),
        ...     reward=torch.zeros(50, 4), is_first=flags, terminated=flags, mask=~flags)
        >>> batch.to("cpu").obs.shape
        torch.Size([50, 4, 3, 64, 64])
    """

    obs: Observation
    action: Tensor
    reward: Tensor
    is_first: Tensor
    terminated: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`, copied without waiting where the memory allows it.

        Raises:
            TypeError, ValueError: where `device` is none that torch knows and this machine has.
        """
        device = checked_device("device", device)
        obs, *others = self
        if isinstance(obs, dict):
            moved: Observation = {name: value.to(device, non_blocking=True) for name, value in obs.items()}
        else:
            moved = obs.to(device, non_blocking=True)
        return Batch(moved, *(field.to(device, non_blocking=True) for field in others))


class Episode(NamedTuple):
    """One episode as NumPy arrays of L rows: what collection makes, replay stores and files hold.

    Shapes: obs [L, C, Y, X] uint8 or [L, N] float32, or a dictionary of such; action [L, A] float32 in [-1, 1]; reward
    [L] float32; is_first, terminated, truncated [L] bool. Row 0 has is_first, zero action and zero reward. Only the
    last row can be terminated (the task ended: no reward can follow) or truncated (the clock ran out), which are kept
    apart.

    Example:
        >>> import numpy as np
        >>> flags = np.zeros(3, bool)
        >>> episode = Episode(obs=np.zeros((3, 4), np.float32), action=np.zeros((3, 1), np.float32),
        ...     reward=np.array([0, 1, 2], np.float32), is_first=np.array([True, False, False]),
        ...     terminated=flags, truncated=np.array([False, False, True]))
        >>> len(episode.reward), float(episode.reward.sum())
        (3, 3.0)
    """

    obs: Array | dict[str, Array]
    action: Array
    reward: Array
    is_first: Array
    terminated: Array
    truncated: Array


class Plan(NamedTuple):
    """What a planner returns.

    Shapes: action [B, A], the first of the plan, to be executed now; mean and std [H, B, A], the last action
    distribution; value [B], the predicted return of the elites, averaged, in the last iteration that had any; valid [B]
    bool, False where no candidate of that row ever had a finite return: its action must not be executed; elites
    [H, B, K, A], the best candidates, best first, of planners that try them again in the next step (NaN where there are
    fewer than K), else None; spread [I, H, B, A], the deviation of the best in each iteration, where it was asked for.

    Example:
        >>> import torch
        >>> plan = Plan(action=torch.zeros(1, 2), mean=torch.zeros(12, 1, 2), std=torch.ones(12, 1, 2),
        ...     value=torch.zeros(1), valid=torch.ones(1, dtype=torch.bool))
        >>> bool(plan.valid.all())
        True
    """

    action: Tensor
    mean: Tensor
    std: Tensor
    value: Tensor
    valid: Tensor
    elites: Tensor | None = None
    spread: Tensor | None = None


class Losses(NamedTuple):
    """The terms of one objective: scalars, each the mean over the rows where it exists.

    total: what is minimised, the sum of `scaled`. raw: every term as it is, in its own unit, by name; `elbo_loss` and
    `latent_overshooting` say which. scaled: the terms of the total with their scales (and free nats) applied, by name.

    Example:
        >>> import torch
        >>> losses = Losses(total=torch.tensor(7.), raw={"obs": torch.tensor(1.), "kl": torch.tensor(2.)},
        ...     scaled={"obs": torch.tensor(1.), "kl": torch.tensor(6.)})
        >>> float(losses.total), losses.non_finite()
        (7.0, [])
    """

    total: Tensor
    raw: dict[str, Tensor]
    scaled: dict[str, Tensor]

    def non_finite(self) -> list[str]:
        """Return the names of the terms that are NaN or infinite; waits for the device.

        Example:
            >>> import torch
            >>> nan = torch.tensor(float("nan"))
            >>> Losses(total=nan, raw={"obs": torch.tensor(1.), "kl": nan}, scaled={}).non_finite()
            ['kl']
        """
        self._check()
        terms = {**{f"{name} (scaled)": value for name, value in self.scaled.items()}, **self.raw}
        names = [name for name, value in terms.items() if not bool(torch.isfinite(value))]
        # A term that is already bad unscaled need not be named twice.
        return [name for name in names if name.removesuffix(" (scaled)") == name or name[:-9] not in names]

    def detach(self) -> "Losses":
        """Return the same numbers without their graph."""
        self._check()
        raw = {name: value.detach() for name, value in self.raw.items()}
        return Losses(self.total.detach(), raw, {name: value.detach() for name, value in self.scaled.items()})

    def _check(self) -> None:
        """Raise unless the terms are scalar tensors with a value, by name."""
        for field, terms in (("total", {"": self.total}), ("raw", self.raw), ("scaled", self.scaled)):
            given: object = terms
            if not isinstance(given, dict):
                raise TypeError(f"{field} must be a dictionary of scalar tensors by name, got {shown(given)}")
            for name, value in given.items():
                is_scalar = isinstance(value, Tensor) and value.ndim == 0 and not value.is_meta
                if not is_scalar or value.layout != torch.strided:
                    what = field if field == "total" else f"{field}[{name!r}]"
                    raise TypeError(f"{what} must be a scalar tensor with a value, got {shown(value)}")

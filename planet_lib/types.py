"""The NamedTuples that the parts of planet_lib exchange.

This module knows no other. Tensors travel in NamedTuples: build them by keyword and read them by name. A NamedTuple
is a pytree, so it passes `torch.vmap`, `torch.compile` and `default_collate` with no registration.

Letters: T time steps, B batch, L rows of one episode, H horizon, A action, D deter, S stoch, C Y X image. Time first.

Alignment, everywhere: row `t` holds `obs[t]` **and the action and reward that led to it**. At an episode's first row
action and reward are zero. The final observation of an episode is a row like any other.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


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

    Shapes: obs [T, B, C, Y, X] uint8 or [T, B, N] float; action [T, B, A] float in [-1, 1], the one that *led to* the
    row; reward [T, B] float, likewise, summed over the action repeat; is_first, terminated, mask [T, B] bool. mask is
    False on rows that only pad a short window: losses leave them out.

    Example:
        >>> import torch
        >>> flags = torch.zeros(50, 4, dtype=torch.bool)
        >>> batch = Batch(
        ...     obs=torch.zeros(50, 4, 3, 64, 64, dtype=torch.uint8), action=torch.zeros(50, 4, 1),
        ...     reward=torch.zeros(50, 4), is_first=flags, terminated=flags, mask=~flags)
        >>> batch.to("cpu").obs.shape
        torch.Size([50, 4, 3, 64, 64])
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    is_first: Tensor
    terminated: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`, copied without waiting where the memory allows it."""
        return Batch(*(field.to(device, non_blocking=True) for field in self))


class Episode(NamedTuple):
    """One episode as NumPy arrays of L rows: what collection makes, replay stores and files hold.

    Shapes: obs [L, C, Y, X] uint8 or [L, N] float32; action [L, A] float32 in [-1, 1]; reward [L] float32;
    is_first, terminated, truncated [L] bool. Row 0 has is_first, zero action and zero reward. Only the last row can
    be terminated (the task ended: no reward can follow) or truncated (the clock ran out), which are kept apart.

    Example:
        >>> import numpy as np
        >>> flags = np.zeros(3, bool)
        >>> episode = Episode(obs=np.zeros((3, 4), np.float32), action=np.zeros((3, 1), np.float32),
        ...     reward=np.array([0, 1, 2], np.float32), is_first=np.array([True, False, False]),
        ...     terminated=flags, truncated=np.array([False, False, True]))
        >>> len(episode.reward), float(episode.reward.sum())
        (3, 3.0)
    """

    obs: np.ndarray[Any, Any]
    action: np.ndarray[Any, Any]
    reward: np.ndarray[Any, Any]
    is_first: np.ndarray[Any, Any]
    terminated: np.ndarray[Any, Any]
    truncated: np.ndarray[Any, Any]


class Plan(NamedTuple):
    """What a planner returns.

    Shapes: action [B, A], the first of the plan, to be executed now; mean and std [H, B, A], the last action
    distribution; value [B], the predicted return of the elites, averaged, in the last iteration that had any; valid [B]
    bool, False where no candidate of that row ever had a finite return: its action must not be executed.

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


class Losses(NamedTuple):
    """The terms of one objective, scalars averaged over valid rows; each unscaled but the total.

    total: what is minimised. obs: half the squared error summed over the observation. reward: half the squared error.
    kl: KL(posterior || prior) in nats as it is. kl_clipped: the same with free nats applied per row, as minimised.

    Example:
        >>> import torch
        >>> losses = Losses(total=torch.tensor(6.), obs=torch.tensor(1.), reward=torch.tensor(2.),
        ...     kl=torch.tensor(1.), kl_clipped=torch.tensor(3.))
        >>> float(losses.total)
        6.0
    """

    total: Tensor
    obs: Tensor
    reward: Tensor
    kl: Tensor
    kl_clipped: Tensor

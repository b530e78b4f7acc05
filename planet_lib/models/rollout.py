"""Time loops over any cell: `observe` filters a sequence, `imagine` predicts one, `step` is one step of filtering.

Knows no cell in particular, no pixels and no loss. Source: PlaNet (arXiv:1811.04551), section 3; the names follow
Dreamer's. Difference from every port: rows carry the action that led to them, and `is_first` resets deterministic
path, sample *and* action, so a window may start and cross episodes anywhere.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from planet_lib._shapes import check_bool, check_dense, check_shape
from planet_lib.models._states import check_kind, check_like, check_meets, check_rows, check_sizes
from planet_lib.models.cells import Cell
from planet_lib.models.cells.protocol import check_members

S = TypeVar("S", bound=tuple[Tensor, ...])


def observe(
    cell: Cell[S],
    embed: Tensor,
    action: Tensor,
    is_first: Tensor,
    initial: S | None = None,
    *,
    prior_noise: Tensor | None = None,
    posterior_noise: Tensor | None = None,
) -> tuple[S, S]:
    """Filter a sequence: at each row predict from the row before, then correct by what was seen.

    prior_t = p(s_t | s_{t-1}, a_t),  posterior_t = q(s_t | prior_t, embed_t), where s_{t-1} is the posterior's sample
    and a_t the action that led to row t. Where is_first[t] holds, s_{t-1} and a_t count as zero.

    Args:
        cell: any `Cell`; its own `scan` is used where it has one.
        embed: [T, B, E] embeddings of the observations.
        action: [T, B, A].
        is_first: [T, B] bool, True on the first row of an episode.
        initial: the state [B, ...] before row 0, as left by the window before; None is the cell's zero state.
        prior_noise: [T, B, noise_dim] standard normal; drawn when None.
        posterior_noise: [T, B, noise_dim], likewise.

    Returns:
        (prior, posterior), each the cell's state with fields [T, B, ...].

    Raises:
        ValueError: shapes do not fit each other or the cell, or the cell returns states of others.
        TypeError: is_first is not bool, or tensors or states are of another type than the cell's.

    Example:
        >>> from planet_lib import RSSMCell
        >>> cell = RSSMCell(action_dim=6, embed_dim=1024)
        >>> is_first = torch.zeros(50, 2, dtype=torch.bool)
        >>> prior, posterior = observe(cell, torch.zeros(50, 2, 1024), torch.zeros(50, 2, 6), is_first)
        >>> posterior.deter.shape
        torch.Size([50, 2, 200])
    """
    check_members(cell, "initial", "prior", "posterior")
    check_shape("embed", embed, "T B E")
    length, batch_size = embed.shape[:2]
    check_rows("embed", embed, 2)
    check_shape(
        "action",
        action,
        "T B A",
        T=length,
        B=batch_size,
        A=cell.action_dim,
        because="from embed and the cell's action_dim",
    )
    check_shape("is_first", is_first, "T B", T=length, B=batch_size, because="from embed")
    check_bool("is_first", is_first)
    for name, noise in (("prior_noise", prior_noise), ("posterior_noise", posterior_noise)):
        if noise is not None:
            check_shape(
                name,
                noise,
                "T B S",
                T=length,
                B=batch_size,
                S=cell.noise_dim,
                because="from embed and the cell's noise_dim",
            )
    state = _initial(cell, batch_size)
    if initial is not None:
        check_like("initial", initial, state, rows="embed")
        state = initial
    check_meets(state, is_first, embed=embed, action=action, prior_noise=prior_noise, posterior_noise=posterior_noise)
    filter_rows: Callable[..., tuple[S, S]] = getattr(cell, "scan", partial(_filter_by_stepping, cell))
    if not callable(filter_rows):
        raise TypeError(f"cell.scan must be a method or not be there, got {type(filter_rows).__name__}")
    filtered: object = filter_rows(state, embed, action, is_first, prior_noise, posterior_noise)
    if not isinstance(filtered, tuple) or len(filtered) != 2:
        raise TypeError(f"the cell's scan must return a prior and a posterior, got {type(filtered).__name__}")
    prior, posterior = filtered
    for name, states in (("prior", prior), ("posterior", posterior)):
        check_kind(f"the cell's {name}", states, state)
        check_leading(f"the cell's {name}", states, length, batch_size, because="from embed")
    return prior, posterior


def imagine(cell: Cell[S], initial: S, action: Tensor, *, noise: Tensor | None = None) -> S:
    """Predict a sequence open loop: s_t ~ p(s_t | s_{t-1}, a_t), with no observation.

    Args:
        cell: any `Cell`.
        initial: the state [B, ...] before the first action.
        action: [H, B, A].
        noise: [H, B, noise_dim] standard normal; drawn when None.

    Returns:
        The cell's state with fields [H, B, ...]; row 0 is one step after `initial`.

    Raises:
        ValueError: shapes do not fit the cell, or it returns states of others.
        TypeError: tensors or states are of another type than the cell's.

    Example:
        >>> from planet_lib import RSSMCell
        >>> cell = RSSMCell(action_dim=6, embed_dim=1024)
        >>> imagine(cell, cell.initial(2), torch.zeros(12, 2, 6)).stoch.shape
        torch.Size([12, 2, 30])
    """
    check_members(cell, "initial", "prior")
    check_shape("action", action, "H B A", A=cell.action_dim, because="the cell's action_dim")
    horizon, batch_size = action.shape[:2]
    check_rows("action", action, 2)
    if noise is not None:
        check_shape(
            "noise",
            noise,
            "H B S",
            H=horizon,
            B=batch_size,
            S=cell.noise_dim,
            because="from action and the cell's noise_dim",
        )
    own = _initial(cell, batch_size)
    check_like("initial", initial, own, rows="action")
    check_meets(initial, None, action=action, noise=noise)
    state = initial
    states: list[S] = []
    for t in range(horizon):
        state = cell.prior(state, action[t], None if noise is None else noise[t])
        states.append(state)
    imagined = _stack("prior", states, initial)
    check_leading("the cell's prior", imagined, horizon, batch_size, because="from action")
    return imagined


def step(
    cell: Cell[S],
    state: S,
    action: Tensor,
    embed: Tensor,
    is_first: Tensor,
    *,
    prior_noise: Tensor | None = None,
    posterior_noise: Tensor | None = None,
) -> tuple[S, S]:
    """Filter one row: predict from `state` and the action that led here, then correct by the embedding.

    Args:
        cell: any `Cell`.
        state: the state [B, ...] at the row before.
        action: [B, A], the action that led to this row.
        embed: [B, E].
        is_first: [B] bool; where it holds, state and action count as the initial state and zero.
        prior_noise: [B, noise_dim] standard normal; drawn when None.
        posterior_noise: [B, noise_dim], likewise.

    Returns:
        (prior, posterior), each a state [B, ...].

    Raises:
        ValueError: shapes do not fit each other or the cell.
        TypeError: is_first is not bool, or tensors or states are of another type than the cell's.

    Example:
        >>> from planet_lib import RSSMCell
        >>> cell = RSSMCell(action_dim=6, embed_dim=1024)
        >>> first = torch.ones(2, dtype=torch.bool)
        >>> prior, posterior = step(cell, cell.initial(2), torch.zeros(2, 6), torch.zeros(2, 1024), first)
        >>> posterior.stoch.shape
        torch.Size([2, 30])
    """
    check_members(cell, "initial", "prior", "posterior")
    check_shape("is_first", is_first, "B")
    check_bool("is_first", is_first)
    check_rows("is_first", is_first, 1)
    batch_size = is_first.shape[0]
    because = "from is_first and the cell"
    check_shape("action", action, "B A", B=batch_size, A=cell.action_dim, because=because)
    check_shape("embed", embed, "B E", B=batch_size, because="from is_first")
    own = _initial(cell, batch_size)
    check_like("state", state, own, rows="is_first")
    for name, noise in (("prior_noise", prior_noise), ("posterior_noise", posterior_noise)):
        if noise is not None:
            check_shape(name, noise, "B S", B=batch_size, S=cell.noise_dim, because=because)
    check_meets(state, is_first, action=action, embed=embed, prior_noise=prior_noise, posterior_noise=posterior_noise)
    return _step(cell, state, action, embed, is_first, prior_noise, posterior_noise)


def _step(
    cell: Cell[S],
    state: S,
    action: Tensor,
    embed: Tensor,
    is_first: Tensor,
    prior_noise: Tensor | None,
    posterior_noise: Tensor | None,
) -> tuple[S, S]:
    fresh = cell.initial(is_first.shape[0])
    state = map_state(lambda old, new: torch.where(is_first.reshape(-1, *[1] * (old.ndim - 1)), new, old), state, fresh)
    prior = cell.prior(state, action.masked_fill(is_first.unsqueeze(-1), 0.0), prior_noise)
    check_kind("the cell's prior", prior, state)
    posterior = cell.posterior(prior, embed, posterior_noise)
    check_kind("the cell's posterior", posterior, state)
    return prior, posterior


def _filter_by_stepping(
    cell: Cell[S],
    state: S,
    embed: Tensor,
    action: Tensor,
    is_first: Tensor,
    prior_noise: Tensor | None,
    posterior_noise: Tensor | None,
) -> tuple[S, S]:
    """What a cell's own scan must equal: one step after the other."""
    priors: list[S] = []
    posteriors: list[S] = []
    for t in range(embed.shape[0]):
        prior, state = _step(
            cell,
            state,
            action[t],
            embed[t],
            is_first[t],
            None if prior_noise is None else prior_noise[t],
            None if posterior_noise is None else posterior_noise[t],
        )
        priors.append(prior)
        posteriors.append(state)
    return _stack("prior", priors, state), _stack("posterior", posteriors, state)


def _initial(cell: Cell[S], batch_size: int) -> S:
    """Return the cell's own first state, or raise unless it is a NamedTuple of tensors."""
    state = cell.initial(batch_size)
    given: object = state
    if not isinstance(given, tuple) or not hasattr(given, "_fields"):
        raise TypeError(f"the cell's initial must return a NamedTuple of tensors, got {type(given).__name__}")
    check_leading("the cell's initial", state, batch_size, because="as it was asked for")
    return state


def check_leading(name: str, state: tuple[Tensor, ...], *sizes: int, because: str) -> None:
    """Raise a `ValueError` unless every field of the state begins with the axes `sizes`; a size of 1 is no stand-in.

    Example:
        >>> from planet_lib import RSSMCell
        >>> check_leading("initial", RSSMCell(action_dim=6, embed_dim=1024).initial(1), 32, because="from embed")
        Traceback (most recent call last):
            ...
        ValueError: initial must have fields [32, ...] (from embed), got one of [1, 200]
    """
    for field in state:
        check_dense(f"a field of {name}", field)
        if tuple(field.shape[: len(sizes)]) != sizes:
            expected = ", ".join(map(str, sizes))
            raise ValueError(f"{name} must have fields [{expected}, ...] ({because}), got one of {list(field.shape)}")


def map_state(function: Callable[..., Tensor], state: S, *others: S) -> S:
    """Apply `function` to each field of a NamedTuple of tensors (with the same field of `others`), and rebuild it.

    Example:
        >>> from planet_lib import RSSMCell
        >>> state = RSSMCell(action_dim=6, embed_dim=1024).initial(2)
        >>> map_state(lambda field: field[:1], state).deter.shape
        torch.Size([1, 200])
    """
    mapped: S = type(state)(*(function(*fields) for fields in zip(state, *others, strict=True)))
    return mapped


def _stack(name: str, states: list[S], like: S) -> S:
    """What a cell returned at successive times, like its state [B, ...] before them, as one of [T, B, ...]."""
    for state in states:
        check_kind(f"the cell's {name}", state, like)
        check_sizes(f"the cell's {name}", state, states[0], like)
    return map_state(lambda *fields: torch.stack(fields), *states)

"""The error of a broken contract, and what every check compares with. Knows no part in particular.

Source: ours.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

LARGEST_SEED = 2**63 - 2  # the checks use the one behind it too


class ContractError(AssertionError):
    """A part breaks what the rest of the library relies on. The message says what was expected, what came, what to do.

    Example:
        >>> from planet_lib.testing import check_cell
        >>> try:
        ...     check_cell(torch.nn.Linear(2, 3), embed_dim=4)
        ... except ContractError as error:
        ...     print(error)
        cell.action_dim must be a whole number of at least 1, got none; planet_lib.Cell lists what a cell has to offer
    """


@contextmanager
def runs(what: str) -> Iterator[None]:
    """Turn any exception of a user's code into a `ContractError` that says what must run; the cause stays attached.

    Example:
        >>> with runs("cell.prior must run"):
        ...     raise KeyError("deter")
        Traceback (most recent call last):
            ...
        planet_lib.testing.contract.ContractError: cell.prior must run, got KeyError: 'deter'
    """
    try:
        yield
    except ContractError:
        raise
    except Exception as error:
        first_line = next(iter(str(error).strip().splitlines()), "no message")
        raise ContractError(f"{what}, got {type(error).__name__}: {first_line}") from error


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested NamedTuples, each with the names that lead to it.

    Example:
        >>> from planet_lib import SSMCell
        >>> [name for name, _ in leaves(SSMCell(action_dim=1, embed_dim=1).initial(1), "prior")]
        ['prior.deter', 'prior.stoch', 'prior.mean', 'prior.std']
    """
    if isinstance(value, Tensor):
        yield name, value
    else:
        for field, item in zip(value._fields, value, strict=True):
            yield from leaves(item, f"{name}.{field}" if name else field)


def map_leaves(function: Callable[..., Tensor], value: Any, *others: Any) -> Any:
    """Apply a function to each tensor in nested NamedTuples (with the same one of the others), and rebuild them.

    Example:
        >>> map_leaves(torch.add, torch.ones(2), torch.ones(2))
        tensor([2., 2.])
    """
    if isinstance(value, Tensor):
        return function(value, *others)
    return type(value)(*(map_leaves(function, *items) for items in zip(value, *others, strict=True)))


def tolerance(dtype: torch.dtype) -> float:
    """Relative and absolute difference allowed between two ways to compute the same: the root of the precision.

    Example:
        >>> 1e-4 < tolerance(torch.float32) < 1e-3 and tolerance(torch.float64) < 1e-7 and tolerance(torch.int64) == 0
        True
    """
    return float(torch.finfo(dtype).eps ** 0.5) if dtype.is_floating_point else 0.0


def difference(got: Tensor, expected: Tensor) -> float:
    """The largest difference beyond the tolerance, 0.0 where there is none; NaN counts as equal to NaN.

    Example:
        >>> difference(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.5]))
        0.5
    """
    allowed = tolerance(expected.dtype)
    one, other = got.detach().double(), expected.detach().double()
    apart = ~torch.isclose(one, other, rtol=allowed, atol=allowed, equal_nan=True)
    gap = (one - other).abs()[apart]
    return float(gap.nan_to_num(nan=torch.inf).max()) if len(gap) else 0.0


def expect_equal(got: Any, expected: Any, name: str, must: str) -> None:
    """Raise unless both hold the same numbers, to rounding; the message names the first tensor that differs.

    Example:
        >>> expect_equal(torch.ones(1), torch.zeros(1), "cell.features", "must be the same")
        Traceback (most recent call last):
            ...
        planet_lib.testing.contract.ContractError: cell.features must be the same (it differs by up to 1)
    """
    for (leaf, one), (_, other) in zip(leaves(got, name), leaves(expected, name), strict=True):
        if gap := difference(one, other):
            raise ContractError(f"{leaf} {must} (it differs by up to {gap:.3g})")

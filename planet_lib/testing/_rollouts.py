"""Dynamics, a state, and random questions to them: what the checks of dynamics are made of.

Every answer is checked here each time for type, shape, dtype and device, and that the question was left as it was.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

# torch's own definition of a pytree; it has no public name yet.
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from planet_lib._shapes import check_count, check_dense, check_whole, is_number, is_whole, shown
from planet_lib.testing.contract import LARGEST_SEED, ContractError, runs

Bound: TypeAlias = float | Sequence[float] | np.ndarray[Any, Any] | Tensor
Rows: TypeAlias = Callable[[Any, Tensor], Any]


class Question(NamedTuple):
    """What `rollout` is asked."""

    state: Any
    actions: Tensor
    noise: Tensor | None


class Asker:
    """Dynamics, the state and box to try them with, and a random generator that is nobody else's."""

    def __init__(
        self,
        dynamics: Any,
        state: Any,
        low: Bound,
        high: Bound,
        action_dim: int | None,
        *,
        horizon: int,
        num_candidates: int,
        noise_dim: int | None,
        discrete: bool,
        rows: Rows | None,
        seed: int,
    ) -> None:
        if not is_whole(horizon, 2) or not is_whole(num_candidates, 2):
            got = f"{shown(horizon)} and {shown(num_candidates)}"
            raise ValueError(f"horizon and num_candidates must be at least 2, got {got}; less proves little")
        if noise_dim is not None:
            check_count(noise_dim=noise_dim)
        check_whole("seed", seed, least=0, most=LARGEST_SEED)
        if rows is not None and not callable(rows):
            raise TypeError(f"rows must be None or a function of a state and an index, got {shown(rows)}")
        # A copy, so that whatever is written over is not the caller's.
        try:
            state = tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, state)
        except RecursionError:
            raise ValueError("state must be a tree of tensors, got one that holds itself") from None
        tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
        self.batch_size = _check_state(tensors)
        self.dynamics, self.state, self.seed = dynamics, state, int(seed)
        self.low, self.high = _bounds(low, high, action_dim)
        self.horizon, self.num_candidates, self.discrete = int(horizon), int(num_candidates), discrete
        self.noise_dim = None if noise_dim is None else int(noise_dim)
        self.generator = torch.Generator().manual_seed(int(seed))
        floating = [leaf.dtype for leaf in tensors if leaf.is_floating_point()]
        self.dtype = floating[0] if floating else torch.get_default_dtype()
        self.device = tensors[0].device
        only_tensors = len(tensors) == len(tree_leaves(state))
        self.rows = rows if rows is not None or not only_tensors else _tensor_rows
        with runs("dynamics.draw_noise must be a method or absent"):
            self.draw: Callable[..., Any] | None = getattr(dynamics, "draw_noise", None)

    def question(self, horizon: int | None = None, num_candidates: int | None = None) -> Question:
        """Ask about random actions from the state, with noise where the dynamics take it."""
        shape = (horizon or self.horizon, self.batch_size, num_candidates or self.num_candidates)
        actions = self.actions(*shape)
        return Question(self.state, actions, self.noise(actions))

    def actions(self, *lead: int) -> Tensor:
        """Draw actions [*lead, A] within the bounds, the same in float32 and float64; one-hot if discrete."""
        action_dim = len(self.low)
        if self.discrete:
            chosen = torch.randint(action_dim, lead, generator=self.generator)
            actions = torch.nn.functional.one_hot(chosen, action_dim).double()
        else:
            uniform = torch.rand(*lead, action_dim, generator=self.generator)
            normal = torch.randn(*lead, action_dim, generator=self.generator).double()
            bounded = self.low.isfinite() & self.high.isfinite()
            within = self.low + (self.high - self.low) * uniform.double()
            actions = torch.where(bounded, within, normal).float().double().clamp(self.low, self.high)
        return actions.to(self.device, self.dtype)

    def others(self, actions: Tensor) -> Tensor:
        """Return other actions of the same shape."""
        return actions.roll(1, -1) if self.discrete else self.actions(*actions.shape[:-1])

    def noise(self, actions: Tensor) -> Tensor | None:
        """Draw the noise for these actions, as the dynamics say or else of noise_dim; None where there is none."""
        if self.draw is not None:
            seed = int(torch.randint(2**31, (), generator=self.generator))
            return self.drawn(self.draw, actions, torch.Generator(self.device).manual_seed(seed))
        if self.noise_dim is None:
            return None
        noise = torch.randn(*actions.shape[:-1], self.noise_dim, generator=self.generator)
        return noise.to(actions)

    def drawn(
        self, draw: Callable[..., Any], actions: Tensor, generator: torch.Generator | None = None
    ) -> Tensor | None:
        """Return what draw_noise returns, checked."""
        with runs("dynamics.draw_noise must run with actions [H, B, J, A] and a generator"):
            noise = draw(actions, generator=generator)
        if noise is None:
            return None
        what = "what dynamics.draw_noise returns"
        if not isinstance(noise, Tensor) or not noise.is_floating_point():
            got = str(noise.dtype) if isinstance(noise, Tensor) else type(noise).__name__
            raise ContractError(f"{what} must be a floating tensor or None, got {got}")
        sizes = list(actions.shape[1:3])
        if noise.ndim != 4 or list(noise.shape[1:3]) != sizes or noise.shape[3] != (self.noise_dim or noise.shape[3]):
            last = "S" if self.noise_dim is None else self.noise_dim
            expected = f"[H, {sizes[0]}, {sizes[1]}, {last}]"
            raise ContractError(f"{what} must be {expected} for these actions, got {list(noise.shape)}")
        if noise.device != actions.device:
            raise ContractError(f"{what} must be on {actions.device}, got {noise.device}; take it from the actions")
        checked: Tensor = noise
        return checked

    def ask(self, question: Question, seed: int = 0, when: str = "") -> Tensor:
        """Return the returns [B, J], checked; torch's global generator is seeded, so that what is drawn is replayed."""
        horizon, batch_size, num_candidates, _ = question.actions.shape
        torch.manual_seed(self.seed + seed)
        when = when or f"with H={horizon}, B={batch_size}, J={num_candidates}"
        with runs(f"dynamics.rollout must run {when}"):
            before = {name: _written_down(value) for name, value in question._asdict().items()}
            returns = self.dynamics.rollout(question.state, question.actions, noise=question.noise)
        for name, value in question._asdict().items():
            if not before[name].is_still(value):
                remedy = "write into no argument nor what shares its memory, and put nothing into its containers"
                raise ContractError(f"{name} must be left as it was by dynamics.rollout, got it changed; {remedy}")
        what = "what dynamics.rollout returns"
        if not isinstance(returns, Tensor):
            raise ContractError(f"{what} must be a tensor [B, J], got {type(returns).__name__}")
        if list(returns.shape) != [batch_size, num_candidates]:
            expected = f"[{batch_size}, {num_candidates}]"
            remedy = "one return for each candidate, summed over H, and no squeeze() of axes of size 1"
            raise ContractError(f"{what} must be [B, J] = {expected}, got {list(returns.shape)}; {remedy}")
        if not returns.is_floating_point() or returns.device != question.actions.device:
            expected = f"floating on {question.actions.device}"
            raise ContractError(f"{what} must be {expected}, got {returns.dtype} on {returns.device}")
        answer: Tensor = returns
        return answer

    def take_rows(self, rows: Rows, question: Question, index: list[int]) -> Question:
        """Ask about rows of the batch, in any order."""
        at = torch.tensor(index, device=self.device)
        with runs("rows must run with a state and an index"):
            state = rows(question.state, at)
        return Question(state, question.actions[:, at], None if question.noise is None else question.noise[:, at])

    def take_candidates(self, question: Question, index: list[int]) -> Question:
        """Ask about candidates, in any order."""
        at = torch.tensor(index, device=self.device)
        noise = None if question.noise is None else question.noise[:, :, at]
        return question._replace(actions=question.actions[:, :, at], noise=noise)


class Record(NamedTuple):
    """What a pytree was: its leaves, copies of the tensors among them, and its structure."""

    leaves: list[Any]
    copies: list[Any]
    structure: Any

    def is_still(self, value: Any) -> bool:
        """Whether it holds the same objects, and its tensors the same bits."""
        leaves, structure = tree_flatten(value)
        return structure == self.structure and all(
            one is two and (not isinstance(one, Tensor) or (one.shape == copy.shape and _same_bits(one, copy)))
            for one, two, copy in zip(leaves, self.leaves, self.copies, strict=True)
        )


def _written_down(value: Any) -> Record:
    """Write down what a pytree is now, to compare with later."""
    leaves, structure = tree_flatten(value)
    return Record(leaves, [leaf.clone() if isinstance(leaf, Tensor) else None for leaf in leaves], structure)


def identical(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers; NaN is the same as NaN."""
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(*(value.detach().reshape(-1).contiguous().view(torch.uint8) for value in (one, other)))


def _tensor_rows(state: Any, index: Tensor) -> Any:
    return tree_map(lambda leaf: leaf[index.to(leaf.device)], state)


def _check_state(tensors: list[Tensor]) -> int:
    """Return B, or raise a `ValueError` where the state is none to try dynamics with."""
    if not tensors:
        raise ValueError("state must hold at least one tensor [B, ...], got none")
    for leaf in tensors:
        check_dense("each tensor of state", leaf)
        if leaf.is_meta:
            raise ValueError("state must hold tensors of numbers, got one on the meta device")
    shapes = [list(leaf.shape) for leaf in tensors]
    if any(not shape or shape[0] != (shapes[0] or [0])[0] for shape in shapes):
        raise ValueError(f"state must hold tensors [B, ...] of one batch size B, got shapes {shapes}")
    if shapes[0][0] < 2:
        raise ValueError(f"state must have at least 2 rows, got {shapes[0][0]}; rows could mix unseen")
    if all(bool((leaf == leaf[:1]).all()) for leaf in tensors):
        raise ValueError("state must have rows that differ, got equal ones; rows could mix unseen")
    return shapes[0][0]


def _bound(name: str, value: Bound) -> Tensor:
    """Return a bound in float64, or raise where it is neither a number nor numbers [A]."""
    try:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        is_real = np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)
        if is_real and (array.ndim or isinstance(value, Tensor | np.ndarray) or is_number(value)):
            return torch.from_numpy(array.astype(np.float64))
    except (TypeError, ValueError, RuntimeError, OverflowError):  # ragged, on the meta device, anything at all
        pass
    raise TypeError(f"{name} must be a number or numbers [A], got {shown(value)}")


def _bounds(low: Bound, high: Bound, action_dim: int | None) -> tuple[Tensor, Tensor]:
    """Return the bounds [A] in float64."""
    lower, upper = _bound("low", low), _bound("high", high)
    sizes = {bound.shape[0] for bound in (lower, upper) if bound.ndim}
    if action_dim is not None:
        check_count(action_dim=action_dim)
        sizes.add(action_dim)
    if not sizes:
        raise ValueError("action_dim must be given where low and high are both single numbers, got None")
    if len(sizes) > 1 or max(lower.ndim, upper.ndim) > 1:
        got = f"{list(lower.shape)}, {list(upper.shape)} and {action_dim}"
        raise ValueError(f"low and high must be numbers or [A] with A=action_dim, got {got}")
    size = sizes.pop()
    lower, upper = lower.expand(size), upper.expand(size)
    if not bool((lower < upper).all()):
        raise ValueError(f"low must be less than high in every dimension, got {lower.tolist()} and {upper.tolist()}")
    return lower, upper

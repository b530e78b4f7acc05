"""What all planners share: the call, the loop over iterations, and what counts as a return. Knows no model.

A planner of this package differs from another in two things only: how candidates are made from noise, and what is
learned from their returns. Everything else stands here once: shapes, recorded noise, particles, warm start, and rows
without a single finite return.

Source: Hafner et al. 2019 (arXiv:1811.04551), algorithm 2, for the loop. Warm start, particles and the treatment of
returns that are not finite are ours.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from planet_lib._shapes import check_count, check_dense, check_flag, check_floating, check_last, check_shape
from planet_lib.planning._checks import (
    batch_of,
    check_dynamics,
    check_generator,
    check_movable,
    check_noise,
    check_numbers,
    check_plan,
    check_rows,
    check_size,
)
from planet_lib.planning._spaces import Space
from planet_lib.planning.protocol import Dynamics
from planet_lib.types import Plan


class Round(NamedTuple):
    """How many candidates an iteration makes: of new noise, and, at most, of what is known already."""

    fresh: int
    known: int = 0


class Planner(ABC):
    """Search for the actions of highest return, for B environments at once. Abstract; the planners are its kinds.

    Each iteration makes J candidates [H, B, J, A] out of standard normal noise, asks the dynamics for their returns
    [B, J], and moves the search to where they were high. The first action of the result is the one to execute;
    afterwards one plans anew. Planning runs without gradients, waits for no device, and traces under
    `torch.compile(fullgraph=True)`. Device and dtype are those of the first floating tensor of the state.

    The plan of an environment depends on that environment alone. NaN, -inf and +inf are never among the best: +inf is
    a broken model, not a good plan. If none of a row's returns is finite in any iteration, its `valid` is False, its
    value NaN and its action still one that could be executed; the other rows are as they would have been.

    A planner keeps nothing from call to call. To warm-start, hand in the plan of the step before.

    Bounds are infinite or at most 1e18 in size, and so are deviations, so that float32 holds their products.

    Attributes:
        dynamics: the `Dynamics` that are asked.
        horizon: H.
        num_candidates: J.
        num_iterations: I.
        num_particles: P, how often each candidate is rolled out; its return is the mean of these.
        initial_std: how widely each search starts, in units of half the box.
        num_kept: how many elites a plan keeps for the next one; 0 where the planner tries none again.

    Example:
        >>> from planet_lib.planning import CEMPlanner, ICEMPlanner, MPPIPlanner, RandomShootingPlanner
        >>> all(issubclass(kind, Planner) for kind in (CEMPlanner, ICEMPlanner, MPPIPlanner, RandomShootingPlanner))
        True
    """

    def __init__(
        self,
        dynamics: Dynamics,
        space: Space,
        rounds: Sequence[Round],
        *,
        horizon: int,
        num_candidates: int,
        num_particles: int,
        initial_std: float,
        num_kept: int = 0,
    ) -> None:
        check_count(horizon=horizon, num_particles=num_particles)
        check_dynamics(dynamics)
        self.num_kept = num_kept
        self.dynamics = dynamics
        self.horizon, self.num_candidates, self.num_iterations = horizon, num_candidates, len(rounds)
        self.num_particles, self.initial_std = num_particles, initial_std
        self._space, self._rounds = space, tuple(rounds)

    @property
    def action_dim(self) -> int:
        """A, the numbers in an action."""
        return self._space.low.shape[0]

    @property
    def low(self) -> Tensor:
        """The smallest action [A], float64."""
        return self._space.low

    @property
    def high(self) -> Tensor:
        """The largest action [A], float64."""
        return self._space.high

    @property
    def num_rollouts(self) -> tuple[int, ...]:
        """How many rollouts each iteration makes at most, particles counted."""
        return tuple(self.num_particles * (fresh + known) for fresh, known in self._rounds)

    def clip(self, action: Tensor) -> Tensor:
        """Return the nearest action [..., A] that can be executed."""
        self._check_action(action)
        return self._space.like(action).clip(action)

    def explore(self, action: Tensor, scale: float, noise: Tensor | None = None) -> Tensor:
        """Return the action [..., A] to execute while learning.

        In a box: clip(action + scale * noise). One-hot: with probability `scale` a choice at random.

        Args:
            action: the planned one.
            scale: how much noise, at least 0.
            noise: standard normal, of the shape of `action`; None draws it.
        """
        self._check_action(action)
        check_size(scale=scale)
        if noise is None:
            noise = torch.randn_like(action)
        else:
            check_movable("noise", noise, action)
            if noise.shape != action.shape:
                raise ValueError(f"noise must be {list(action.shape)} (like action), got {list(noise.shape)}")
            noise = noise.to(action)
        return self._space.like(action).explore(action, scale, noise)

    def _check_action(self, action: Tensor) -> None:
        """Raise unless `action` is floats [..., A]."""
        check_last("action", action, self.action_dim, because="the planner's action_dim")
        check_floating("action", action)

    def __call__(
        self,
        state: Any,
        *,
        previous: Plan | None = None,
        is_first: Tensor | None = None,
        initial_mean: Tensor | None = None,
        noise: Tensor | None = None,
        dynamics_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        with_spread: bool = False,
    ) -> Plan:
        """Plan for every row of `state`.

        Args:
            state: what the dynamics start from, any pytree with at least one tensor; all its tensors are [B, ...].
            previous: the plan of the step before, to start from: its mean moved on by one step, with the middle of the
                box as the last action; how widely one searches starts afresh (of one-hot actions: half of each
                probability is the plan's, half is even). None starts from the middle throughout,
                as the paper does, to avoid local optima.
            is_first: [B] bool, rows that make nothing of `previous`, because their episode begins. None is none of
                them. Rows in which `previous` is not valid make nothing of it either.
            initial_mean: [H, B, A] finite, where to start instead, such as a policy's proposal.
            noise: [I, H, B, J, A], standard normal, from which the candidates are made; an iteration that makes fewer
                uses the first of them. None draws it.
            dynamics_noise: [I, H, B, R, S] with R the largest of num_rollouts; each iteration passes the first of them
                to `dynamics.rollout`. The dynamics may want another number than H. None draws it.
            generator: what noise is drawn from: the candidates', and the dynamics' too if they have `draw_noise`.
            with_spread: whether the plan tells the spread of the best in each iteration.

        Raises:
            ValueError: a shape or device that does not fit, including those of what the dynamics return, or both
                previous and initial_mean.
            TypeError: a state without any tensor, previous not a `Plan`, is_first not bool, or an argument, or what the
                dynamics return, of another kind.
        """
        batch_size, like = batch_of(state)
        most = max(self.num_rollouts)
        sizes = {"I": self.num_iterations, "H": self.horizon, "B": batch_size, "A": self.action_dim}
        because = "the planner's settings and the rows of state"
        check_flag(with_spread=with_spread)
        check_generator(generator, like)
        if noise is not None:
            check_noise("noise", noise, "I H B J A", like, because=because, J=self.num_candidates, **sizes)
        if dynamics_noise is not None:
            given = {"I": self.num_iterations, "B": batch_size, "R": most}
            check_noise("dynamics_noise", dynamics_noise, "I H B R S", like, because=because, **given)
        with torch.no_grad():
            space = self._space.like(like)
            plan = self._begin(space, like, sizes, previous, is_first, initial_mean)
            spread = []
            for i, (fresh, known) in enumerate(self._rounds):
                if noise is None:
                    size = (self.horizon, batch_size, fresh, self.action_dim)
                    draw = torch.randn(size, dtype=like.dtype, device=like.device, generator=generator)
                else:
                    draw = noise[i, :, :, :fresh].to(like)
                if dynamics_noise is None:
                    size = (self.horizon, batch_size, self.num_particles * (fresh + known), self.action_dim)
                    moves = self._draw_dynamics_noise(like, size, generator)
                else:
                    moves = dynamics_noise[i].to(like)
                plan = self._iterate(state, plan, space, draw, moves, i + 1 == self.num_iterations)
                spread.append(plan.spread)
        spreads = torch.stack([step for step in spread if step is not None]) if with_spread else None
        return plan._replace(spread=spreads)

    @abstractmethod
    def _candidates(self, plan: Plan, space: Any, noise: Tensor, last: bool) -> Tensor:
        """Return the candidates [H, B, J', A] of an iteration; `last` if none follows."""

    @abstractmethod
    def _refit(self, plan: Plan, space: Any, candidates: Tensor, returns: Tensor) -> Plan:
        """Return what is known after an iteration; what holds for rows without finite returns is replaced."""

    def _begin(
        self,
        space: Space,
        like: Tensor,
        sizes: dict[str, int],
        previous: Plan | None,
        is_first: Tensor | None,
        initial_mean: Tensor | None,
    ) -> Plan:
        """Return what is known before the first iteration."""
        shape = (self.horizon, sizes["B"], self.action_dim)
        mean, elites = space.middle.expand(shape), None
        because = "the planner's settings and the rows of state"
        if is_first is not None:
            check_rows("is_first", is_first, like, B=sizes["B"], because="the rows of state")
        if previous is not None:
            if initial_mean is not None:
                raise ValueError("previous and initial_mean must not be given together, got both; leave one out")
            check_plan("previous", previous, like, num_kept=self.num_kept, because=because, **sizes)
            known = previous.valid.to(like.device, non_blocking=True)
            if is_first is not None:
                known = known & ~is_first.to(like.device, non_blocking=True)
            # Moved into this planner's space: the plan may be another one's.
            mean = torch.where(known[:, None], _shift(space.resume(previous.mean.to(like)), space), mean)
            if previous.elites is not None and self.num_kept:
                # NaN marks rows that have none.
                kept = _shift(space.clip(previous.elites.to(like)), space)
                elites = torch.where(known[:, None, None], kept, torch.nan)
        elif initial_mean is not None:
            check_noise("initial_mean", initial_mean, "H B A", like, because=because, **sizes)
            mean = space.settle(initial_mean.to(like))
        # Copies, so that every iteration gets memory of the same kind: one graph serves them all when compiled.
        mean, std = mean.contiguous(), (self.initial_std * space.scale).expand(shape).contiguous()
        return Plan(
            action=space.clip(mean[0]),
            mean=mean,
            std=std,
            value=like.new_full((sizes["B"],), torch.nan),
            valid=torch.zeros(sizes["B"], dtype=torch.bool, device=like.device),
            elites=elites,
            spread=std,
        )

    def _iterate(
        self, state: Any, plan: Plan, space: Space, noise: Tensor, dynamics_noise: Tensor | None, last: bool
    ) -> Plan:
        """Make candidates, ask for their returns, learn from them. Everything random comes in."""
        candidates = self._candidates(plan, space, noise, last)
        count = candidates.shape[2]
        known = candidates.isfinite().all(-1).all(0)  # [B, J'], False where NaN stood for nothing
        candidates = torch.where(known[..., None], candidates, plan.mean.unsqueeze(2))
        rolled = candidates.repeat_interleave(self.num_particles, dim=2) if self.num_particles > 1 else candidates
        if dynamics_noise is not None:
            dynamics_noise = dynamics_noise[:, :, : rolled.shape[2]]
        returns = self.dynamics.rollout(state, rolled, noise=dynamics_noise)
        check_shape("what dynamics.rollout returns", returns, "B J", B=plan.value.shape[0], J=rolled.shape[2])
        check_numbers("what dynamics.rollout returns", returns, plan.value)
        returns = returns.to(plan.mean)
        if self.num_particles > 1:
            returns = returns.reshape(-1, count, self.num_particles).mean(2)
        returns = torch.where(known & returns.isfinite(), returns, -torch.inf)
        new = self._refit(plan, space, candidates, returns)
        found = (returns > -torch.inf).any(1)
        elites, spread = new.elites, plan.std if new.spread is None else new.spread
        if elites is not None and plan.elites is not None:
            elites = torch.where(found[:, None, None], elites, plan.elites)
        return Plan(
            action=torch.where(found[:, None], new.action, plan.action),
            mean=torch.where(found[:, None], new.mean, plan.mean),
            std=torch.where(found[:, None], new.std, plan.std),
            value=torch.where(found, new.value, plan.value),
            valid=plan.valid | found,
            elites=elites,
            spread=torch.where(found[:, None], spread, plan.std),
        )

    def _draw_dynamics_noise(
        self, like: Tensor, size: tuple[int, ...], generator: torch.Generator | None
    ) -> Tensor | None:
        """Return the noise that the dynamics want for actions of this size, if they leave drawing it to the planner."""
        draw = getattr(self.dynamics, "draw_noise", None)
        if draw is None:
            return None
        noise: Tensor | None = draw(like.new_empty(()).expand(size), generator=generator)
        if noise is not None:
            check_dense("what dynamics.draw_noise returns", noise, " [H, B, J, ...]")
            if noise.ndim < 3 or noise.shape[1:3] != size[1:3]:
                expected = f"[H, B, J, ...] with B={size[1]}, J={size[2]}, as the actions it is given"
                raise ValueError(f"what dynamics.draw_noise returns must be {expected}, got {list(noise.shape)}")
        return noise


def top(candidates: Tensor, returns: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` best candidates [H, B, K, A] and their returns [B, K], best first."""
    scores, index = returns.topk(count, dim=1)
    index = index[None, :, :, None].expand(candidates.shape[0], -1, -1, candidates.shape[3])
    return candidates.gather(2, index), scores


def _shift(actions: Tensor, space: Space) -> Tensor:
    """Return actions [H, B, ..., A] moved on by one step; the last is the middle."""
    return torch.cat([actions[1:], space.middle.expand_as(actions[:1])])

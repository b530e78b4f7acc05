"""The learned model as dynamics. The `Dynamics` protocol itself stands in `planet_lib.planning.protocol`.

`LatentDynamics` asks a cell and a reward head what actions lead to. It sees neither images nor environments, and holds
no state of its own.

Source: Hafner et al. 2019 (arXiv:1811.04551), section 3: one open-loop trajectory per candidate, whose return is the
plain sum of the reward head's means. Differences: a continue head, where there is one, weighs the rewards, and so does
a discount, where one is wanted.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

# torch's own definition of a pytree; it has no public name yet, and torch.compile traces through it.
from torch.utils._pytree import tree_map

from planet_lib._shapes import check_choice, check_device, check_dtype, check_members, check_shape, check_states
from planet_lib.models.foresight import features_ahead, reads_many_steps
from planet_lib.models.world_model import WorldModel
from planet_lib.planning._checks import check_actions, check_discount, check_generator, sizes_of
from planet_lib.planning._memory import keep_freed_memory

Start = Literal["shared", "sampled"]
Transition = Literal["drawn", "mean"]


class LatentDynamics:
    """A learned model as dynamics: candidates are tried out in the latent space, without a single image.

    state_t+1 ~ prior(state_t, action_t) from state_0;  return = sum_t=1..H discount^(t-1) alive_t reward(state_t)

    with alive_1 = 1 and alive_t+1 = alive_t sigmoid(continue(state_t)) if the model has a continue head, else 1: what
    comes after the end of an episode earns nothing. The state that is already reached earns nothing either. Heads read
    the features of states. Planners call this without gradients; called directly, it is differentiable in state and
    actions.

    Shapes: state, the cell's [B, ...]; actions [H, B, J, A]; noise [H, B, J, S] with S = cell.noise_dim, or
    [H + 1, B, J, S] where the start is sampled, its first row for the start -> [B, J].

    Args:
        model: the `WorldModel`, whose cell and heads are used as they are at each call; not copied.
        start: what candidates start from. "shared": the state that is given, one sample of the posterior, as in
            google-research/planet. "sampled": each from its own sample of the same distribution, as the paper's
            algorithm 2 has it; the cell must have `redraw`.
        transition: how a candidate goes from state to state. "drawn": a sample of the prior at each step, the paper's.
            "mean": the mean of the prior, from the mean of the state that is given (noise of zero, as the cell takes
            it), so that candidates differ by their actions alone, and returns repeat. The cell must have `redraw`;
            noise is neither drawn nor taken.
        discount: of rewards per step; 1 is the paper's plain sum.
        objective: what is to be summed instead of the predicted reward, a function of the state after a step and the
            action that led to it, both of N = B * J rows -> [N]. With it a model can be planned with for a purpose that
            it was not trained for, and needs no trained reward head.

    Raises:
        ValueError: start, transition or discount out of its range, or a sampled start where transitions are means. When
            called: actions do not end in the cell's action_dim, state, noise or what a head returns has another shape,
            or noise is given where transitions are means.
        TypeError: start is "sampled", or transition is "mean", and the cell has no `redraw`.

    Source: arXiv:1811.04551, algorithm 2; google-research/planet `scripts/objectives.py` (the undiscounted sum).

    Example:
        >>> from planet_lib.models import Decoder, RewardHead, RSSMCell, VectorEncoder, WorldModel
        >>> encoder = VectorEncoder(obs_dim=5)
        >>> cell = RSSMCell(action_dim=2, embed_dim=encoder.embed_dim)
        >>> model = WorldModel(encoder, cell, Decoder(cell.feature_dim, (5,)), RewardHead(cell.feature_dim))
        >>> LatentDynamics(model).rollout(cell.initial(3), torch.zeros(12, 3, 100, 2)).shape
        torch.Size([3, 100])
        >>> still = LatentDynamics(model, objective=lambda state, action: -action.square().sum(-1))
        >>> still.rollout(cell.initial(1), torch.ones(12, 1, 2, 2))
        tensor([[-24., -24.]])
    """

    def __init__(
        self,
        model: WorldModel,
        *,
        start: Start = "shared",
        transition: Transition = "drawn",
        discount: float = 1.0,
        objective: Callable[[Any, Tensor], Tensor] | None = None,
    ) -> None:
        check_members("model", model, "a WorldModel", "cell", "reward_head", "continue_head")
        check_choice("start", start, get_args(Start))
        check_discount(discount)
        given: object = objective
        if given is not None and not callable(given):
            raise TypeError(f"objective must be a function of state and action, or None, got {type(given).__name__}")
        check_choice("transition", transition, get_args(Transition))
        if start == "sampled" and transition == "mean":
            raise ValueError(
                "start must be 'shared' where transition is 'mean', which starts from the mean, got 'sampled'"
            )
        if (start, transition) != ("shared", "drawn") and not hasattr(model.cell, "redraw"):
            setting = "start 'sampled'" if start == "sampled" else "transition 'mean'"
            got = f"{type(model.cell).__name__} without"
            raise TypeError(f"{setting} needs a cell with redraw(state, noise), got {got}; use 'shared' and 'drawn'")
        self.model, self.start, self.transition = model, start, transition
        self.discount, self.objective = float(discount), objective

    def draw_noise(self, actions: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
        """Return the standard normal noise that `rollout` takes for these actions; None where none is taken."""
        check_actions(actions)
        check_generator(generator, actions)
        rows, dim = len(actions) + (self.start == "sampled"), self.model.cell.noise_dim
        if dim == 0 or self.transition == "mean":
            return None
        size = (rows, *actions.shape[1:3], dim)
        return torch.randn(size, dtype=actions.dtype, device=actions.device, generator=generator)

    def rollout(self, state: Any, actions: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the predicted return [B, J] of every candidate; see the class."""
        cell = self.model.cell
        check_shape("actions", actions, "H B J A", A=cell.action_dim, because="the cell's action_dim")
        check_actions(actions)
        horizon, batch_size, num_candidates, _ = actions.shape
        own = cell.initial(1) if hasattr(cell, "initial") else None
        check_states("state", state, own, batch_size, device=actions.device, because="from actions")
        sampled, mean = self.start == "sampled", self.transition == "mean"
        if mean and noise is not None:
            raise ValueError(f"noise must be None where transition is 'mean', got {sizes_of(noise)}")
        if noise is None:
            noise = self.draw_noise(actions)
        else:
            sizes = {"H": horizon + sampled, "B": batch_size, "J": num_candidates, "S": cell.noise_dim}
            check_shape("noise", noise, "H B J S", because="as the actions, and the cell's noise_dim", **sizes)
            check_dtype("noise", noise, actions.dtype, because="as the actions")
            check_device("noise", noise, actions.device, because="as the actions")
        dtype = next((leaf.dtype for leaf in state if leaf.is_floating_point()), actions.dtype)
        check_dtype("actions", actions, dtype, because="as the state")
        none = actions.new_zeros(batch_size * num_candidates, cell.noise_dim) if mean and cell.noise_dim else None
        steps = [none] * (horizon + sampled) if noise is None else noise.flatten(1, 2).unbind()
        actions = actions.flatten(1, 2)  # rows [B * J] are what matrix products like best
        optional: Any = cell  # redraw is optional, and so no part of the protocol
        if none is not None:
            state = optional.redraw(state, none[:batch_size])
        state = tree_map(lambda leaf: leaf.repeat_interleave(num_candidates, dim=0), state)
        if sampled:
            state, steps = optional.redraw(state, steps[0]), steps[1:]
        total = self._foreseen(state, actions, None if mean or noise is None else noise[sampled:].flatten(1, 2))
        if total is None:
            total = self._stepped(state, actions, steps)
        return total.reshape(batch_size, num_candidates)

    def _stepped(self, state: Any, actions: Tensor, steps: Sequence[Tensor | None]) -> Tensor:
        """Return what rows [N] earn, asking the cell step by step."""
        total: Tensor = actions.new_zeros(actions.shape[1])
        weight: Tensor | float | None = None  # of a reward; None is 1, which spares a product at each step
        for t in range(len(actions)):
            state = self.model.cell.prior(state, actions[t], steps[t])
            # At each step, since one call after the loop would have to hold H * B * J rows of features.
            features = self.model.cell.features(state)
            reward = self._reward(state, features, actions[t])
            total = total + (reward if weight is None else weight * reward)
            for factor in self._factors(features) if t + 1 < len(actions) else ():
                weight = factor if weight is None else weight * factor
        return total

    def _foreseen(self, state: Any, actions: Tensor, noise: Tensor | None) -> Tensor | None:
        """Return the same in less time, or None where cell, heads or circumstances ask for each step's own call."""
        reward_head, continue_head = self.model.reward_head, self.model.continue_head
        if self.objective is not None or not reads_many_steps(reward_head):
            return None
        if continue_head is not None and not reads_many_steps(continue_head):
            return None
        pieces = features_ahead(self.model.cell, state, actions, noise)
        if pieces is None:
            return None
        keep_freed_memory()
        rows = actions.shape[1]
        total: Tensor = actions.new_zeros(rows)
        weight: Tensor | float | None = None
        for features in pieces:
            flat = features.flatten(0, 1)
            rewards = reward_head(flat).view(-1, rows)
            factors = [each if isinstance(each, float) else each.view(-1, rows) for each in self._factors(flat)]
            for t, reward in enumerate(rewards):
                total = total + (reward if weight is None else weight * reward)
                for each in factors:
                    factor = each if isinstance(each, float) else each[t]
                    weight = factor if weight is None else weight * factor
        return total

    def _factors(self, features: Tensor) -> list[Tensor | float]:
        """Return by what the rewards of all later steps are to be multiplied."""
        factors: list[Tensor | float] = [] if self.discount == 1 else [self.discount]
        if self.model.continue_head is not None:
            goes_on = torch.sigmoid(self.model.continue_head(features))
            check_shape("the continue head's output", goes_on, "N", N=len(features), because="its rows, B * J")
            factors.append(goes_on)
        return factors

    def _reward(self, state: Any, features: Tensor, action: Tensor) -> Tensor:
        """Return what a step earns [N]."""
        if self.objective is None:
            reward, name = self.model.reward_head(features), "the reward head's output"
        else:
            reward, name = self.objective(state, action), "what objective returns"
        check_shape(name, reward, "N", N=len(action), because="its rows, B * J")
        result: Tensor = reward
        return result

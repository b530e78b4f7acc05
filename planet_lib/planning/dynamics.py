"""What a planner plans with: the `Dynamics` protocol, and the learned model as one.

`LatentDynamics` asks a cell and a reward head what actions lead to. It sees neither images nor environments, and holds
no state of its own. The protocol itself stands beside its user, in `planet_lib.planning.cem`.

Source: Hafner et al. 2019 (arXiv:1811.04551), section 3: one open-loop trajectory per candidate, whose return is the
plain sum of the reward head's means. Difference: a continue head, where there is one, weighs the rewards. As in
google-research/planet, all candidates of an environment start from one sample of its posterior (the paper's algorithm 2
draws one for each).
"""

from typing import Any

import torch
from torch import Tensor

# torch's own definition of a pytree; it has no public name yet, and torch.compile traces through it.
from torch.utils._pytree import tree_leaves, tree_map

from planet_lib._shapes import check_shape
from planet_lib.models.rollout import check_leading
from planet_lib.models.world_model import WorldModel
from planet_lib.planning.cem import Dynamics

__all__ = ["Dynamics", "LatentDynamics"]


class LatentDynamics:
    """A learned model as dynamics: candidates are tried out in the latent space, without a single image.

    state_t+1 ~ prior(state_t, action_t) from state_0 = state;  return = sum over t = 1..H of alive_t reward(state_t)

    with alive_1 = 1 and alive_t+1 = alive_t sigmoid(continue(state_t)) if the model has a continue head, else 1: what
    comes after the end of an episode earns nothing. No discount, and the state that is already reached earns nothing
    either. Heads read the features of states. `CEMPlanner` calls this without
    gradients; called directly, it is differentiable in state and actions.

    Shapes: state, the cell's [B, ...]; actions [H, B, J, A]; noise [H, B, J, S] with S = cell.noise_dim -> [B, J].

    Args:
        model: the `WorldModel`, whose cell and reward head are used as they are at each call; not copied.

    Raises:
        ValueError: when called: actions do not end in the cell's action_dim, or state, noise or what a head returns has
            another shape.

    Source: arXiv:1811.04551, algorithm 2; google-research/planet `scripts/objectives.py` (the undiscounted sum).

    Example:
        >>> from planet_lib.models import Decoder, RewardHead, RSSMCell, VectorEncoder, WorldModel
        >>> encoder = VectorEncoder(obs_dim=5)
        >>> cell = RSSMCell(action_dim=2, embed_dim=encoder.embed_dim)
        >>> model = WorldModel(encoder, cell, Decoder(cell.feature_dim, (5,)), RewardHead(cell.feature_dim))
        >>> LatentDynamics(model).rollout(cell.initial(3), torch.zeros(12, 3, 100, 2)).shape
        torch.Size([3, 100])
    """

    def __init__(self, model: WorldModel) -> None:
        self.model = model

    def rollout(self, state: Any, actions: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the predicted return [B, J] of every candidate; see the class."""
        cell = self.model.cell
        check_shape("actions", actions, "H B J A", A=cell.action_dim, because="the cell's action_dim")
        horizon, batch_size, num_candidates, _ = actions.shape
        check_leading("state", tuple(tree_leaves(state)), batch_size, because="from actions")
        if noise is not None:
            sizes = {"H": horizon, "B": batch_size, "J": num_candidates, "S": cell.noise_dim}
            check_shape("noise", noise, "H B J S", because="as the actions, and the cell's noise_dim", **sizes)
            noise = noise.flatten(1, 2)
        actions = actions.flatten(1, 2)  # rows [B * J] are what matrix products like best
        state = tree_map(lambda leaf: leaf.repeat_interleave(num_candidates, dim=0), state)
        total: Tensor = actions.new_zeros(batch_size * num_candidates)
        alive: Tensor | None = None
        for t in range(horizon):
            state = cell.prior(state, actions[t], None if noise is None else noise[t])
            # At each step, since one call after the loop would have to hold H * B * J rows of features.
            features = cell.features(state)
            reward = self.model.reward_head(features)
            check_shape("the reward head's output", reward, "N", N=len(total), because="its rows, B * J")
            total = total + (reward if alive is None else alive * reward)
            if self.model.continue_head is not None and t + 1 < horizon:
                goes_on = torch.sigmoid(self.model.continue_head(features))
                check_shape("the continue head's output", goes_on, "N", N=len(total), because="its rows, B * J")
                alive = goes_on if alive is None else alive * goes_on
        return total.reshape(batch_size, num_candidates)

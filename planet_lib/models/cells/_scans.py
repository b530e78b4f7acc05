"""The cells' own time loops: filtering, reduced to what depends on the step before. For this package alone.

The products with actions and embeddings are made for all steps beforehand, by splitting the weights of the layers that
read them; the prior of all steps is one product after the loop where the posterior does not need it. Where is_first
holds, the incoming deter, stoch and action are zero (filled, not multiplied: a NaN must not survive a reset).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from planet_lib.models.cells._fused import covers, filter_fused
from planet_lib.models.cells._parts import DeterministicPath, GaussianHead, MeanHead
from planet_lib.types import State


def filter_recurrent(
    path: DeterministicPath,
    head: GaussianHead | MeanHead,
    state: State,
    embed: Tensor,
    action: Tensor,
    is_first: Tensor,
    noise: Tensor | None,
) -> State:
    """Posteriors [T, B, ...] of RSSM and RNN, which read deter' and embed; without noise, stoch is the mean."""
    if covers(path, head, state, embed, action, is_first, noise):
        return filter_fused(filter_by_steps, path, head, state, embed, action, is_first, noise)
    return filter_by_steps(path, head, state, embed, action, is_first, noise)


def filter_by_steps(
    path: DeterministicPath,
    head: GaussianHead | MeanHead,
    state: State,
    embed: Tensor,
    action: Tensor,
    is_first: Tensor,
    noise: Tensor | None,
) -> State:
    """Filter as `filter_recurrent` does, in operations that anything can follow."""
    first = is_first.unsqueeze(-1)
    (stoch_weight, action_weight), bias = path.split(*path.sizes)
    (deter_weight, embed_weight), head_bias = head.split(state.deter.shape[-1], embed.shape[-1])
    # unbind, not indexing: one node for all steps in the backward pass instead of a sum of T padded gradients.
    from_action = F.linear(action.masked_fill(first, 0.0), action_weight, bias).unbind()
    from_embed = F.linear(embed, embed_weight, head_bias).unbind()
    noises = [None] * len(first) if noise is None else noise.unbind()
    deter, stoch = state.deter, state.stoch
    deters: list[Tensor] = []
    means: list[Tensor] = []
    stds: list[Tensor] = []
    stochs: list[Tensor] = []
    for step, reset in enumerate(first.unbind()):
        hidden = path.hidden_from(F.linear(stoch.masked_fill(reset, 0.0), stoch_weight, from_action[step]))
        deter = path.gru(hidden, deter.masked_fill(reset, 0.0))
        mean, std = head.distribution(head.hidden_from(F.linear(deter, deter_weight, from_embed[step])))
        drawn = noises[step]
        stoch = mean if drawn is None else torch.addcmul(mean, std, drawn)
        for sequence, value in ((deters, deter), (means, mean), (stds, std), (stochs, stoch)):
            sequence.append(value)
    return State(*(torch.stack(sequence) for sequence in (deters, stochs, means, stds)))


def filter_stochastic(
    prior_head: GaussianHead,
    posterior_head: GaussianHead,
    state: State,
    embed: Tensor,
    action: Tensor,
    is_first: Tensor,
    noise: Tensor,
) -> tuple[tuple[Tensor, Tensor], State]:
    """Mean and std of the priors, and the posteriors, of the SSM: its posterior reads the prior's distribution."""
    first = is_first.unsqueeze(-1)
    stoch_dim = state.stoch.shape[-1]
    (stoch_weight, action_weight), bias = prior_head.split(stoch_dim, action.shape[-1])
    (prior_weight, embed_weight), head_bias = posterior_head.split(2 * stoch_dim, embed.shape[-1])
    from_action = F.linear(action.masked_fill(first, 0.0), action_weight, bias).unbind()
    from_embed = F.linear(embed, embed_weight, head_bias).unbind()
    noises = noise.unbind()
    stoch = state.stoch
    prior_means: list[Tensor] = []
    prior_stds: list[Tensor] = []
    means: list[Tensor] = []
    stds: list[Tensor] = []
    stochs: list[Tensor] = []
    for step, reset in enumerate(first.unbind()):
        hidden = prior_head.hidden_from(F.linear(stoch.masked_fill(reset, 0.0), stoch_weight, from_action[step]))
        prior_mean, prior_std = prior_head.distribution(hidden)
        read = torch.cat([prior_mean, prior_std], -1)
        hidden = posterior_head.hidden_from(F.linear(read, prior_weight, from_embed[step]))
        mean, std = posterior_head.distribution(hidden)
        stoch = torch.addcmul(mean, std, noises[step])
        pairs = ((prior_means, prior_mean), (prior_stds, prior_std), (means, mean), (stds, std), (stochs, stoch))
        for sequence, value in pairs:
            sequence.append(value)
    deter = stoch.new_zeros(*embed.shape[:2], 0)
    posterior = State(deter, torch.stack(stochs), torch.stack(means), torch.stack(stds))
    return (torch.stack(prior_means), torch.stack(prior_stds)), posterior

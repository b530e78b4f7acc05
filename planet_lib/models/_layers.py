"""The layers the three cells are made of, and the RSSM's time loop. For `cells.py` alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planet_lib._shapes import check_positive
from planet_lib.models import gaussian
from planet_lib.types import State


class DeterministicPath(nn.Module):
    """deter' = GRU(relu(W [stoch, action] + b), deter) on any leading axes."""

    def __init__(self, action_dim: int, deter_dim: int, stoch_dim: int) -> None:
        super().__init__()
        self.deter_dim, self.stoch_dim = deter_dim, stoch_dim
        self.embed = nn.Linear(stoch_dim + action_dim, deter_dim)
        self.gru = nn.GRUCell(deter_dim, deter_dim)

    def forward(self, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
        """Return deter' [..., D]."""
        hidden = torch.relu(self.embed(torch.cat([stoch, action], -1)))
        flat: Tensor = self.gru(hidden.reshape(-1, self.deter_dim), deter.reshape(-1, self.deter_dim))
        return flat.reshape(*hidden.shape[:-1], self.deter_dim)


class GaussianHead(nn.Module):
    """One hidden relu layer, then mean (linear) and std (softplus + min_std)."""

    def __init__(self, input_dim: int, hidden_dim: int, stoch_dim: int, min_std: float) -> None:
        super().__init__()
        if not min_std >= 0:
            raise ValueError(f"min_std must be at least 0, got {min_std}")
        self.min_std = min_std
        self.hidden = nn.Linear(input_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, 2 * stoch_dim)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and std [..., S]."""
        return self.from_hidden(self.hidden(inputs))

    def from_hidden(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and std, given what the hidden layer computed before its relu."""
        mean, raw_std = self.out(torch.relu(hidden)).chunk(2, -1)
        return mean, F.softplus(raw_std) + self.min_std


class MeanHead(nn.Module):
    """One hidden relu layer, then the mean (linear)."""

    def __init__(self, input_dim: int, hidden_dim: int, stoch_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(input_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, stoch_dim)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the mean [..., S]."""
        mean: Tensor = self.out(torch.relu(self.hidden(inputs)))
        return mean


def zero_state(cell: nn.Module, batch_size: int, deter_dim: int, stoch_dim: int) -> State:
    """Zeros: deter [B, D], stoch, mean and std [B, S], on the device and in the dtype of the cell's parameters."""
    check_positive(batch_size=batch_size)
    like = next(cell.parameters())
    deter, stoch = like.new_zeros(batch_size, deter_dim), like.new_zeros(batch_size, stoch_dim)
    return State(deter=deter, stoch=stoch, mean=stoch, std=stoch)


def gaussian_state(deter: Tensor, distribution: tuple[Tensor, Tensor], noise: Tensor | None) -> State:
    """A state whose stoch is drawn from N(mean, std^2)."""
    mean, std = distribution
    return State(deter=deter, stoch=gaussian.sample(mean, std, noise), mean=mean, std=std)


def mean_state(deter: Tensor, mean: Tensor) -> State:
    """A state whose stoch is its mean, and whose std is 1."""
    return State(deter=deter, stoch=mean, mean=mean, std=torch.ones_like(mean))


def filter_sequence(
    path: DeterministicPath,
    head: GaussianHead,
    state: State,
    embed: Tensor,
    action: Tensor,
    is_first: Tensor,
    noise: Tensor | None,
) -> tuple[Tensor, State]:
    """The RSSM's time loop, reduced to what depends on the step before.

    The products with action and embedding are made for all steps beforehand, by splitting the weights of the layers
    that read [stoch, action] and [deter, embed]; where is_first holds, the incoming deter, stoch and action are zero
    (filled, not multiplied: a NaN must not survive a reset).
    """
    first = is_first.unsqueeze(-1)
    stoch_weight, action_weight = path.embed.weight.tensor_split([path.stoch_dim], -1)
    deter_weight, embed_weight = head.hidden.weight.tensor_split([path.deter_dim], -1)
    from_action = F.linear(action.masked_fill(first, 0.0), action_weight, path.embed.bias)
    from_embed = F.linear(embed, embed_weight, head.hidden.bias)
    if noise is None:
        noise = torch.randn(*embed.shape[:-1], path.stoch_dim, dtype=embed.dtype, device=embed.device)
    deter, stoch = state.deter, state.stoch
    deters: list[Tensor] = []
    means: list[Tensor] = []
    stds: list[Tensor] = []
    stochs: list[Tensor] = []
    for step in range(embed.shape[0]):
        hidden = torch.relu(F.linear(stoch.masked_fill(first[step], 0.0), stoch_weight, from_action[step]))
        deter = path.gru(hidden, deter.masked_fill(first[step], 0.0))
        mean, std = head.from_hidden(F.linear(deter, deter_weight, from_embed[step]))
        stoch = mean + std * noise[step]
        for sequence, value in ((deters, deter), (means, mean), (stds, std), (stochs, stoch)):
            sequence.append(value)
    all_deter = torch.stack(deters)
    return all_deter, State(deter=all_deter, stoch=torch.stack(stochs), mean=torch.stack(means), std=torch.stack(stds))

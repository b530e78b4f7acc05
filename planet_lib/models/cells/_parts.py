"""What the three cells are made of. For this package alone; the time loops are in `_scans.py`."""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planet_lib._shapes import check_choice, check_scales
from planet_lib.models._layers import Hidden, sizes
from planet_lib.types import State

GRUKind = Literal["reset_after", "reset_before"]
MinStdMode = Literal["add", "clamp"]
Init = Literal["torch", "glorot"]


class GRU(nn.Module):
    """One step of a gated recurrent unit, rows of the weights in the order reset r, update z, candidate n.

    reset_after (PyTorch): n = tanh(W_n x + b_n + r * (U_n h + c_n)), two sets of biases.
    reset_before (TensorFlow's GRUBlockCell): n = tanh(W_n x + b_n + U_n (r * h)), one set of biases.
    Both: h' = (1 - z) n + z h.
    """

    def __init__(self, input_dim: int, deter_dim: int, kind: GRUKind) -> None:
        super().__init__()
        check_choice("gru", kind, get_args(GRUKind))
        self.deter_dim, self.kind = deter_dim, kind
        bound = 1 / math.sqrt(deter_dim)

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

        self.weight_ih = uniform(3 * deter_dim, input_dim)
        self.weight_hh = uniform(3 * deter_dim, deter_dim)
        self.bias_ih = uniform(3 * deter_dim)
        self.bias_hh = uniform(3 * deter_dim) if kind == "reset_after" else None

    def forward(self, inputs: Tensor, deter: Tensor) -> Tensor:
        """Return h' [..., D] from x [..., I] and h [..., D]; in the type of h, whatever the products are made in.

        Under autocast torch's own step would round gates and memory too: an update gate close to 1 becomes 1.
        """
        if self.bias_hh is not None and not torch.is_autocast_enabled(deter.device.type):
            flat = torch.gru_cell(
                inputs.reshape(-1, inputs.shape[-1]),
                deter.reshape(-1, self.deter_dim),
                self.weight_ih,
                self.weight_hh,
                self.bias_ih,
                self.bias_hh,
            )
            return flat.reshape(deter.shape)
        from_input = F.linear(inputs, self.weight_ih, self.bias_ih).to(deter.dtype)
        gates, candidate = from_input.tensor_split([2 * self.deter_dim], -1)
        if self.bias_hh is not None:
            from_deter = F.linear(deter, self.weight_hh, self.bias_hh).to(deter.dtype)
            deter_gates, deter_candidate = from_deter.tensor_split([2 * self.deter_dim], -1)
            reset, update = torch.sigmoid(gates + deter_gates).chunk(2, -1)
            new = torch.tanh(candidate + reset * deter_candidate)
        else:
            gates_weight, candidate_weight = self.weight_hh.tensor_split([2 * self.deter_dim])
            reset, update = torch.sigmoid(gates + F.linear(deter, gates_weight)).chunk(2, -1)
            new = torch.tanh(candidate + F.linear(reset * deter, candidate_weight))
        return new + update * (deter - new)

    @torch.no_grad()
    def init_glorot_(self) -> None:
        """TensorFlow's: Glorot over [x, h] together, for both gates and for the candidate; gate biases 1, others 0."""
        fan_in = self.weight_ih.shape[1] + self.deter_dim
        for rows, fan_out in (((0, 2), 2 * self.deter_dim), ((2, 3), self.deter_dim)):
            bound = math.sqrt(6 / (fan_in + fan_out))
            for weight in (self.weight_ih, self.weight_hh):
                weight[rows[0] * self.deter_dim : rows[1] * self.deter_dim].uniform_(-bound, bound)
        self.bias_ih.zero_()[: 2 * self.deter_dim] = 1.0
        if self.bias_hh is not None:
            self.bias_hh.zero_()


class DeterministicPath(Hidden):
    """deter' = GRU(hidden([stoch, action]), deter) on any leading axes."""

    def __init__(
        self, action_dim: int, deter_dim: int, stoch_dim: int, num_layers: int, activation: str, gru: GRUKind
    ) -> None:
        super().__init__(stoch_dim + action_dim, deter_dim, num_layers, activation)
        self.sizes = (stoch_dim, action_dim)
        self.gru = GRU(deter_dim, deter_dim, gru)

    def forward(self, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
        """Return deter' [..., D]."""
        next_deter: Tensor = self.gru(self.hidden(torch.cat([stoch, action], -1)), deter)
        return next_deter


class GaussianHead(Hidden):
    """Hidden layers, then mean (linear) and std: softplus + min_std ("add"), or not below min_std ("clamp")."""

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        stoch_dim: int,
        num_layers: int,
        activation: str,
        min_std: float,
        min_std_mode: MinStdMode,
    ) -> None:
        super().__init__(input_dim, hidden_dim, num_layers, activation)
        check_scales(min_std=min_std)
        largest = torch.finfo(torch.get_default_dtype()).max
        if min_std > largest:
            raise ValueError(f"min_std must be at most {largest:.3g}, as the weights are, got {min_std}")
        check_choice("min_std_mode", min_std_mode, get_args(MinStdMode))
        self.min_std, self.min_std_mode = float(min_std), min_std_mode
        self.out = nn.Linear(hidden_dim, 2 * stoch_dim)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and std [..., S], in the type of the weights: under autocast too."""
        return self.distribution(self.hidden(inputs))

    def distribution(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and std, given the last hidden layer."""
        mean, raw_std = self.out(hidden).to(self.out.weight.dtype).chunk(2, -1)
        # Half of each row: as it lies, softplus would take it number by number, ten times slower on a CPU.
        spread = F.softplus(raw_std.contiguous())
        return mean, spread + self.min_std if self.min_std_mode == "add" else spread.clamp(min=self.min_std)

    @torch.no_grad()
    def init_glorot_(self) -> None:
        """Mean and std are two layers in TensorFlow, so each has a Glorot bound of its own."""
        for half in self.out.weight.chunk(2):
            nn.init.xavier_uniform_(half)


class MeanHead(Hidden):
    """Hidden layers, then the mean (linear); std is 1."""

    def __init__(self, input_dim: int, hidden_dim: int, stoch_dim: int, num_layers: int, activation: str) -> None:
        super().__init__(input_dim, hidden_dim, num_layers, activation)
        self.out = nn.Linear(hidden_dim, stoch_dim)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and std [..., S], in the type of the weights: under autocast too."""
        return self.distribution(self.hidden(inputs))

    def distribution(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and std, given the last hidden layer."""
        mean = self.out(hidden).to(self.out.weight.dtype)
        return mean, torch.ones_like(mean)


def zero_state(cell: nn.Module, batch_size: int, deter_dim: int, stoch_dim: int) -> State:
    """Zeros: deter [B, D], stoch, mean and std [B, S], on the device and in the dtype of the cell's parameters."""
    (batch_size,) = sizes(batch_size=batch_size)
    like = next(cell.parameters())
    deter, stoch = like.new_zeros(batch_size, deter_dim), like.new_zeros(batch_size, stoch_dim)
    return State(deter=deter, stoch=stoch, mean=stoch, std=stoch)


def standard_state(state: State) -> State:
    """The state of zero mean and unit std, with the same deterministic path."""
    zero = torch.zeros_like(state.mean)
    return State(deter=state.deter, stoch=zero, mean=zero, std=torch.ones_like(zero))


def drawn_state(deter: Tensor, distribution: tuple[Tensor, Tensor], noise: Tensor | None) -> State:
    """A state whose stoch is drawn from N(mean, std^2)."""
    mean, std = distribution
    drawn = torch.randn_like(mean) if noise is None else noise
    return State(deter=deter, stoch=mean + std * drawn, mean=mean, std=std)


def mean_state(deter: Tensor, distribution: tuple[Tensor, Tensor]) -> State:
    """A state whose stoch is its mean."""
    mean, std = distribution
    return State(deter=deter, stoch=mean, mean=mean, std=std)


def drawn_noise(noise: Tensor | None, embed: Tensor, state: State) -> Tensor:
    """The noise given, or standard normal noise for all rows of embed at once, of the state's type."""
    if noise is not None:
        return noise
    return state.stoch.new_empty(*embed.shape[:-1], state.stoch.shape[-1]).normal_()

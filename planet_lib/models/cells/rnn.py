"""The purely deterministic model: one time step, and a faster way to filter a sequence. Knows no pixels.

Source: google-research/planet models/rssm.py with `mean_only`. Differences: its prior is trained, and as in `RSSMCell`.
"""

from typing import get_args

import torch
from torch import Tensor, nn

from planet_lib._shapes import check_choice
from planet_lib.models import gaussian
from planet_lib.models._layers import sizes
from planet_lib.models.cells._checks import check_alike, check_scan, check_state, check_step
from planet_lib.models.cells._parts import (
    DeterministicPath,
    GRUKind,
    Init,
    MeanHead,
    mean_state,
    standard_state,
    zero_state,
)
from planet_lib.models.cells._scans import filter_recurrent
from planet_lib.models.initialise import init_glorot_
from planet_lib.types import State


class RNNCell(nn.Module):
    """One step of the purely deterministic model: the RSSM with every sample replaced by its mean.

    deter' = GRU(relu(W [stoch, action] + b), deter);  prior stoch' = f(deter');  posterior stoch' = g(deter', embed)

    Its divergence is half the squared distance of the two means, which is the KL between Gaussians of unit variance, so
    that the prior is trained; train it with free_nats 0. A KL scale of 0 gives the original's RNN baseline.

    Shapes: State of deter [..., D], stoch = mean [..., S], std [..., S] of ones; action [..., A]; embed [..., E];
    features [..., D + S] = [deter, stoch]; no noise (noise_dim is 0, and a noise argument is not read).

    Args:
        action_dim: A.
        embed_dim: E, the encoder's embed_dim.
        deter_dim: D, the size of the GRU and of the layers in front of it.
        stoch_dim: S, kept under this name though nothing is drawn.
        hidden_dim: size of the hidden layers in front of each mean.
        num_layers: hidden layers in front of the GRU, and of each mean.
        activation: behind each hidden layer: relu, elu, silu, gelu or tanh.
        gru: "reset_after" or "reset_before", as in `RSSMCell`.
        init: "torch" or "glorot", as in `RSSMCell`.

    Raises:
        ValueError: a size below 1, an unknown choice, or a tensor whose last axis does not fit.

    Source: google-research/planet, RSSM with `mean_only`; the trained prior is ours.

    Example:
        >>> cell = RNNCell(action_dim=6, embed_dim=1024)
        >>> state = cell.prior(cell.initial(2), torch.zeros(2, 6))
        >>> torch.equal(state.stoch, state.mean), cell.noise_dim
        (True, 0)
    """

    def __init__(
        self,
        action_dim: int,
        embed_dim: int,
        *,
        deter_dim: int = 200,
        stoch_dim: int = 30,
        hidden_dim: int = 200,
        num_layers: int = 1,
        activation: str = "relu",
        gru: GRUKind = "reset_after",
        init: Init = "torch",
    ) -> None:
        super().__init__()
        action_dim, embed_dim = sizes(action_dim=action_dim, embed_dim=embed_dim)
        deter_dim, stoch_dim = sizes(deter_dim=deter_dim, stoch_dim=stoch_dim)
        hidden_dim, num_layers = sizes(hidden_dim=hidden_dim, num_layers=num_layers)
        check_choice("init", init, get_args(Init))
        self.action_dim, self.embed_dim = action_dim, embed_dim
        self.deter_dim, self.stoch_dim, self.noise_dim = deter_dim, stoch_dim, 0
        self.feature_dim = deter_dim + stoch_dim
        self.path = DeterministicPath(action_dim, deter_dim, stoch_dim, num_layers, activation, gru)
        self.prior_head = MeanHead(deter_dim, hidden_dim, stoch_dim, num_layers, activation)
        self.posterior_head = MeanHead(deter_dim + embed_dim, hidden_dim, stoch_dim, num_layers, activation)
        if init == "glorot":
            init_glorot_(self)

    def initial(self, batch_size: int) -> State:
        """Return zeros: deter [B, D], stoch, mean and std [B, S], on the cell's device."""
        return zero_state(self, batch_size, self.deter_dim, self.stoch_dim)

    def prior(self, state: State, action: Tensor, noise: Tensor | None = None) -> State:
        """Advance the GRU by one action [..., A] and predict the mean."""
        check_step(self, "state", state, "deter", "stoch", action=action)
        deter = self.path(state.deter, state.stoch, action)
        return mean_state(deter, self.prior_head(deter))

    def posterior(self, prior: State, embed: Tensor, noise: Tensor | None = None) -> State:
        """Return the mean given deter' and embed; reads only the prior's deter."""
        check_step(self, "prior", prior, "deter", embed=embed)
        return mean_state(prior.deter, self.posterior_head(torch.cat([prior.deter, embed], -1)))

    def features(self, state: State) -> Tensor:
        """Return [deter, stoch]."""
        check_state(self, "state", state, "deter", "stoch")
        return torch.cat([state.deter, state.stoch], -1)

    def divergence(self, posterior: State, prior: State) -> Tensor:
        """Return half the squared distance of the means, summed over S."""
        check_alike(self, posterior, prior)
        return 0.5 * (gaussian.widen(posterior.mean) - gaussian.widen(prior.mean)).square().sum(-1)

    def global_prior(self, state: State) -> State:
        """Return the state whose mean is zero, with the deter of `state`."""
        check_state(self, "state", state, "deter", "mean")
        return standard_state(state)

    def redraw(self, state: State, noise: Tensor | None = None) -> State:
        """Return the state itself, the only sample there is; a noise argument is not read."""
        check_state(self, "state", state, "deter", "stoch", "mean", "std")
        return state

    def scan(
        self,
        state: State,
        embed: Tensor,
        action: Tensor,
        is_first: Tensor,
        prior_noise: Tensor | None = None,
        posterior_noise: Tensor | None = None,
    ) -> tuple[State, State]:
        """Filter a sequence [T, B, ...]; equal to stepping, with every product that needs no state done at once."""
        check_scan(self, state, is_first, embed=embed, action=action)
        posterior = filter_recurrent(self.path, self.posterior_head, state, embed, action, is_first, None)
        return mean_state(posterior.deter, self.prior_head(posterior.deter)), posterior

"""The purely stochastic state-space model: one time step, and a faster way to filter a sequence. Knows no pixels.

Source: PlaNet (arXiv:1811.04551), section 3; layer by layer google-research/planet models/ssm.py. Difference: the
initialisation is PyTorch's unless asked for the original's.
"""

from typing import get_args

import torch
from torch import Tensor, nn

from planet_lib._shapes import check_choice
from planet_lib.models import gaussian
from planet_lib.models._layers import sizes
from planet_lib.models.cells._checks import check_alike, check_redraw, check_scan, check_state, check_step
from planet_lib.models.cells._parts import (
    GaussianHead,
    Init,
    MinStdMode,
    drawn_noise,
    drawn_state,
    standard_state,
    zero_state,
)
from planet_lib.models.cells._scans import filter_stochastic
from planet_lib.models.initialise import init_glorot_
from planet_lib.types import State


class SSMCell(nn.Module):
    """One step of the purely stochastic state-space model: what is remembered must pass through the sample.

    prior = p(stoch' | stoch, action);  posterior = q(stoch' | prior mean, prior std, embed)

    Both are diagonal Gaussians from hidden relu layers: mean linear, std = softplus + min_std.

    Shapes: State of deter [..., 0], stoch, mean and std [..., S]; action [..., A]; embed [..., E]; features
    [..., S] = stoch; noise [..., S].

    Args:
        action_dim: A.
        embed_dim: E, the encoder's embed_dim.
        stoch_dim: S.
        hidden_dim: size of the hidden layers.
        num_layers: hidden layers in front of each distribution.
        activation: behind each hidden layer: relu, elu, silu, gelu or tanh.
        min_std: the least standard deviation.
        min_std_mode: "add" or "clamp", as in `RSSMCell`.
        init: "torch" or "glorot", as in `RSSMCell`.

    Raises:
        ValueError: a size below 1, an unknown choice, or a tensor whose last axis does not fit.

    Source: arXiv:1811.04551, section 3; google-research/planet models/ssm.py.

    Example:
        >>> cell = SSMCell(action_dim=6, embed_dim=1024)
        >>> state = cell.posterior(cell.prior(cell.initial(2), torch.zeros(2, 6)), torch.zeros(2, 1024))
        >>> state.deter.shape, cell.features(state).shape
        (torch.Size([2, 0]), torch.Size([2, 30]))
    """

    def __init__(
        self,
        action_dim: int,
        embed_dim: int,
        *,
        stoch_dim: int = 30,
        hidden_dim: int = 200,
        num_layers: int = 1,
        activation: str = "relu",
        min_std: float = 0.1,
        min_std_mode: MinStdMode = "add",
        init: Init = "torch",
    ) -> None:
        super().__init__()
        action_dim, embed_dim, stoch_dim = sizes(action_dim=action_dim, embed_dim=embed_dim, stoch_dim=stoch_dim)
        hidden_dim, num_layers = sizes(hidden_dim=hidden_dim, num_layers=num_layers)
        check_choice("init", init, get_args(Init))
        self.action_dim, self.embed_dim = action_dim, embed_dim
        self.stoch_dim, self.noise_dim, self.feature_dim = stoch_dim, stoch_dim, stoch_dim
        self.deter_dim = 0
        layers = (num_layers, activation, min_std, min_std_mode)
        self.prior_head = GaussianHead(stoch_dim + action_dim, hidden_dim, stoch_dim, *layers)
        self.posterior_head = GaussianHead(2 * stoch_dim + embed_dim, hidden_dim, stoch_dim, *layers)
        if init == "glorot":
            init_glorot_(self)

    def initial(self, batch_size: int) -> State:
        """Return zeros: deter [B, 0], stoch, mean and std [B, S], on the cell's device."""
        return zero_state(self, batch_size, 0, self.stoch_dim)

    def prior(self, state: State, action: Tensor, noise: Tensor | None = None) -> State:
        """Draw from p(stoch' | stoch, action)."""
        check_step(self, "state", state, "deter", "stoch", action=action, noise=noise)
        return drawn_state(state.deter, self.prior_head(torch.cat([state.stoch, action], -1)), noise)

    def posterior(self, prior: State, embed: Tensor, noise: Tensor | None = None) -> State:
        """Draw from q(stoch' | prior mean, prior std, embed); the prior's sample plays no part."""
        check_step(self, "prior", prior, "deter", "mean", "std", embed=embed, noise=noise)
        return drawn_state(prior.deter, self.posterior_head(torch.cat([prior.mean, prior.std, embed], -1)), noise)

    def features(self, state: State) -> Tensor:
        """Return the sample."""
        check_state(self, "state", state, "stoch")
        return state.stoch

    def divergence(self, posterior: State, prior: State) -> Tensor:
        """Return KL(posterior || prior), summed over S."""
        check_alike(self, posterior, prior)
        return gaussian.kl_divergence(posterior.mean, posterior.std, prior.mean, prior.std)

    def global_prior(self, state: State) -> State:
        """Return the state whose stoch is N(0, I)."""
        check_state(self, "state", state, "deter", "mean")
        return standard_state(state)

    def redraw(self, state: State, noise: Tensor | None = None) -> State:
        """Return another sample of the state's own distribution: stoch = mean + std * noise, the rest as it is."""
        check_redraw(self, state, noise)
        return drawn_state(state.deter, (state.mean, state.std), noise)

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
        noises = {"prior_noise": prior_noise, "posterior_noise": posterior_noise}
        check_scan(self, state, is_first, embed=embed, action=action, **noises)
        noise = drawn_noise(posterior_noise, embed, state)
        distribution, posterior = filter_stochastic(
            self.prior_head, self.posterior_head, state, embed, action, is_first, noise
        )
        return drawn_state(posterior.deter, distribution, prior_noise), posterior

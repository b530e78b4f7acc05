"""The recurrent state-space model: one time step, and a faster way to filter a sequence. Knows no pixels.

Source: PlaNet (arXiv:1811.04551), section 3.1; layer by layer google-research/planet models/rssm.py. Differences:
unless asked for the original's, the GRU is PyTorch's (reset gate after the recurrent product, two biases) and so is
the initialisation.
"""

from typing import get_args

import torch
from torch import Tensor, nn

from planet_lib._shapes import check_choice
from planet_lib.models import gaussian
from planet_lib.models._layers import sizes
from planet_lib.models.cells._checks import check_alike, check_redraw, check_scan, check_state, check_step
from planet_lib.models.cells._parts import (
    DeterministicPath,
    GaussianHead,
    GRUKind,
    Init,
    MinStdMode,
    drawn_noise,
    drawn_state,
    standard_state,
    zero_state,
)
from planet_lib.models.cells._scans import filter_recurrent
from planet_lib.models.initialise import init_glorot_
from planet_lib.types import State


class RSSMCell(nn.Module):
    """One step of the recurrent state-space model: a deterministic and a stochastic path.

    deter' = GRU(relu(W [stoch, action] + b), deter);
    prior = p(stoch' | deter');  posterior = q(stoch' | deter', embed)

    Both distributions are diagonal Gaussians from hidden relu layers: mean linear, std = softplus + min_std. The GRU
    with reset gate r and update gate z is deter' = (1 - z) n + z deter, where the candidate n is
    tanh(W x + b + r (U deter + c)) with the reset after the product, tanh(W x + b + U (r deter)) before it.

    Shapes: State of deter [..., D], stoch, mean and std [..., S]; action [..., A]; embed [..., E]; features
    [..., D + S] = [deter, stoch]; noise [..., S].

    Args:
        action_dim: A.
        embed_dim: E, the encoder's embed_dim.
        deter_dim: D, the size of the GRU and of the layers in front of it.
        stoch_dim: S.
        hidden_dim: size of the hidden layers in front of each distribution.
        num_layers: hidden layers in front of the GRU, and of each distribution.
        activation: behind each hidden layer: relu, elu, silu, gelu or tanh.
        min_std: the least standard deviation.
        min_std_mode: "add" it to the softplus, as the original does, or "clamp", max(softplus, min_std), which has no
            gradient below.
        gru: "reset_after", PyTorch's, or "reset_before", the original's.
        init: "torch", or "glorot", the original's (`planet_lib.models.init_glorot_`).

    Raises:
        ValueError: a size below 1, an unknown choice, or a tensor whose last axis does not fit.

    Source: arXiv:1811.04551, section 3.1 and appendix A; google-research/planet models/rssm.py.

    Example:
        >>> cell = RSSMCell(action_dim=6, embed_dim=1024)
        >>> prior = cell.prior(cell.initial(2), torch.zeros(2, 6))
        >>> posterior = cell.posterior(prior, torch.zeros(2, 1024))
        >>> cell.features(posterior).shape, bool((cell.divergence(posterior, prior) >= 0).all())
        (torch.Size([2, 230]), True)
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
        min_std: float = 0.1,
        min_std_mode: MinStdMode = "add",
        gru: GRUKind = "reset_after",
        init: Init = "torch",
    ) -> None:
        super().__init__()
        action_dim, embed_dim = sizes(action_dim=action_dim, embed_dim=embed_dim)
        deter_dim, stoch_dim = sizes(deter_dim=deter_dim, stoch_dim=stoch_dim)
        hidden_dim, num_layers = sizes(hidden_dim=hidden_dim, num_layers=num_layers)
        check_choice("init", init, get_args(Init))
        self.action_dim, self.embed_dim = action_dim, embed_dim
        self.deter_dim, self.stoch_dim, self.noise_dim = deter_dim, stoch_dim, stoch_dim
        self.feature_dim = deter_dim + stoch_dim
        self.path = DeterministicPath(action_dim, deter_dim, stoch_dim, num_layers, activation, gru)
        layers = (num_layers, activation, min_std, min_std_mode)
        self.prior_head = GaussianHead(deter_dim, hidden_dim, stoch_dim, *layers)
        self.posterior_head = GaussianHead(deter_dim + embed_dim, hidden_dim, stoch_dim, *layers)
        if init == "glorot":
            init_glorot_(self)

    def initial(self, batch_size: int) -> State:
        """Return zeros: deter [B, D], stoch, mean and std [B, S], on the cell's device."""
        return zero_state(self, batch_size, self.deter_dim, self.stoch_dim)

    def prior(self, state: State, action: Tensor, noise: Tensor | None = None) -> State:
        """Advance the GRU by one action [..., A] and draw from p(stoch' | deter')."""
        check_step(self, "state", state, "deter", "stoch", action=action, noise=noise)
        deter = self.path(state.deter, state.stoch, action)
        return drawn_state(deter, self.prior_head(deter), noise)

    def posterior(self, prior: State, embed: Tensor, noise: Tensor | None = None) -> State:
        """Draw from q(stoch' | deter', embed); reads only the prior's deter."""
        check_step(self, "prior", prior, "deter", embed=embed, noise=noise)
        return drawn_state(prior.deter, self.posterior_head(torch.cat([prior.deter, embed], -1)), noise)

    def features(self, state: State) -> Tensor:
        """Return [deter, stoch]."""
        check_state(self, "state", state, "deter", "stoch")
        return torch.cat([state.deter, state.stoch], -1)

    def divergence(self, posterior: State, prior: State) -> Tensor:
        """Return KL(posterior || prior), summed over S."""
        check_alike(self, posterior, prior)
        return gaussian.kl_divergence(posterior.mean, posterior.std, prior.mean, prior.std)

    def global_prior(self, state: State) -> State:
        """Return the state whose stoch is N(0, I), with the deter of `state`."""
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
        posterior = filter_recurrent(self.path, self.posterior_head, state, embed, action, is_first, noise)
        return drawn_state(posterior.deter, self.prior_head(posterior.deter), prior_noise), posterior

"""Cells: one time step of a latent dynamics model. They know nothing of pixels, heads, losses or planning.

A cell answers five questions (`Cell`), so that observing, imagining, the losses and the planner take any of the three
here, or one of your own. Everything random is an argument: `noise=None` draws from torch's global generator.

Source: PlaNet (arXiv:1811.04551), section 3; layer by layer google-research/planet models/rssm.py and models/ssm.py.
Differences: the GRU is PyTorch's (reset gate after the recurrent product, two biases) and so is the initialisation.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from planet_lib._shapes import check_last, check_positive
from planet_lib.models import gaussian
from planet_lib.models._layers import (
    DeterministicPath,
    GaussianHead,
    MeanHead,
    filter_sequence,
    gaussian_state,
    mean_state,
    zero_state,
)
from planet_lib.types import State

# A plain `Cell` in an annotation is one whose state is `State`.
S = TypeVar("S", default=State)


@runtime_checkable
class Cell(Protocol[S]):
    """What a latent dynamics model has to offer. Nothing to subclass: any object with these members will do.

    The state is a NamedTuple of tensors of the cell's own choosing, whose leading axes are those of its arguments;
    nobody else looks inside. All methods work on any leading axes.

    A cell may also offer `scan(state, embed, action, is_first, prior_noise, posterior_noise)`,
    which filters a whole sequence at once and must equal stepping (see `planet_lib.observe`).

    Attributes:
        action_dim: A, numbers in an action.
        feature_dim: F, numbers that `features` returns.
        noise_dim: numbers of standard normal noise that one step uses; 0 where nothing is random.

    Example:
        >>> isinstance(SSMCell(action_dim=6, embed_dim=1024), Cell)
        True
    """

    action_dim: int
    feature_dim: int
    noise_dim: int

    def initial(self, batch_size: int) -> S:
        """Return the state [B, ...] before the first observation."""

    def prior(self, state: S, action: Tensor, noise: Tensor | None = None) -> S:
        """Predict one step ahead of `state`, given the action [..., A] and no observation."""

    def posterior(self, prior: S, embed: Tensor, noise: Tensor | None = None) -> S:
        """Correct the prediction by what was seen, embed [..., E]."""

    def features(self, state: S) -> Tensor:
        """Return what heads and planners read, [..., F]."""

    def divergence(self, posterior: S, prior: S) -> Tensor:
        """Return how far the posterior is from the prior, [...] in nats."""


class RSSMCell(nn.Module):
    """One step of the recurrent state-space model: a deterministic and a stochastic path.

    deter' = GRU(relu(W [stoch, action] + b), deter);
    prior = p(stoch' | deter');  posterior = q(stoch' | deter', embed)

    Both distributions are diagonal Gaussians from one hidden relu layer: mean linear, std = softplus + min_std.

    Shapes: State of deter [..., D], stoch, mean and std [..., S]; action [..., A]; embed [..., E]; features
    [..., D + S] = [deter, stoch]; noise [..., S].

    Args:
        action_dim: A.
        embed_dim: E, the encoder's embed_dim.
        deter_dim: D, the size of the GRU.
        stoch_dim: S.
        hidden_dim: size of the hidden layer in front of each distribution.
        min_std: added to every standard deviation.

    Raises:
        ValueError: a size below 1, or a tensor whose last axis does not fit.

    Source: arXiv:1811.04551, section 3.1 and appendix A.

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
        min_std: float = 0.1,
    ) -> None:
        super().__init__()
        check_positive(
            action_dim=action_dim, embed_dim=embed_dim, deter_dim=deter_dim, stoch_dim=stoch_dim, hidden_dim=hidden_dim
        )
        self.action_dim, self.embed_dim = action_dim, embed_dim
        self.deter_dim, self.stoch_dim, self.noise_dim = deter_dim, stoch_dim, stoch_dim
        self.feature_dim = deter_dim + stoch_dim
        self.path = DeterministicPath(action_dim, deter_dim, stoch_dim)
        self.prior_head = GaussianHead(deter_dim, hidden_dim, stoch_dim, min_std)
        self.posterior_head = GaussianHead(deter_dim + embed_dim, hidden_dim, stoch_dim, min_std)

    def initial(self, batch_size: int) -> State:
        """Return zeros: deter [B, D], stoch, mean and std [B, S], on the cell's device."""
        return zero_state(self, batch_size, self.deter_dim, self.stoch_dim)

    def prior(self, state: State, action: Tensor, noise: Tensor | None = None) -> State:
        """Advance the GRU by one action [..., A] and draw from p(stoch' | deter')."""
        check_last("action", action, self.action_dim, because="the cell's action_dim")
        deter = self.path(state.deter, state.stoch, action)
        return gaussian_state(deter, self.prior_head(deter), noise)

    def posterior(self, prior: State, embed: Tensor, noise: Tensor | None = None) -> State:
        """Draw from q(stoch' | deter', embed); reads only the prior's deter."""
        check_last("embed", embed, self.embed_dim, because="the cell's embed_dim")
        return gaussian_state(prior.deter, self.posterior_head(torch.cat([prior.deter, embed], -1)), noise)

    def features(self, state: State) -> Tensor:
        """Return [deter, stoch]."""
        return torch.cat([state.deter, state.stoch], -1)

    def divergence(self, posterior: State, prior: State) -> Tensor:
        """Return KL(posterior || prior), summed over S."""
        return gaussian.kl_divergence(posterior.mean, posterior.std, prior.mean, prior.std)

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
        check_last("action", action, self.action_dim, because="the cell's action_dim")
        check_last("embed", embed, self.embed_dim, because="the cell's embed_dim")
        deter, posterior = filter_sequence(
            self.path, self.posterior_head, state, embed, action, is_first, posterior_noise
        )
        return gaussian_state(deter, self.prior_head(deter), prior_noise), posterior


class SSMCell(nn.Module):
    """One step of the purely stochastic state-space model: what is remembered must pass through the sample.

    prior = p(stoch' | stoch, action);  posterior = q(stoch' | prior mean, prior std, embed)

    Both are diagonal Gaussians from one hidden relu layer: mean linear, std = softplus + min_std.

    Shapes: State of deter [..., 0], stoch, mean and std [..., S]; action [..., A]; embed [..., E]; features
    [..., S] = stoch; noise [..., S].

    Args:
        action_dim: A.
        embed_dim: E, the encoder's embed_dim.
        stoch_dim: S.
        hidden_dim: size of the hidden layers.
        min_std: added to every standard deviation.

    Raises:
        ValueError: a size below 1, or a tensor whose last axis does not fit.

    Source: arXiv:1811.04551, section 3; google-research/planet models/ssm.py.

    Example:
        >>> cell = SSMCell(action_dim=6, embed_dim=1024)
        >>> state = cell.prior(cell.initial(2), torch.zeros(2, 6), noise=torch.zeros(2, 30))
        >>> state.deter.shape, torch.equal(cell.features(state), state.mean)
        (torch.Size([2, 0]), True)
    """

    def __init__(
        self, action_dim: int, embed_dim: int, *, stoch_dim: int = 30, hidden_dim: int = 200, min_std: float = 0.1
    ) -> None:
        super().__init__()
        check_positive(action_dim=action_dim, embed_dim=embed_dim, stoch_dim=stoch_dim, hidden_dim=hidden_dim)
        self.action_dim, self.embed_dim = action_dim, embed_dim
        self.deter_dim, self.stoch_dim, self.noise_dim = 0, stoch_dim, stoch_dim
        self.feature_dim = stoch_dim
        self.prior_head = GaussianHead(stoch_dim + action_dim, hidden_dim, stoch_dim, min_std)
        self.posterior_head = GaussianHead(2 * stoch_dim + embed_dim, hidden_dim, stoch_dim, min_std)

    def initial(self, batch_size: int) -> State:
        """Return zeros: deter [B, 0], stoch, mean and std [B, S], on the cell's device."""
        return zero_state(self, batch_size, 0, self.stoch_dim)

    def prior(self, state: State, action: Tensor, noise: Tensor | None = None) -> State:
        """Draw from p(stoch' | stoch, action)."""
        check_last("action", action, self.action_dim, because="the cell's action_dim")
        return gaussian_state(state.deter, self.prior_head(torch.cat([state.stoch, action], -1)), noise)

    def posterior(self, prior: State, embed: Tensor, noise: Tensor | None = None) -> State:
        """Draw from q(stoch' | prior mean, prior std, embed); the prior's sample plays no part."""
        check_last("embed", embed, self.embed_dim, because="the cell's embed_dim")
        return gaussian_state(prior.deter, self.posterior_head(torch.cat([prior.mean, prior.std, embed], -1)), noise)

    def features(self, state: State) -> Tensor:
        """Return the sample."""
        return state.stoch

    def divergence(self, posterior: State, prior: State) -> Tensor:
        """Return KL(posterior || prior), summed over S."""
        return gaussian.kl_divergence(posterior.mean, posterior.std, prior.mean, prior.std)


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
        deter_dim: D, the size of the GRU.
        stoch_dim: S, kept under this name though nothing is drawn.
        hidden_dim: size of the hidden layer in front of each mean.

    Raises:
        ValueError: a size below 1, or a tensor whose last axis does not fit.

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
    ) -> None:
        super().__init__()
        check_positive(
            action_dim=action_dim, embed_dim=embed_dim, deter_dim=deter_dim, stoch_dim=stoch_dim, hidden_dim=hidden_dim
        )
        self.action_dim, self.embed_dim = action_dim, embed_dim
        self.deter_dim, self.stoch_dim, self.noise_dim = deter_dim, stoch_dim, 0
        self.feature_dim = deter_dim + stoch_dim
        self.path = DeterministicPath(action_dim, deter_dim, stoch_dim)
        self.prior_head = MeanHead(deter_dim, hidden_dim, stoch_dim)
        self.posterior_head = MeanHead(deter_dim + embed_dim, hidden_dim, stoch_dim)

    def initial(self, batch_size: int) -> State:
        """Return zeros: deter [B, D], stoch, mean and std [B, S], on the cell's device."""
        return zero_state(self, batch_size, self.deter_dim, self.stoch_dim)

    def prior(self, state: State, action: Tensor, noise: Tensor | None = None) -> State:
        """Advance the GRU by one action [..., A] and predict the mean."""
        check_last("action", action, self.action_dim, because="the cell's action_dim")
        deter = self.path(state.deter, state.stoch, action)
        return mean_state(deter, self.prior_head(deter))

    def posterior(self, prior: State, embed: Tensor, noise: Tensor | None = None) -> State:
        """Return the mean given deter' and embed; reads only the prior's deter."""
        check_last("embed", embed, self.embed_dim, because="the cell's embed_dim")
        return mean_state(prior.deter, self.posterior_head(torch.cat([prior.deter, embed], -1)))

    def features(self, state: State) -> Tensor:
        """Return [deter, stoch]."""
        return torch.cat([state.deter, state.stoch], -1)

    def divergence(self, posterior: State, prior: State) -> Tensor:
        """Return half the squared distance of the means, summed over S."""
        return 0.5 * (posterior.mean - prior.mean).square().sum(-1)

"""The `Cell` protocol: what observing, imagining, the losses and the planner ask of a latent dynamics model.

Knows no cell in particular. Source: ours; the questions are those that PlaNet (arXiv:1811.04551), section 3, answers.
"""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from typing_extensions import TypeVar

from planet_lib._shapes import is_whole, shown
from planet_lib.types import State

# A plain `Cell` in an annotation is one whose state is `State`.
S = TypeVar("S", default=State)

_SIZES = {"action_dim": 1, "feature_dim": 1, "noise_dim": 0}


@runtime_checkable
class Cell(Protocol[S]):
    """What a latent dynamics model has to offer. Nothing to subclass: any object with these members will do.

    The state is a NamedTuple of tensors of the cell's own choosing, whose leading axes are those of its arguments;
    nobody else looks inside. All methods work on any leading axes.

    A cell may also offer `scan(state, embed, action, is_first, prior_noise=None, posterior_noise=None)`, which filters
    a whole sequence at once and must equal stepping (see `planet_lib.observe`); `global_prior(state)`, the state
    whose distribution does not depend on time (N(0, I) for Gaussians), for the global term of `elbo_loss`; and
    `redraw(state, noise=None)`, another sample of the distribution that the state was drawn from (mean + std * noise
    for Gaussians), for planners that start every candidate from a sample of its own.
    `planet_lib.testing.check_cell` tries all of this on a cell of yours.

    Attributes:
        action_dim: A, numbers in an action.
        feature_dim: F, numbers that `features` returns.
        noise_dim: numbers of standard normal noise that one step uses; 0 where nothing is random.

    Example:
        >>> from planet_lib import SSMCell
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


def check_members(cell: Cell[Any], *names: str) -> None:
    """Raise a `TypeError` unless a cell has sizes, and methods of these names.

    Example:
        >>> from planet_lib import SSMCell
        >>> check_members(SSMCell(action_dim=6, embed_dim=1024), "prior", "fly")
        Traceback (most recent call last):
            ...
        TypeError: cell must have the members of planet_lib.Cell, got SSMCell without fly
    """
    missing = [name for name in (*_SIZES, *names) if not hasattr(cell, name)]
    if missing or isinstance(cell, type):
        got = f"the class {cell.__name__}" if isinstance(cell, type) else type(cell).__name__
        raise TypeError(f"cell must have the members of planet_lib.Cell, got {got} without {', '.join(missing)}")
    for name, least in _SIZES.items():
        size = getattr(cell, name)
        if not is_whole(size, least):
            raise TypeError(f"cell.{name} must be a whole number of at least {least}, got {shown(size)}")
    for name in names:
        method = getattr(cell, name)
        if not callable(method):
            raise TypeError(f"cell.{name} must be a method, got {shown(method)}")

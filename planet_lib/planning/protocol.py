"""The `Dynamics` protocol: all that a planner asks of a world. Knows no planner, no model and no simulator.

Source: ours. It is the paper's question (Hafner et al. 2019, arXiv:1811.04551, algorithm 2, line 6) and no more.
"""

from typing import Any, Protocol

from torch import Tensor


class Dynamics(Protocol):
    """What a planner plans with: anything that can say what action sequences are worth.

    returns[b, j] = the sum of the H rewards met when `actions[:, b, j]` is executed from `state[b]`

    Nothing to subclass: any object with this method will do. A row of the result may depend on its own row of the
    state, the actions and the noise alone. What cannot be evaluated (a diverged simulator) is NaN or -inf.
    `planet_lib.testing.check_dynamics` tries all of this on dynamics of yours.

    Dynamics that are random may also offer `draw_noise(actions, generator=None)`, which returns the standard normal
    noise that `rollout` takes for these actions. The planner then draws it, so that its generator decides everything.

    Example:
        >>> import torch
        >>> class Integrator:  # the state x [B] moves by the action, and ought to be at 0
        ...     def rollout(self, state, actions, noise=None):
        ...         x = state[:, None] + actions[..., 0].cumsum(0)  # [H, B, J]
        ...         return -x.square().sum(0)
        >>> Integrator().rollout(torch.tensor([1.0]), torch.tensor([-1.0, 0.0]).expand(3, 1, 2)[..., None])
        tensor([[-5., -3.]])
    """

    def rollout(self, state: Any, actions: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return what every candidate earns.

        Args:
            state: any pytree with at least one tensor; all its tensors are [B, ...], one row per environment.
            actions: [H, B, J, A], J candidate sequences for every environment, within the bounds.
            noise: what `draw_noise` makes, [H, B, J, S] for a model; None lets the dynamics draw their own.

        Returns:
            [B, J], higher is better.
        """
        ...

"""The agent: filter what was seen, plan, explore. State goes in and comes out; nothing is remembered inside.

Joins a world model and a planner at the environment's boundary. It knows no environment, and learns nothing.

Source: Hafner et al. 2019 (arXiv:1811.04551), algorithm 1; google-research/planet `control/mpc_agent.py`. The action
that is filtered with is the one *executed*, after noise and clipping; a port that filters with the planned action tells
its model of something that never happened.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from planet_lib._errors import NonFiniteError
from planet_lib._shapes import (
    check_bool,
    check_count,
    check_dense,
    check_device,
    check_dtype,
    check_flag,
    check_shape,
    check_states,
)
from planet_lib.data.pixels import prepare
from planet_lib.models.rollout import check_leading, step
from planet_lib.models.world_model import WorldModel
from planet_lib.planning._checks import check_acting, check_movable, check_numbers
from planet_lib.planning.compiled import CompiledPlanner
from planet_lib.planning.planner import Planner
from planet_lib.types import Observation, Plan


class AgentState(NamedTuple):
    """What the agent carries from one step to the next; on the model's device.

    latent: the cell's state [B, ...], a sample of the posterior. action: [B, A], the one executed last. plan: the last
    plan, where the agent warm-starts the next one from it, else None.

    Example:
        >>> import torch
        >>> AgentState(latent=(torch.zeros(1, 200), torch.zeros(1, 30)), action=torch.zeros(1, 6)).action.shape
        torch.Size([1, 6])
    """

    latent: Any
    action: Tensor
    plan: Plan | None = None


class AgentNoise(NamedTuple):
    """Everything random in one act, so that it can be replayed and compared; None draws it.

    Shapes: pixels, as the observation, uniform in [0, 1), and a dictionary of its uint8 entries where that is one (see
    `planet_lib.data.prepare`); the others standard normal: prior and posterior [B, S],
    candidates [I, H, B, J, A], dynamics [I, H, B, R, S] (see `Planner`), exploration [B, A].

    Example:
        >>> import torch
        >>> AgentNoise(exploration=torch.zeros(1, 6)).prior is None
        True
    """

    pixels: Observation | None = None
    prior: Tensor | None = None
    posterior: Tensor | None = None
    candidates: Tensor | None = None
    dynamics: Tensor | None = None
    exploration: Tensor | None = None


class PlanningAgent:
    """Act in B environments at once: filter the observation, plan from the posterior, add exploration noise.

    latent ~ posterior(latent, executed action, observation);  plan = planner(latent)
    action = planner.explore(plan.action, exploration_std, noise), or plan.action where one does not explore

    In a box, to explore is clip(plan.action + exploration_std * noise, low, high).

    Where is_first holds, latent and executed action count as zero, so a row that begins an episode needs no other
    reset. Runs without gradients. uint8 observations are images, and are dequantised anew at each call; floats are used
    as they are; dictionaries go entry by entry, to an encoder that takes them. Observation and is_first may lie on any
    device; what comes back lies on the model's.

    Args:
        model: the `WorldModel`, used as it is at each call; not copied.
        planner: any `Planner` over the same model, or over any dynamics that start from the cell's state.
        exploration_std: of the normal noise, in units of the action. 0.3 is the paper's, for actions in [-1, 1]. Where
            actions are one-hot, the probability of a choice at random.
        bits: depth to which images are quantised; 5 is the paper's.
        warm_start: whether each plan starts from the one before, in rows that do not begin an episode. The paper's
            planner starts anew each time; `ICEMPlanner` is made for being warm-started.

    Raises:
        ValueError: planner and model differ in action_dim, or exploration_std is negative.

    Example:
        >>> import torch
        >>> from planet_lib.models.cells import RSSMCell
        >>> from planet_lib.models.decoders import Decoder, RewardHead
        >>> from planet_lib.models.encoders import VectorEncoder
        >>> from planet_lib.planning import CEMPlanner, LatentDynamics
        >>> encoder = VectorEncoder(5)
        >>> cell = RSSMCell(action_dim=2, embed_dim=encoder.embed_dim)
        >>> model = WorldModel(encoder, cell, Decoder(cell.feature_dim, (5,)), RewardHead(cell.feature_dim))
        >>> planner = CEMPlanner(LatentDynamics(model), -1.0, 1.0, action_dim=2, num_candidates=20, num_elites=5)
        >>> agent = PlanningAgent(model, planner)
        >>> action, state, plan = agent(torch.zeros(3, 5), torch.ones(3, dtype=torch.bool), None, explore=True)
        >>> action.shape, torch.equal(state.action, action), bool((action.abs() <= 1).all())
        (torch.Size([3, 2]), True, True)
    """

    def __init__(
        self,
        model: WorldModel,
        planner: Planner | CompiledPlanner,
        *,
        exploration_std: float = 0.3,
        bits: int = 5,
        warm_start: bool = False,
    ) -> None:
        check_acting(model, planner, exploration_std, bits, warm_start)
        self.model = model
        self.planner = planner
        self.exploration_std = exploration_std
        self.bits, self.warm_start = bits, warm_start

    def initial(self, batch_size: int) -> AgentState:
        """Return the state before anything was seen: the cell's zero state and zero action [B, A]."""
        check_count(batch_size=batch_size)
        like = next(self.model.parameters())
        action = like.new_zeros(batch_size, self.model.cell.action_dim)
        return AgentState(latent=self.model.cell.initial(batch_size), action=action)

    @torch.no_grad()
    def __call__(
        self,
        obs: Observation,
        is_first: Tensor,
        state: AgentState | None,
        *,
        explore: bool,
        noise: AgentNoise | None = None,
    ) -> tuple[Tensor, AgentState, Plan]:
        """Return the action to execute, the state to hand in next time, and the plan.

        Args:
            obs: [B, C, Y, X] uint8 or [B, N] float, or a dictionary of such.
            is_first: [B] bool, True in the rows whose episode begins with `obs`.
            state: what the call before returned; None is `initial`.
            explore: whether exploration noise is added.
            noise: what is random, where it is to be replayed.

        Returns:
            (action [B, A], state, plan). state.action is that same action.

        Raises:
            NonFiniteError: no finite return could be predicted for some rows; it names them. No other call waits for
                the device, but at the environment's boundary the action is needed anyway.
            ValueError: is_first is not [B], state or noise is not of B rows, or obs is an empty dictionary or one whose
                entries differ in their rows.
            TypeError: is_first is not bool, or obs or an entry of it neither a uint8 nor a float tensor.
        """
        noise = AgentNoise() if noise is None else noise
        like = next(self.model.parameters())
        batch_size = _rows(obs, like)
        check_flag(explore=explore)
        check_shape("is_first", is_first, "B", B=batch_size, because="the rows of obs")
        check_bool("is_first", is_first)
        check_numbers("is_first", is_first, like)
        self._check_noise(noise, batch_size, like)
        if state is None:
            state = self.initial(batch_size)
        else:
            self._check_state("state", state, batch_size)
        embed = self.model.encoder(self._observation(obs, noise.pixels))
        begins = is_first.to(embed.device, non_blocking=True)
        _, latent = step(
            self.model.cell,
            state.latent,
            state.action,
            embed,
            begins,
            prior_noise=noise.prior,
            posterior_noise=noise.posterior,
        )
        plan = self.planner(
            latent,
            previous=state.plan if self.warm_start else None,
            is_first=begins,
            noise=noise.candidates,
            dynamics_noise=noise.dynamics,
        )
        if not bool(plan.valid.all()):
            rows = plan.valid.logical_not().nonzero().flatten().tolist()
            raise NonFiniteError(
                f"no candidate had a finite predicted return in row(s) {rows} of the batch: the observation, the "
                "state, the noise or the model's weights hold NaN or infinity there"
            )
        action = plan.action
        if explore:
            action = self.planner.explore(action, self.exploration_std, noise.exploration)
        # A copy: an environment that writes into the action must not change what is remembered.
        remembered = plan if self.warm_start else None
        return action, AgentState(latent=latent, action=action.clone(), plan=remembered), plan

    def save_state(self, state: AgentState) -> dict[str, Any]:
        """Return a state as plain data for a checkpoint, so that an episode goes on from its middle bit for bit.

        Example:
            >>> import torch
            >>> from planet_lib.training.presets import PRESETS, build_agent, build_model
            >>> agent = build_agent(PRESETS["cpu"], build_model(PRESETS["cpu"], "rssm", (5,), 2))
            >>> saved = agent.save_state(agent.initial(3))
            >>> sorted(saved), torch.equal(agent.load_state(saved).action, torch.zeros(3, 2))
            (['action', 'latent', 'plan'], True)
        """
        self._check_state("state", state, None)
        plan = None if state.plan is None else state.plan._asdict()
        return {"latent": list(state.latent), "action": state.action, "plan": plan}

    def load_state(self, saved: Mapping[str, Any]) -> AgentState:
        """Return the state that `save_state` gave, on the model's device.

        Raises:
            ValueError: it is none, or that of another cell: other names, or tensors of other shapes.
        """
        device = next(self.model.parameters()).device
        given: object = saved
        if not isinstance(given, Mapping):
            raise ValueError(f"saved must be what save_state returned, got {type(given).__name__}")
        try:
            action = saved["action"].to(device)
            like = self.model.cell.initial(len(action))
            latent = [each.to(device) for each in saved["latent"]]
            shapes = [list(each.shape) for each in latent]
            plan = saved["plan"]
            if plan is not None:
                parts: Any = {name: None if value is None else value.to(device) for name, value in plan.items()}
                plan = Plan(**parts)
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            kind = type(saved).__name__
            raise ValueError(f"saved must be what save_state returned, got {kind}: {error!r}") from error
        expected = [list(each.shape) for each in like]
        if shapes != expected or list(action.shape[1:]) != [self.planner.action_dim]:
            raise ValueError(
                f"saved must be of this cell, latent {expected} and action [B, {self.planner.action_dim}], got "
                f"{shapes} and {list(action.shape)}"
            )
        cell_state: Any = type(like)
        fields = cell_state(*latent) if hasattr(cell_state, "_fields") else cell_state(latent)
        state = AgentState(fields, action, plan)
        self._check_state("saved", state, None)
        return state

    def policy(self, *, explore: bool) -> Callable[[Observation, Tensor, AgentState | None], tuple[Tensor, AgentState]]:
        """Return this agent as `policy(obs, is_first, state) -> (action, state)`, the form that collection takes."""
        check_flag(explore=explore)

        def act(obs: Observation, is_first: Tensor, state: AgentState | None) -> tuple[Tensor, AgentState]:
            action, state, _ = self(obs, is_first, state, explore=explore)
            return action, state

        return act

    def _check_noise(self, noise: AgentNoise, batch_size: int, like: Tensor) -> None:
        """Raise unless this is noise that an act of `batch_size` rows can take; what others check is left to them."""
        given: object = noise
        if not isinstance(given, AgentNoise):
            raise TypeError(f"noise must be an AgentNoise or None, got {type(given).__name__}")
        if noise.exploration is not None:
            sizes = {"B": batch_size, "A": self.planner.action_dim}
            check_shape("noise.exploration", noise.exploration, "B A", because="from obs and the planner", **sizes)
            check_movable("noise.exploration", noise.exploration, like)

    def _check_state(self, name: str, state: AgentState, batch_size: int | None) -> None:
        """Raise unless this is a state of this agent, of `batch_size` rows; None is as many as it has."""
        given: object = state
        if not isinstance(given, AgentState):
            raise TypeError(f"{name} must be the AgentState of the call before, or None, got {type(given).__name__}")
        like, because = next(self.model.parameters()), "the rows of obs"
        check_dense(f"{name}.action", state.action)
        if batch_size is None:
            batch_size, because = (len(state.action) if state.action.ndim else 0), "the rows of its action"
        check_leading(name, (state.action,), batch_size, because=because)
        because += ", on the model's device"
        check_states(name, state.latent, self.model.cell.initial(1), batch_size, device=like.device, because=because)
        sizes = {"B": batch_size, "A": self.model.cell.action_dim}
        check_shape(f"{name}.action", state.action, "B A", because="its rows, and the model's action_dim", **sizes)
        check_dtype(f"{name}.action", state.action, like.dtype, because="as the model's weights")
        check_device(f"{name}.action", state.action, like.device, because="as the model's weights")
        plan: object = state.plan
        if plan is not None and not isinstance(plan, Plan):
            raise TypeError(f"{name}.plan must be a Plan or None, got {type(plan).__name__}")

    def _observation(self, obs: Observation, noise: Observation | None) -> Observation:
        """Bring what was seen to the model's device and dtype; images travel as bytes and become floats there."""
        like = next(self.model.parameters())
        if isinstance(obs, dict):
            moved = {name: value.to(like.device) for name, value in obs.items()}
            return {name: value.to(like.dtype) for name, value in prepare(moved, bits=self.bits, noise=noise).items()}
        return prepare(obs.to(like.device), bits=self.bits, noise=noise).to(like.dtype)


def _rows(obs: Observation, like: Tensor) -> int:
    """Return the rows B of an observation, or raise where it has none or the entries of a dictionary differ."""
    entries = {f"obs[{name!r}]": value for name, value in obs.items()} if isinstance(obs, dict) else {"obs": obs}
    if not entries:
        raise ValueError("obs must have at least one entry, got an empty dictionary")
    shapes: dict[str, list[int]] = {}
    for name, value in entries.items():
        given: object = value
        if not isinstance(given, Tensor):
            raise TypeError(f"{name} must be a uint8 or float tensor, got {type(given).__name__}")
        check_dense(name, given)
        check_numbers(name, given, like)
        shapes[name] = list(given.shape)
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if not shape:
            raise ValueError(
                f"{name} must be [B, ...], got []; give it a first axis of environments, obs[None] for one"
            )
        if shape[0] != shapes[first][0]:
            raise ValueError(f"{name} must be [B, ...] with B={shapes[first][0]} (the rows of {first}), got {shape}")
    return shapes[first][0]

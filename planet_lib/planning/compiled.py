"""A planner made fast by torch: compiled on a CPU, captured as one CUDA graph on a GPU. The same call, the same plans.

A plan is hundreds of small steps in a row. On a GPU they take less time than Python needs to ask for them; captured
once, the whole plan is replayed without asking. It knows the planner's loop and nothing of models.

Source: torch.compile and torch.cuda.CUDAGraph (PyTorch documentation); ours is the falling back.
"""

import copy
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from planet_lib.planning._checks import batch_of, check_generator
from planet_lib.planning._memory import keep_freed_memory
from planet_lib.planning._rewrites import compile_spelled_out
from planet_lib.planning.planner import Planner
from planet_lib.types import Plan

_WARM_UP = 3  # runs before a capture: torch asks for some, in which libraries make their workspaces
_MANY = 64  # compiled bodies of one planner: an iteration of each shape has its own
_GRAPHS = 8  # captured plans that are kept, each with memory of its own


class Captured(NamedTuple):
    """A plan in a CUDA graph: what it reads and writes lies where it lay when it was captured."""

    graph: Any
    inputs: list[Any]
    plan: Plan
    generator: torch.Generator | None  # kept, since the graph draws from it


class CompiledPlanner:
    """The same planner, faster: each iteration compiled by torch's inductor, and on CUDA the whole plan in one graph.

    Takes what the planner takes and returns what it returns; rounding may differ, as the order of sums does. The first
    call for each shape of the arguments compiles, which takes from some seconds to a minute; later ones do not. On CUDA
    a plan is then one replay, and nothing waits for the device. Where torch cannot compile or capture (no C++ compiler,
    dynamics that wait for the device or run on NumPy), the planner runs as it is, with one warning.

    Noise is drawn as the planner draws it, so the same seed gives the same plan. Reuse one generator: on CUDA each has
    a graph of its own, of which the last few are kept.

    What the dynamics read is read where it lay when a plan was captured: change a model's weights in place, as
    optimizers and `load_state_dict` do. After moving a model, or giving the dynamics another one, make a new
    `CompiledPlanner`. The planner itself is copied; changing its settings later has no effect here.

    Args:
        planner: any `Planner`.

    Raises:
        TypeError: planner is none.

    Attributes:
        planner: the copy.
        mode: how the last call ran: "graph", "compiled" or "eager"; None before the first.
        reason: why it was "eager", else None.

    Example:
        >>> import torch
        >>> from planet_lib.planning import CEMPlanner
        >>> class Target:  # the best action is 0.5, whatever the state
        ...     def rollout(self, state, actions, noise=None):
        ...         return -(actions - 0.5).square().sum((0, -1))
        >>> planner = CompiledPlanner(CEMPlanner(Target(), -1.0, 1.0, action_dim=2, horizon=2))
        >>> planner.action_dim, planner.mode is None
        (2, True)
    """

    def __init__(self, planner: Planner) -> None:
        given: object = planner
        if not isinstance(given, Planner):
            raise TypeError(f"planner must be a planet_lib.planning.Planner, got {type(given).__name__}")
        self.planner = copy.copy(planner)
        self.mode: str | None = None
        self.reason: str | None = None
        # The planner's own loop, whose body is compiled.
        self._fast = copy.copy(planner)
        limits = {"isolate_recompiles": True, "recompile_limit": _MANY}
        options: dict[str, Any] = {"backend": compile_spelled_out, "dynamic": False, "fullgraph": True, **limits}
        body = torch.compile(self.planner._iterate, **options)
        self._fast._iterate = body  # type: ignore[method-assign]  # this copy's alone
        self._graphs: dict[Any, Captured] = {}

    @property
    def action_dim(self) -> int:
        """A, the numbers in an action."""
        return self.planner.action_dim

    @property
    def horizon(self) -> int:
        """H, the number of actions planned ahead."""
        return self.planner.horizon

    @property
    def num_rollouts(self) -> tuple[int, ...]:
        """How many rollouts each iteration makes at most, particles counted."""
        return self.planner.num_rollouts

    def clip(self, action: Tensor) -> Tensor:
        """Return the nearest action [..., A] that can be executed."""
        return self.planner.clip(action)

    def explore(self, action: Tensor, scale: float, noise: Tensor | None = None) -> Tensor:
        """Return the action [..., A] to execute while learning, as the planner's."""
        return self.planner.explore(action, scale, noise)

    def __call__(self, state: Any, *, generator: torch.Generator | None = None, **arguments: Any) -> Plan:
        """Plan for every row of `state`, with the arguments of `Planner`."""
        if self.reason is not None:
            return self.planner(state, generator=generator, **arguments)
        _, like = batch_of(state)
        check_generator(generator, like)
        source = _source(generator, like.device)
        drawn = source.get_state()
        try:
            return self._run(state, like, generator, arguments)
        except Exception as error:
            source.set_state(drawn)
            # What the planner itself refuses is raised here, and is no reason to give up compiling.
            plan = self.planner(state, generator=generator, **arguments)
            lines = str(error).strip().splitlines()
            self.mode, self.reason = "eager", ": ".join([type(error).__name__, *lines[:1]])
            warnings.warn(f"planning without torch.compile, {self.reason}", RuntimeWarning, stacklevel=2)
            return plan

    def _run(self, state: Any, like: Tensor, generator: torch.Generator | None, arguments: dict[str, Any]) -> Plan:
        if not like.is_cuda:
            keep_freed_memory()
            plan = self._fast(state, generator=generator, **arguments)
            self.mode = "compiled"
            return plan
        leaves, spec = tree_flatten((state, arguments))
        key = (spec, id(generator), *(_kind(leaf) for leaf in leaves))
        captured = self._graphs.get(key)
        if captured is None:
            if len(self._graphs) == _GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            captured = self._graphs[key] = self._capture(leaves, spec, like, generator)
        for inside, given in zip(captured.inputs, leaves, strict=True):
            if isinstance(inside, Tensor):
                inside.copy_(given, non_blocking=True)
        with torch.cuda.device(like.device):
            captured.graph.replay()
        self.mode = "graph"
        # Copies: the next replay writes into the same memory.
        copied: Plan = tree_map(Tensor.clone, captured.plan)
        return copied

    def _capture(self, leaves: list[Any], spec: Any, like: Tensor, generator: torch.Generator | None) -> Captured:
        """Run the plan a few times, then once more for the record; what is drawn meanwhile is given back."""
        device = like.device
        inputs = [leaf.detach().to(device, copy=True) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        state, arguments = tree_unflatten(inputs, spec)
        fast = copy.copy(self._fast)
        fast._space = self.planner._space.like(like)  # a capture may copy nothing from the host
        source = _source(generator, device)
        drawn = source.get_state()
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.device(device):
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    fast(state, generator=generator, **arguments)
            torch.cuda.current_stream(device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            if generator is not None:
                graph.register_generator_state(generator)
            with torch.cuda.graph(graph, stream=stream):
                plan = fast(state, generator=generator, **arguments)
        source.set_state(drawn)
        return Captured(graph, inputs, plan, generator)


def _source(generator: torch.Generator | None, device: torch.device) -> torch.Generator:
    """Return what noise is drawn from."""
    if generator is not None:
        return generator
    if device.type == "cuda":
        number = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[number]
    return torch.default_generator


def _kind(leaf: Any) -> Any:
    """Return what a graph depends on in an argument: of a tensor all but its numbers."""
    return (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf

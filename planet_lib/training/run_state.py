"""What a run needs to go on bit for bit: all of its parts, saved in one call and restored in one call.

It joins the parts' own state dicts with the states of the random generators, for `planet_lib.training.checkpoint`.
"""

import copy
import os
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from planet_lib._shapes import check_mapping
from planet_lib.training.checkpoint import rng_state, save_checkpoint, set_rng_state

_RNG = "rng"


@runtime_checkable
class Stateful(Protocol):
    """A part whose state can be saved: a module, an optimizer, a replay, `SkipNonFinite`, or one of your own."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state as tensors, numbers, strings and plain containers of them."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Put the part into a state that `state_dict` returned."""
        ...


class RunState:
    """The parts of a run: `save` writes all of them as one checkpoint, `restore` puts all of them back, or none.

    Saved between two episodes, the model, the optimizer, the replay's sampler, the counts of what was done and every
    random generator are all that the rest of a run depends on: episodes are played from seeds that follow from the
    counts, and the agent's filter and the planner's last plan begin anew with each. A loop that saves within an episode
    adds `planet_lib.planning.PlanningAgent.save_state` of the agent's state to what it saves. The global generators of
    Python and NumPy, which planet_lib never draws from, are not saved: where you draw from them, make generators.

    Args:
        **parts: by the names that they have in the checkpoint: anything with `state_dict` and `load_state_dict`, and
            generators of NumPy and torch. Torch's global generators, of the CPU and of CUDA devices, are always saved.

    Raises:
        TypeError: a part is neither.
        ValueError: a part is called "rng", "torch" or "cuda".

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from planet_lib.training import load_checkpoint
        >>> path = tempfile.mkdtemp() + "/checkpoint.pt"
        >>> model, noise = nn.Linear(2, 1), np.random.default_rng(0)
        >>> state = RunState(model=model, optimizer=torch.optim.Adam(model.parameters()), noise=noise)
        >>> state.save(path, episodes=3)
        >>> first = noise.random(), torch.rand(())
        >>> saved = load_checkpoint(path, required=["model", "episodes"])
        >>> state.restore(saved)
        >>> saved["episodes"], first == (noise.random(), torch.rand(()))
        (3, True)
    """

    def __init__(self, **parts: Stateful | torch.Generator | np.random.Generator) -> None:
        self._parts: dict[str, Stateful] = {}
        self._generators: dict[str, torch.Generator | np.random.Generator] = {}
        for name, part in parts.items():
            given: object = part
            if name in (_RNG, "torch", "cuda"):
                raise ValueError(
                    f"parts must not be called {name!r}, which is kept for torch's own, got one: rename it"
                )
            if isinstance(part, torch.Generator | np.random.Generator):
                self._generators[name] = part
            elif isinstance(given, Stateful) and not isinstance(given, type):
                self._parts[name] = part
            else:
                raise TypeError(
                    f"{name} must be a generator, or have state_dict and load_state_dict, got {type(given).__name__}"
                )

    def save(self, path: str | os.PathLike[str], **plain: Any) -> None:
        """Write one checkpoint of all parts, all random generators, and what the caller adds.

        Args:
            path: where; see `planet_lib.training.save_checkpoint`, by which the file is always whole.
            **plain: what else the run needs, such as its settings, the episodes done and the rows of its metrics:
                numbers, strings, tensors, and dicts, lists and tuples of them.

        Raises:
            ValueError: a name is a part's, or "rng".
            TypeError: something is no plain data. Both raised before anything is written.
            OSError: the disk is full, or the place not writable.
        """
        taken = [name for name in plain if name in {*self._parts, _RNG}]
        if taken:
            raise ValueError(f"plain data must have names of their own, got {', '.join(taken)}, which parts have")
        states = {name: _plain(part.state_dict()) for name, part in self._parts.items()}
        save_checkpoint(path, {**plain, **states, _RNG: rng_state(**self._generators)})

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Put every part and every random generator back to what a checkpoint holds, or leave all as they are.

        Args:
            saved: what `planet_lib.training.load_checkpoint` returned. Other entries are the caller's.

        Raises:
            ValueError: a part is missing, or does not fit: another model, an optimizer of other weights.
        """
        check_mapping("saved", saved)
        missing = [name for name in (*self._parts, _RNG) if name not in saved]
        if missing:
            raise ValueError(f"saved must hold every part of this run, got none called {', '.join(missing)}")
        before = {name: copy.deepcopy(part.state_dict()) for name, part in self._parts.items()}
        changed: list[str] = []
        try:
            for name, part in self._parts.items():
                changed.append(name)
                part.load_state_dict(saved[name])
                _check_moments(part)
            changed.append(_RNG)
            set_rng_state(saved[_RNG], **self._generators)
        except Exception as error:  # each part has its own way to say that a state is not for it
            for name in changed:
                if name != _RNG:
                    self._parts[name].load_state_dict(before[name])
            reason = " ".join(str(error).split())
            raise ValueError(f"saved[{changed[-1]!r}] must fit this run, got another's: {reason}") from error


def _check_moments(part: object) -> None:
    """Raise where an optimizer has taken moments of other weights, which torch finds out in the next step at best."""
    if isinstance(part, torch.optim.Optimizer):
        for weight, moments in part.state.items():
            for name in ("exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg"):
                moment = moments.get(name)
                if isinstance(moment, torch.Tensor) and moment.shape != weight.shape:
                    raise ValueError(f"{name} {list(moment.shape)} for a weight {list(weight.shape)}")


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state as a dict: torch's own carry attributes that a checkpoint does not need."""
    return dict(state)

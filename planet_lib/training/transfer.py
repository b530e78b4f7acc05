"""Transfer: begin with the world model of another run, and learn a new task of the same body.

What was learned about images and dynamics does not depend on the task; what earns reward does. So the heads that know
the task begin anew, and everything else continues. Knows models and their weights by name, no files.

Source: Hafner et al. 2019 (arXiv:1811.04551), the introduction, which names it as a promise of learned dynamics.
"""

from collections.abc import Collection, Mapping

from torch import Tensor

from planet_lib._shapes import check_dense, names_of, shown
from planet_lib.models import WorldModel

TASK_HEADS = ("reward_head", "continue_head")


def transfer_weights(
    model: WorldModel, weights: Mapping[str, Tensor], *, fresh: Collection[str] = TASK_HEADS
) -> list[str]:
    """Load the weights of another run's model, except those of the parts that begin anew; return what was loaded.

    Args:
        model: freshly built; the parts in `fresh` keep its own first weights.
        weights: the `state_dict` of a model with the same observations, actions and sizes, such as
            `load_checkpoint(path)["model"]`. It may have no continue head, or one that `model` lacks.
        fresh: names of parts of `WorldModel`: by default the heads that know the task.

    Returns:
        The names of the loaded weights, in the order of the model's.

    Raises:
        ValueError: `fresh` names no part of a world model, or a weight that should be loaded is missing, left over or
            of another shape. Raised before anything is loaded, and lists what differs.

    Example:
        >>> import torch
        >>> from planet_lib.training.presets import PRESETS, build_model
        >>> old, new = (build_model(PRESETS["cpu"], "rssm", (5,), 1) for _ in range(2))
        >>> loaded = transfer_weights(new, old.state_dict())
        >>> any(name.startswith("reward_head") for name in loaded)
        False
        >>> all(torch.equal(new.state_dict()[name], old.state_dict()[name]) for name in loaded)
        True
    """
    _check_kinds(model, weights, fresh)
    parts = [name for name, _ in model.named_children()]
    unknown = [name for name in fresh if name not in {*parts, *TASK_HEADS}]
    if unknown:
        raise ValueError(f"fresh must name parts of the model ({', '.join(parts)}), got {', '.join(unknown)}")
    own, given = (
        {name: value for name, value in state.items() if name.partition(".")[0] not in fresh}
        for state in (model.state_dict(), weights)
    )
    differences = [f"no {name}" for name in own if name not in given]
    differences += [f"{name}, which this model lacks" for name in given if name not in own]
    differences += [
        f"{name} {list(given[name].shape)} instead of {list(value.shape)}"
        for name, value in own.items()
        if name in given and given[name].shape != value.shape
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(
            "weights must be of a model with the same observations, actions and sizes, got "
            f"{'; '.join(differences[:3])}{more}: give the settings of the run that they are from"
        )
    model.load_state_dict(given, strict=False)
    return list(own)


def _check_kinds(model: object, weights: object, fresh: object) -> None:
    """Raise unless each argument is of its kind; what is in the weights is compared afterwards."""
    if not isinstance(model, WorldModel):
        raise TypeError(f"model must be a WorldModel, got {shown(model)}")
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights must be the state_dict of a model, got {shown(weights)}")
    for name, value in weights.items():
        if not isinstance(name, str):
            raise TypeError(f"weights must have names, got {shown(name)}")
        if name in model.state_dict():
            check_dense(f"weights[{name!r}]", value)
            if value.is_meta:
                raise ValueError(f"weights[{name!r}] must hold numbers, got a tensor on the device meta")
    names_of("fresh", fresh)

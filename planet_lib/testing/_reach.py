"""What features and divergence read of a state, and whether their gradients reach it and what made it.

A number is read where the result moves the same way on either side of it. Where that is so, its gradient must not be
zero; how large it is may be the cell's own affair (straight through, balanced), so it is compared with nothing.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from planet_lib.testing._probe import Inputs, Probe
from planet_lib.testing.contract import ContractError, difference, map_leaves

_ROWS = 4
_NUMBERS = 256  # at most so many numbers of a field are moved
_ROUNDING = 256.0  # in units of the precision: in bfloat16 little can be seen


def check_reach(probe: Probe) -> None:
    """Features and divergence, each alone, train every field that they read; these train what made them."""
    cell, inputs, other = probe.cell, probe.rows(_ROWS), probe.rows(_ROWS)
    prior, posterior, *_ = probe.step(inputs)

    def alongside(state: Any, like: Any) -> Any:
        return map_leaves(lambda field, wide: field.expand_as(wide), state, like)

    questions: tuple[tuple[str, str, Any, Callable[[Any], Tensor]], ...] = (
        ("features", "prior", prior, cell.features),
        ("features", "posterior", posterior, cell.features),
        ("divergence", "prior", prior, lambda state: cell.divergence(alongside(posterior, state), state).unsqueeze(-1)),
        (
            "divergence",
            "posterior",
            posterior,
            lambda state: cell.divergence(state, alongside(prior, state))[..., None],
        ),
    )
    read: dict[str, set[str]] = {"prior": set(), "posterior": set()}
    for method, name, state, function in questions:
        for field in _floating(state):
            if _is_read(probe, function, state, field, f"cell.{method}", f"{name}.{field}"):
                read[name].add(field)
    _check_making(probe, inputs, other, prior, read)


def _floating(state: Any) -> list[str]:
    return [name for name in state._fields if (value := getattr(state, name)).is_floating_point() and value.numel()]


def _is_read(
    probe: Probe, function: Callable[[Any], Tensor], state: Any, field: str, method: str, argument: str
) -> bool:
    """Whether moving any number of the field moves the result; raise if its gradient is zero all the same."""
    value = getattr(state, field)
    size = value[0].numel()
    chosen = torch.randperm(size, generator=probe.generator)[:_NUMBERS].to(probe.device)
    distance = torch.zeros(len(chosen), _ROWS, size, dtype=value.dtype, device=value.device)
    flat = value.flatten(1)
    by = torch.where(flat == 0, 0.01, 0.05 * flat + 0.01 * flat.sign())
    number = torch.arange(len(chosen), device=probe.device)
    distance[number, :, chosen] = by[:, chosen].T
    wide = map_leaves(lambda leaf: leaf.expand(len(chosen), *leaf.shape), state)
    moved = distance.reshape(-1, *value.shape)
    before, here, after = (function(wide._replace(**{field: value + side * moved})) for side in (-1, 0, 1))
    least = _ROUNDING * torch.finfo(value.dtype).eps * (1 + here.abs().max())
    rise = torch.stack([after - here, here - before])
    same_way = ((rise > least) | (rise < -least)).all(0) & (rise[0] * rise[1] > 0) & rise.isfinite().all(0)
    is_read = same_way.any(-1).any(-1)
    with torch.enable_grad():
        leaf = value.clone().requires_grad_()
        result = function(state._replace(**{field: leaf}))
        gradient = _gradient((result * probe.normal(result.shape[-1])).sum(), [leaf])[0].flatten(1)[:, chosen].T
    reached = (gradient != 0).any(-1)
    if bool((is_read & ~reached).any()) or not bool(gradient.isfinite().all()):
        got = "none" if bool(gradient.isfinite().all()) else "NaN or infinity"
        raise ContractError(
            f"a gradient of {method} must reach all that it reads of {argument}, got {got}; detach nothing, the losses "
            "stop gradients where they should"
        )
    return bool(is_read.any())


def _check_making(probe: Probe, inputs: Inputs, other: Inputs, prior: Any, read: dict[str, set[str]]) -> None:
    """Each field that is read has a gradient to every argument that decides it."""
    cell, other_prior = probe.cell, probe.step(other).prior
    calls: tuple[tuple[str, str, Any, Any, Callable[[Any], Any]], ...] = (
        ("prior", "action", inputs.action, other.action, lambda x: cell.prior(inputs.state, x, inputs.prior_noise)),
        ("prior", "state", inputs.state, other.state, lambda x: cell.prior(x, inputs.action, inputs.prior_noise)),
        ("posterior", "embed", inputs.embed, other.embed, lambda x: cell.posterior(prior, x, inputs.posterior_noise)),
        ("posterior", "prior", prior, other_prior, lambda x: cell.posterior(x, inputs.embed, inputs.posterior_noise)),
    )
    for method, argument, value, changed, call in calls:
        with torch.enable_grad():
            traced = map_leaves(lambda leaf: leaf.clone().requires_grad_(leaf.is_floating_point()), value)
            made = call(traced)
        sources = [leaf for leaf in ([traced] if isinstance(traced, Tensor) else traced) if leaf.requires_grad]
        unlike = call(changed)
        for field in sorted(read[method]):
            result = getattr(made, field)
            if not difference(getattr(unlike, field), result):
                continue
            with torch.enable_grad():
                gradients = _gradient((result * probe.normal(*result.shape)).sum(), sources)
            if not any(bool((gradient != 0).any()) for gradient in gradients):
                remedy = "detach nothing, and sample so that gradients pass (reparametrised, or straight through)"
                raise ContractError(
                    f"a gradient of cell.{method}'s {field} must reach {argument}, which changes it, got none; {remedy}"
                )


def _gradient(result: Tensor, of: list[Tensor]) -> list[Tensor]:
    """Gradients, zero where there are none; .grad stays as it is."""
    if not result.requires_grad:
        return [torch.zeros_like(value) for value in of]
    return list(torch.autograd.grad(result, of, retain_graph=True, allow_unused=True, materialize_grads=True))

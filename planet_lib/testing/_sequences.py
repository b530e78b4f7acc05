"""What a cell has to keep over whole sequences: filtering, resets, gradients, tracing."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from planet_lib.models import imagine, observe, step
from planet_lib.testing._probe import Probe
from planet_lib.testing.contract import ContractError, expect_equal, map_leaves, runs


class _Sequence(NamedTuple):
    """The arguments of `observe`: the state before row 0 [B, ...], the others [T, B, ...]."""

    state: Any
    embed: Tensor
    action: Tensor
    is_first: Tensor
    prior_noise: Tensor
    posterior_noise: Tensor


def check_observe(probe: Probe) -> None:
    """Filtering runs, equals stepping, and goes on from a state handed over."""
    sequence, half = _sequence(probe), probe.length // 2
    whole = _observe(probe, sequence)
    must = "of cell.scan must equal stepping, with is_first in any row; compare with planet_lib.models.step"
    expect_equal(whole, _stepped(probe, sequence), "", must)
    left = _observe(probe, _Sequence(sequence.state, *(field[:half] for field in sequence[1:])))
    handed_over = map_leaves(lambda field: field[-1], left.posterior)
    right = _observe(probe, _Sequence(handed_over, *(field[half:] for field in sequence[1:])))
    must = "of two half windows, the state handed over, must equal those of the whole; read and return all of the state"
    expect_equal(map_leaves(lambda *fields: torch.cat(fields), left, right), whole, "", must)


def check_single(probe: Probe) -> None:
    """One row of time, one row of the batch, and both: the same numbers as in a longer sequence and a larger batch."""
    sequence = _sequence(probe)
    whole = _observe(probe, sequence)
    for rows, batch in ((1, probe.batch_size), (probe.length, 1), (1, 1)):
        state = map_leaves(lambda field, batch=batch: field[:batch], sequence.state)
        part = _Sequence(state, *(field[:rows, :batch] for field in sequence[1:]))
        got = _observe(probe, part)
        expected = map_leaves(lambda field, rows=rows, batch=batch: field[:rows, :batch], whole)
        must = f"of observe must be the same at T={rows}, B={batch} as in a larger window; no squeeze()"
        expect_equal(got, expected, "", must)
        _observe(probe, part, noise=False)


def check_reset(probe: Probe) -> None:
    """Nothing from before an is_first, the incoming action included, matters from there on: not even NaN."""
    sequence, row = _sequence(probe), probe.length // 2
    sequence.is_first[:, 0] = False
    sequence.is_first[row, 0] = True
    expected = _observe(probe, sequence)
    embed, action = sequence.embed.clone(), sequence.action.clone()
    embed[:row, 0], action[: row + 1, 0] = torch.nan, torch.nan
    got = _observe(probe, sequence._replace(embed=embed, action=action))
    must = "must start afresh where is_first holds, got what NaN before it left; fill with masked_fill or torch.where"
    expect_equal(_part(got, slice(row, None), 0), _part(expected, slice(row, None), 0), "", must)
    must = "of one row must not depend on other rows of the batch, got NaN from there"
    expect_equal(_part(got, slice(None), slice(1, None)), _part(expected, slice(None), slice(1, None)), "", must)


def check_gradients(probe: Probe) -> None:
    """Features and divergence train everything that led to them; a scan has the gradients of stepping."""
    sequence, cell = _sequence(probe), probe.cell
    sequence.is_first[:] = False
    weight = probe.normal(cell.feature_dim)
    named = list(cell.named_parameters()) if isinstance(cell, nn.Module) else []
    named = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    with torch.enable_grad():
        inputs = {name: getattr(sequence, name).clone().requires_grad_() for name in ("embed", "action")}
        traced = sequence._replace(**inputs)
        found = []
        for prior, posterior in (_observe(probe, traced), _stepped(probe, traced)):
            terms = (cell.features(posterior) * weight).sum(-1) + cell.divergence(posterior, prior)
            at_end = _gradients(terms[-1].sum(), list(inputs.values()))
            found.append(at_end + _gradients(terms.sum(), [parameter for _, parameter in named]))
    for name, gradient, row in zip(inputs, found[0], (0, 1), strict=False):
        if not bool(gradient.isfinite().all() and (gradient[row] != 0).any()):
            got = "none" if bool(gradient.isfinite().all()) else "NaN or infinity"
            remedy = "detach nothing, and sample so that gradients pass (reparametrised, or straight through)"
            raise ContractError(f"a gradient must reach {name} at row {row} from the last row, got {got}; {remedy}")
    idle = [name for (name, _), gradient in zip(named, found[0][2:], strict=True) if not bool((gradient != 0).any())]
    if idle:
        remedy = "use them, or take them out (requires_grad = False for those that are fixed)"
        raise ContractError(
            f"features and divergence must train every parameter, got none for {', '.join(idle)}; {remedy}"
        )
    for name, gradient, by_stepping in zip((*inputs, *(name for name, _ in named)), *found, strict=True):
        scale = by_stepping.abs().max().clamp(min=1.0)
        must = "through cell.scan must equal that of stepping"
        expect_equal(gradient / scale, by_stepping / scale, f"the gradient to {name}", must)


def check_compile(probe: Probe) -> None:
    """Filtering, features, divergence and imagining are one graph, with the same numbers."""
    cell, sequence = probe.cell, _sequence(probe)

    def run(sequence: _Sequence) -> _Traced:
        prior, posterior = _call_observe(probe, sequence)
        last = map_leaves(lambda field: field[-1], posterior)
        imagined = imagine(cell, last, sequence.action, noise=sequence.prior_noise)
        return _Traced(prior, posterior, imagined, cell.features(imagined), cell.divergence(posterior, prior))

    torch.compiler.reset()
    remedy = "no .item(), no Python branch on what a tensor holds; or pass compile=False"
    with runs(f"the cell must trace under torch.compile(fullgraph=True) ({remedy})"):
        compiled = torch.compile(run, fullgraph=True, backend="eager", dynamic=False)(sequence)
    expect_equal(compiled, run(sequence), "", "must be the same under torch.compile; branch on no tensor's value")


class _Filtered(NamedTuple):
    """What `observe` returns."""

    prior: Any
    posterior: Any


class _Traced(NamedTuple):
    """What is traced."""

    prior: Any
    posterior: Any
    imagined: Any
    features: Tensor
    divergence: Tensor


def _sequence(probe: Probe) -> _Sequence:
    """Random arguments of `observe`, with episodes that start in rows 0, 1 and in the middle."""
    lead = (probe.length, probe.batch_size)
    rows = probe.inputs(probe.state(probe.batch_size), *lead)
    is_first = torch.zeros(lead, dtype=torch.bool, device=probe.device)
    is_first[0, 0] = is_first[1, -1] = is_first[probe.length // 2, 1] = True
    return _Sequence(rows.state, rows.embed, rows.action, is_first, rows.prior_noise, rows.posterior_noise)


def _call_observe(probe: Probe, sequence: _Sequence, noise: bool = True) -> _Filtered:
    state, embed, action, is_first, prior_noise, posterior_noise = sequence
    given = {"prior_noise": prior_noise, "posterior_noise": posterior_noise} if noise else {}
    return _Filtered(*observe(probe.cell, embed, action, is_first, state, **given))


def _observe(probe: Probe, sequence: _Sequence, noise: bool = True) -> _Filtered:
    with runs("planet_lib.observe must run with the cell"):
        return _call_observe(probe, sequence, noise)


def _part(filtered: _Filtered, rows: slice, batch: slice | int) -> Any:
    return map_leaves(lambda field: field[rows, batch], filtered)


def _stepped(probe: Probe, sequence: _Sequence) -> _Filtered:
    """The same, one step after the other."""
    state, results = sequence.state, []
    for embed, action, is_first, prior_noise, posterior_noise in zip(*sequence[1:], strict=True):
        noise = {"prior_noise": prior_noise, "posterior_noise": posterior_noise}
        prior, state = step(probe.cell, state, action, embed, is_first, **noise)
        results.append(_Filtered(prior, state))
    stacked: _Filtered = map_leaves(lambda *fields: torch.stack(fields), *results)
    return stacked


def _gradients(loss: Tensor, of: list[Tensor]) -> list[Tensor]:
    """Gradients, zero where there are none; .grad stays as it is."""
    if not loss.requires_grad or not of:
        return [torch.zeros_like(value) for value in of]
    return list(torch.autograd.grad(loss, of, retain_graph=True, allow_unused=True, materialize_grads=True))

"""Noise: what is given decides the result, and what is drawn where none is given is as good as standard normal noise.

Drawn noise is compared with given noise by what a cell makes of it, on rows whose inputs are all the same: so nothing
needs to be known about how a cell uses it. Steps are tried on two leading axes; `observe` on rows that all start an
episode, where the rows of time are independent too, and in mid-episode, where each row is compared with its like. A
state that is drawn again is compared with those that the cell drew in the first place.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from planet_lib.models import observe
from planet_lib.testing._probe import Inputs, Probe
from planet_lib.testing.contract import ContractError, difference, expect_equal, leaves, map_leaves, runs, tolerance

_GIVEN = 512  # enough for noise to move a discrete state
_DRAWS = 8192  # enough to tell a tail cut at 2.5 standard deviations, or a correlation of 0.15 ...
_STANDARD_ERRORS = 6.0  # ... at so many standard errors, which no right cell exceeds in practice
_STEP_LEAD = (64, _DRAWS // 64)
_START_LEAD = (16, _DRAWS // 16)  # [T, B]
_MIDDLE_LENGTH, _MIDDLE_BATCH = 4, _DRAWS // 4
_QUANTILES = (0.005, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 0.995)
_COLUMNS = 256  # at most so many numbers of a state are looked at in pairs

_Draw = Callable[[bool], dict[str, Any]]  # noise given or not -> states by name


def check_given_noise(probe: Probe, inputs: Inputs, other: Inputs) -> None:
    """Given noise decides the result, in `prior` and in `posterior`."""
    torch.manual_seed(probe.seed)
    first = probe.step(inputs)
    torch.manual_seed(probe.seed + 1)
    must = "must be the same at any seed, since the noise is given; draw nothing where it is"
    expect_equal(probe.step(inputs), first, "", must)
    if probe.cell.noise_dim == 0:
        return
    many = map_leaves(lambda field: field[:1].expand(_GIVEN, *field.shape[1:]), inputs)
    results = {
        "prior": probe.step(many._replace(prior_noise=probe.noise(_GIVEN))).prior,
        "posterior": probe.step(many._replace(posterior_noise=probe.noise(_GIVEN))).posterior,
    }
    for name, state in results.items():
        if not differ(state, map_leaves(lambda field: field[:1].expand_as(field), state)):
            remedy = "use it, or set noise_dim = 0 where nothing is random"
            raise ContractError(f"cell.{name} must depend on its noise, got the same state from any; {remedy}")


def check_drawn_noise(probe: Probe, inputs: Inputs, other: Inputs) -> None:
    """noise=None in `prior` and in `posterior`: see `_check_drawn`."""
    lead, cell = _STEP_LEAD, probe.cell
    many = map_leaves(lambda field: field[0].expand(*lead, *field.shape[1:]), inputs)
    calls = {
        "prior": partial(cell.prior, many.state, many.action),
        "posterior": partial(cell.posterior, many.state, many.embed),
    }
    for name, call in calls.items():

        def draw(given: bool, name: str = name, call: Callable[[Tensor | None], Any] = call) -> dict[str, Any]:
            with runs(f"cell.{name} must run without noise"):
                state = call(probe.noise(*lead) if given else None)
            probe.check_state(name, state, lead)
            return {name: state}

        _check_drawn(probe, "cell.{}", "", draw, lead)


def check_drawn_noise_of_observe(probe: Probe) -> None:
    """No noise in `observe`, by a scan of the cell's own or by stepping: see `_check_drawn`."""
    one = probe.rows(1)

    def draw(given: bool, lead: tuple[int, int], starts: bool) -> dict[str, Any]:
        initial = map_leaves(lambda field: field.expand(lead[1], *field.shape[1:]), one.state)
        embed, action = (field.expand(*lead, -1) for field in (one.embed, one.action))
        is_first = torch.full(lead, starts, device=probe.device)
        noise = {name: probe.noise(*lead) if given else None for name in ("prior_noise", "posterior_noise")}
        with runs(f"planet_lib.observe must run with the cell, noise {'given' if given else 'drawn'}"):
            prior, posterior = observe(probe.cell, embed, action, is_first, initial, **noise)
        states = {"prior": prior, "posterior": posterior}
        for name, state in states.items():
            probe.check_state(name, state, lead)
        return states

    def in_mid_episode(given: bool) -> dict[str, Any]:
        states = draw(given, (_MIDDLE_LENGTH, _MIDDLE_BATCH), False)
        return {name: map_leaves(lambda field: field.transpose(0, 1), state) for name, state in states.items()}

    at_starts = partial(draw, lead=_START_LEAD, starts=True)
    _check_drawn(probe, "{} of observe", " of observe", at_starts, _START_LEAD)
    _check_drawn(probe, "{} of observe", " of observe", in_mid_episode, (_MIDDLE_BATCH,))


def check_redraw(probe: Probe) -> None:
    """Where the cell has it, `redraw` draws the state again: from the same distribution, by its noise alone."""
    redraw = getattr(probe.cell, "redraw", None)
    if redraw is None:
        return
    first, second = (probe.step(probe.rows(probe.batch_size)) for _ in range(2))
    for state, other in zip(first[:2], second[:2], strict=True):
        _check_redrawn_rows(probe, redraw, state, other)
    many = map_leaves(lambda field: field[0].expand(*_STEP_LEAD, *field.shape[1:]), probe.rows(1))
    for name in ("prior", "posterior"):
        state = getattr(probe.step(many._replace(**{f"{name}_noise": probe.noise(*_STEP_LEAD)})), name)
        one = map_leaves(lambda field: field[0, 0].expand_as(field), state)

        def draw(given: bool, one: Any = one) -> dict[str, Any]:
            with runs("cell.redraw must run without noise"):
                drawn = redraw(one, probe.noise(*_STEP_LEAD)) if given else redraw(one)
            probe.check_state("redraw", drawn, _STEP_LEAD)
            return {"redraw": drawn}

        _check_drawn(probe, "cell.{}", "", draw, _STEP_LEAD)
        _check_redrawn_alike(probe, name, state, redraw(state, probe.noise(*_STEP_LEAD)))


def _check_redrawn_rows(probe: Probe, redraw: Callable[..., Any], state: Any, other: Any) -> None:
    """Raise unless a redrawn state is like its argument, which it leaves alone, row by row, and as far from it as 0."""
    lead = (probe.batch_size,)
    noise, other_noise = probe.noise(*lead), probe.noise(*lead)
    before = map_leaves(Tensor.clone, state)
    with runs("cell.redraw must run with a state and noise"):
        drawn, another = redraw(state, noise), redraw(other, other_noise)
    probe.check_state("redraw", drawn, lead)
    must = "must be left as it was by cell.redraw; use nothing that writes in place"
    expect_equal(state, before, "the argument state", must)
    apart = torch.stack([probe.divergence(drawn, state, lead), probe.divergence(state, drawn, lead)])
    must = "between a state and the same one redrawn must be 0; draw from the state's own distribution, and keep that"
    expect_equal(apart, torch.zeros_like(apart), "cell.divergence", must)
    both = map_leaves(lambda *fields: torch.stack(fields), state, other)
    expected = map_leaves(lambda *fields: torch.stack(fields), drawn, another)
    with runs("cell.redraw must run with leading axes [2, B]"):
        nested = redraw(both, torch.stack([noise, other_noise]))
    probe.check_state("redraw", nested, (2, *lead))
    must = "must be the same on leading axes [J, B] as on [B]; read sizes from the last axes only"
    expect_equal(nested, expected, "redraw", must)
    alone = redraw(map_leaves(lambda field: field[:1], state), noise[:1])
    probe.check_state("redraw", alone, (1,))
    must = "of one row must not depend on other rows of the batch; take no mean or other statistic over it"
    expect_equal(alone, map_leaves(lambda field: field[:1], drawn), "redraw", must)
    if probe.cell.noise_dim and not differ(redraw(state, other_noise), drawn):
        raise ContractError("cell.redraw must depend on its noise, got the same state from any; use it")


def _check_redrawn_alike(probe: Probe, name: str, state: Any, redrawn: Any) -> None:
    """Raise unless states [J, B, ...] that the cell drew, and the same ones redrawn, differ as any two draws do."""
    remedy = "draw from the distribution that the state holds"
    for (leaf, one), (_, two) in zip(leaves(redrawn, "redraw"), leaves(state), strict=True):
        if not _alike(_flat(one, _STEP_LEAD), _flat(two, _STEP_LEAD), tolerance(one.dtype)):
            raise ContractError(f"{leaf} must be distributed alike as drawn by cell.{name}; {remedy}")
    if probe.cell.noise_dim == 0:
        return
    columns = [torch.cat([_flat(leaf, _STEP_LEAD) for _, leaf in leaves(value)], 1) for value in (state, redrawn)]
    varies = columns[0].std(0) > tolerance(probe.dtype) * (1 + columns[0].abs().mean(0))
    correlation, error = _correlation(*(_standardised(values[:, varies][:, :_COLUMNS]) for values in columns))
    if bool((correlation.abs() > _STANDARD_ERRORS * error).any()):
        raise ContractError(
            "cell.redraw must draw afresh, got a state correlated with the one it was given; use its distribution, not "
            "its sample"
        )


def differ(one: Any, other: Any) -> bool:
    """Whether any field differs by more than rounding."""
    return any(difference(first, second) > 0 for first, second in zip(one, other, strict=True))


def _check_drawn(probe: Probe, title: str, of: str, draw: _Draw, lead: tuple[int, ...]) -> None:
    """Raise unless torch.manual_seed replays what is drawn, row by row anew, and as standard normal noise would be."""
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(probe.seed + seed)
        drawn.append(draw(False))
    for name, first in drawn[0].items():
        again, another = drawn[1][name], drawn[2][name]
        must = f"{of} must be replayed by torch.manual_seed where noise is None; draw from torch's global generator"
        expect_equal(again, first, name, must.strip())
        if probe.cell.noise_dim == 0:
            must = f"{of} must not be random, since noise_dim is 0; set it to the numbers that one step uses"
            for state in (map_leaves(lambda field: _first_row(field, lead), first), another):
                expect_equal(state, first, name, must.strip())
        elif not differ(another, first):
            remedy = "draw from torch's global generator where noise is None"
            what = title.format(name)
            raise ContractError(f"{what} must follow torch.manual_seed, got the same at another seed; {remedy}")
    if probe.cell.noise_dim == 0:
        return
    given = draw(True)
    _check_independence(probe, " and ".join(map(title.format, given)), drawn[0], given, lead)
    for name, expected in given.items():
        for (leaf, one), (_, two) in zip(leaves(drawn[0][name], name), leaves(expected, name), strict=True):
            if not _alike(_flat(one, lead), _flat(two, lead), tolerance(one.dtype)):
                remedy = "draw torch.randn where noise is None, a number for each row and each of noise_dim"
                what = f"{leaf}{of} must be distributed alike for noise=None and for normal noise"
                raise ContractError(f"{what}; {remedy}")


def _first_row(field: Tensor, lead: tuple[int, ...]) -> Tensor:
    return field[(0,) * len(lead)].expand_as(field)


def _flat(field: Tensor, lead: tuple[int, ...]) -> Tensor:
    """[draws, numbers] in float64."""
    rows = field.detach().double().flatten(0, len(lead) - 1)
    return rows.reshape(len(rows), rows[0].numel())


def _alike(drawn: Tensor, expected: Tensor, rounding: float) -> bool:
    """Whether means, variances and tails [N, C] agree, as far as so many rows can tell."""
    if expected.numel() == 0:
        return True
    rows, centre = len(expected), expected.mean(0)
    slack = rounding * (1 + expected.abs().mean(0))
    for power in (1, 2):
        (a_var, a), (b_var, b) = (torch.var_mean((value - centre) ** power, 0) for value in (drawn, expected))
        if bool(((a - b).abs() > _STANDARD_ERRORS * ((a_var + b_var) / rows).sqrt() + slack).any()):
            return False
    varies = expected.std(0) > slack
    if not bool(varies.any()):
        return True
    drawn, expected, slack = drawn[:, varies], expected[:, varies], slack[varies]
    ordered = expected.T.contiguous().sort(-1).values
    for quantile in _QUANTILES:
        limit = ordered[:, int(quantile * rows)] + slack
        above, expected_above = (drawn > limit).double().mean(0), (expected > limit).double().mean(0)
        share = (above + expected_above) / 2
        error = (2 * share * (1 - share) / rows).sqrt()
        if bool(((above - expected_above).abs() > _STANDARD_ERRORS * error).any()):
            return False
    return True


def _check_independence(
    probe: Probe, what: str, drawn: dict[str, Any], given: dict[str, Any], lead: tuple[int, ...]
) -> None:
    """Raise where rows of any leading axis are correlated, or numbers of one row otherwise than with given noise."""
    drawn_columns, given_columns = (
        torch.cat([_flat(leaf, lead) for state in states.values() for _, leaf in leaves(state)], 1)
        for states in (drawn, given)
    )
    varies = given_columns.std(0) > tolerance(probe.dtype) * (1 + given_columns.abs().mean(0))
    kept = varies.nonzero().squeeze(1)
    kept = kept[torch.randperm(len(kept), generator=probe.generator)[:_COLUMNS].to(kept.device)]
    one, expected = _standardised(drawn_columns[:, kept]), _standardised(given_columns[:, kept])
    rows = one.reshape(*lead, -1)
    for axis, size in enumerate(lead):
        for lag in (1, size // 2):
            before, after = (rows.narrow(axis, start, size - lag).flatten(0, -2) for start in (0, lag))
            correlation, error = _correlation(before, after)
            if bool((correlation.abs() > _STANDARD_ERRORS * error).any()):
                got = f"correlated ones along leading axis {axis} of {len(lead)}"
                raise ContractError(
                    f"{what} must draw noise of its own for each row where noise is None, got {got}; draw torch.randn "
                    "with the leading axes of the arguments"
                )
    (correlation, error), (right, right_error) = _correlation(one, one), _correlation(expected, expected)
    if bool(((correlation - right).abs() > _STANDARD_ERRORS * (error**2 + right_error**2).sqrt() + 1e-6).any()):
        raise ContractError(
            f"{what} must draw independent numbers where noise is None, got others correlated than with noise given; "
            "draw torch.randn, a number for each of noise_dim, and not the same for prior and posterior or two rows"
        )


def _standardised(columns: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the rows; a constant becomes 0."""
    return (columns - columns.mean(0)) / columns.std(0).clamp(min=torch.finfo(torch.float64).tiny)


def _correlation(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Mean products of columns [C, C], and their standard errors: as found, but no less than independence gives.

    Of two rare classes that happen never to meet, the products found hardly vary.
    """
    mean = one.T @ other / len(one)
    square = one.square().T @ other.square() / len(one)
    return mean, ((square - mean.square()).clamp(min=1.0) / len(one)).sqrt()

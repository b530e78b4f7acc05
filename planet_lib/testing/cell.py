"""The contract of a cell. Knows the `Cell` protocol and the public time loops, and no class that implements one.

Source: ours. The promises are those whose breach went unnoticed in published PlaNet and Dreamer code: a rollout that
never advances, a reset that keeps the action, noise that is not normal, statistics that run over the batch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from planet_lib._shapes import check_count, check_flag, check_whole, is_whole, shown
from planet_lib.models import Cell
from planet_lib.testing import _noise, _reach, _sequences
from planet_lib.testing._probe import Inputs, Probe
from planet_lib.testing.contract import (
    LARGEST_SEED,
    ContractError,
    difference,
    expect_equal,
    map_leaves,
    runs,
    tolerance,
)

_SIZES = {"action_dim": 1, "feature_dim": 1, "noise_dim": 0}
_METHODS = ("initial", "prior", "posterior", "features", "divergence")


def check_cell(
    cell: Cell[Any],
    *,
    embed_dim: int | None = None,
    batch_size: int = 3,
    length: int = 6,
    seed: int = 0,
    compile: bool = True,
) -> None:
    """Try whether a cell keeps what observing, imagining, the losses and the planner rely on.

    In this order:

    - it has the members of `Cell`; `initial` returns a NamedTuple of tensors [B, ...], every row alike;
    - all that is returned has the right type, shape, dtype and device and is finite, on leading axes [B], [J, B], [1],
      [1, B] and [B, 1], with the same numbers for all;
    - arguments are left as they were, nothing is remembered from call to call, batch rows do not mix;
    - noise decides everything: the same noise gives the same state, other noise another one, in `prior` and in
      `posterior` (where noise_dim is 0, nothing is random); noise=None draws from torch's global generator, so that
      `torch.manual_seed` replays it, anew for each row of every leading axis, and by the same distribution as
      standard normal noise would, in `prior`, `posterior` and `observe`;
    - the prior depends on action and state, the posterior on embed; the divergence is never negative, 0 of a state from
      itself and not a constant;
    - `observe` runs, starts afresh wherever is_first holds (not even NaN survives), and goes on from a state handed
      over; where the cell has its own `scan`, that equals stepping, gradients included; T = 1 and B = 1 change nothing;
    - through features and divergence, gradients reach embed and action of earlier rows and every parameter; through
      each of them alone, every number of prior and posterior that it reads, and from there action, state and embed;
    - where it has a `global_prior`, that is a state like its argument, and one distribution for all states;
    - where it has a `redraw`, that is another draw of its argument: decided by the noise given, row by row, at a
      divergence of 0, distributed as `prior` or `posterior` drew it in the first place, and correlated with it in
      nothing;
    - all of it traces under `torch.compile(fullgraph=True)`.

    It tries and does not prove: one seed, one size, one set of weights. It cannot know whether the divergence is the
    right one, or reversed, nor whether the cell can learn. What is drawn is told from standard normal noise by some
    thousand draws at six standard errors: tails that are cut at 2.5 standard deviations, a scale that is 10 % off, a
    mean that is off by 0.15 standard deviations, a correlation of 0.15 (in mid-episode twice as much); less than that,
    and dependence without correlation, go unseen. Of a gradient it asks that there is one, not how large it is (a
    scan's must be that of stepping), and in bfloat16 it sees few that are missing.

    The cell is tried as it is: on its device, in its dtype, in train or eval mode. Its parameters and their gradients,
    torch's random state and its grad mode are left as they were. Tracing empties the caches of `torch.compile`.

    Args:
        cell: any `Cell`.
        embed_dim: E, numbers in an embedding; None takes the cell's embed_dim.
        batch_size: B, at least 2.
        length: T, rows of a sequence, at least 4.
        seed: of the random inputs.
        compile: False leaves tracing out, which can take longer than all the rest.

    Raises:
        ContractError: a promise is broken; the message says which, what came and what to do.
        TypeError: cell is a class.
        ValueError: embed_dim is neither given nor a member of the cell, or a size is too small.

    Example:
        >>> from planet_lib import RSSMCell
        >>> check_cell(RSSMCell(action_dim=2, embed_dim=8, deter_dim=16, stoch_dim=4, hidden_dim=16), compile=False)
    """
    if isinstance(cell, type):
        raise TypeError(f"cell must be an instance, got the class {cell.__name__}; call it with its sizes first")
    if not is_whole(batch_size, 2) or not is_whole(length, 4):
        got = f"{shown(batch_size)} and {shown(length)}"
        raise ValueError(f"batch_size must be at least 2 and length at least 4, got {got}")
    check_whole("seed", seed, least=0, most=LARGEST_SEED)
    check_flag(compile=compile)
    embed_dim = getattr(cell, "embed_dim", None) if embed_dim is None else embed_dim
    if embed_dim is None:
        name = type(cell).__name__
        raise ValueError(f"embed_dim must be given, got none and {name} has none; call check_cell(cell, embed_dim=E)")
    check_count(embed_dim=embed_dim)
    # Whatever else a cell may do wrong, it is the cell that does not keep its promises.
    with runs("cell must run as planet_lib.Cell says"), torch.inference_mode(False), torch.no_grad():
        _check_members(cell)
        probe = Probe(cell, int(embed_dim), int(batch_size), int(length), int(seed))
        devices = [] if probe.device.type == "cpu" else [probe.device]
        with torch.random.fork_rng(devices, device_type=probe.device.type if devices else "cuda"):
            _check_initial(probe)
            for check in _STEP_CHECKS:
                check(probe, probe.rows(batch_size), probe.rows(batch_size))
            _sequences.check_observe(probe)
            _sequences.check_single(probe)
            _noise.check_drawn_noise_of_observe(probe)
            _sequences.check_reset(probe)
            _sequences.check_gradients(probe)
            _reach.check_reach(probe)
            _check_global_prior(probe)
            _noise.check_redraw(probe)
            if compile:
                _sequences.check_compile(probe)


def _check_members(cell: object) -> None:
    for name, least in _SIZES.items():
        size = getattr(cell, name, None)
        if not is_whole(size, least):
            got = "none" if size is None else repr(size)
            remedy = "planet_lib.Cell lists what a cell has to offer"
            raise ContractError(f"cell.{name} must be a whole number of at least {least}, got {got}; {remedy}")
    for name in _METHODS:
        if not callable(getattr(cell, name, None)):
            raise ContractError(
                f"cell.{name} must be a method, got none; planet_lib.Cell lists what a cell has to offer"
            )


def _check_initial(probe: Probe) -> None:
    rows = probe.batch_size
    probe.check_state("initial", probe.like, (1,))
    state = probe.cell.initial(rows)
    probe.check_state("initial", state, (rows,))
    alike = map_leaves(lambda field: field.expand(rows, *field.shape[1:]), probe.like)
    remedy = "an episode may start in any row, so all start alike"
    expect_equal(state, alike, "cell.initial", f"must be the same in every row, whatever the batch size; {remedy}")
    probe.step(probe.inputs(state, rows))


def _check_leading_axes(probe: Probe, inputs: Inputs, other: Inputs) -> None:
    flat = map_leaves(lambda one, two: torch.cat([one, two]), inputs, other)
    nested = map_leaves(lambda one, two: torch.stack([one, two]), inputs, other)
    got = map_leaves(lambda field: field.flatten(0, 1), probe.step(nested))
    remedy = "read sizes from the last axes only"
    expect_equal(got, probe.step(flat), "", f"must be the same on leading axes [J, B] as on [J * B]; {remedy}")


def _check_single_rows(probe: Probe, inputs: Inputs, other: Inputs) -> None:
    expected = probe.step(inputs)
    first = map_leaves(lambda field: field[:1], inputs)
    remedy = "an axis of size 1 is an axis like any other: no squeeze()"
    got = map_leaves(lambda field: field[0], probe.step(first))
    must = f"must be the same in a batch of one row as in a larger one; {remedy}"
    expect_equal(got, map_leaves(lambda field: field[0], expected), "", must)
    for axis, lead in ((0, "[1, B]"), (1, "[B, 1]")):
        nested = map_leaves(lambda field, axis=axis: field.unsqueeze(axis), inputs)
        got = map_leaves(lambda field: field.flatten(0, 1), probe.step(nested))
        expect_equal(got, expected, "", f"must be the same on leading axes {lead} as on [B]; {remedy}")
    for name, call, argument in (
        ("prior", probe.cell.prior, first.action),
        ("posterior", probe.cell.posterior, first.embed),
    ):
        with runs(f"cell.{name} must run without noise"):
            state = call(first.state, argument)
        probe.check_state(name, state, (1,))


def _check_arguments_are_kept(probe: Probe, inputs: Inputs, other: Inputs) -> None:
    cell = probe.cell
    prior, posterior, *_ = probe.step(map_leaves(Tensor.clone, inputs))
    calls: tuple[tuple[str, Callable[..., object], dict[str, Any]], ...] = (
        ("prior", cell.prior, {"state": inputs.state, "action": inputs.action, "noise": inputs.prior_noise}),
        ("posterior", cell.posterior, {"prior": prior, "embed": inputs.embed, "noise": inputs.posterior_noise}),
        ("features", cell.features, {"state": posterior}),
        ("divergence", cell.divergence, {"posterior": posterior, "prior": prior}),
    )
    for method, call, arguments in calls:
        before = {name: map_leaves(Tensor.clone, value) for name, value in arguments.items()}
        call(*arguments.values())
        must = f"must be left as it was by cell.{method}; use nothing that writes in place"
        for name, value in arguments.items():
            expect_equal(value, before[name], f"the argument {name}", must)


def _check_nothing_is_remembered(probe: Probe, inputs: Inputs, other: Inputs) -> None:
    torch.manual_seed(probe.seed)
    first = probe.step(inputs)
    torch.manual_seed(probe.seed)
    remedy = "keep nothing in the cell: what must last is a field of the state"
    expect_equal(probe.step(inputs), first, "", f"must be the same when the same is asked again; {remedy}")
    prior = probe.cell.prior(inputs.state, inputs.action, inputs.prior_noise)
    probe.step(other)
    posterior = probe.cell.posterior(prior, inputs.embed, inputs.posterior_noise)
    expect_equal(posterior, first.posterior, "posterior", f"must not depend on calls in between; {remedy}")


def _check_rows_do_not_mix(probe: Probe, inputs: Inputs, other: Inputs) -> None:
    first = probe.step(inputs)
    must = "of one row must not depend on other rows of the batch; take no mean or other statistic over it"
    for row in (0, probe.batch_size - 1):
        index = torch.tensor([row], device=probe.device)
        mixed = map_leaves(lambda one, two, at=index: two.index_copy(0, at, one[at]), inputs, other)
        got, expected = (map_leaves(lambda field, row=row: field[row], step) for step in (probe.step(mixed), first))
        expect_equal(got, expected, "", must)


def _check_dependence(probe: Probe, inputs: Inputs, other: Inputs) -> None:
    first = probe.step(inputs)
    cases = (
        ("prior", "action", inputs._replace(action=other.action)),
        ("prior", "state", inputs._replace(state=other.state)),
        ("posterior", "embed", inputs._replace(embed=other.embed)),
    )
    for method, argument, changed in cases:
        got, before = (getattr(result, method) for result in (probe.step(changed), first))
        if all(torch.equal(one, two) for one, two in zip(got, before, strict=True)):
            raise ContractError(f"cell.{method} must depend on {argument}, got the same state from any; use it")


def _check_divergence(probe: Probe, inputs: Inputs, other: Inputs) -> None:
    lead = (probe.batch_size,)
    first, second = probe.step(inputs), probe.step(other)
    for prior in (first.prior, second.prior):
        for posterior in (first.posterior, second.posterior):
            _expect_no_negative(probe.divergence(posterior, prior, lead))
        itself = probe.divergence(prior, prior, lead)
        must = "of a state from itself must be 0; compare distributions, posterior with prior"
        expect_equal(itself, torch.zeros_like(itself), "cell.divergence", must)
    apart = torch.stack([first.divergence, probe.divergence(second.posterior, first.prior, lead)])
    if not difference(apart, torch.zeros_like(apart)):
        raise ContractError("cell.divergence must be more than 0 where posterior and prior differ, got 0; compare them")


def _check_global_prior(probe: Probe) -> None:
    global_prior = getattr(probe.cell, "global_prior", None)
    if global_prior is None:
        return
    rows = probe.batch_size
    one, two = probe.state(rows), probe.state(rows)
    nested = map_leaves(lambda *fields: torch.stack(fields), one, two)
    for state, other, lead in ((one, two, (rows,)), (nested, nested, (2, rows))):
        with runs(f"cell.global_prior must run with leading axes {list(lead)}"):
            fixed, another = global_prior(state), global_prior(other)
        probe.check_state("global_prior", fixed, lead)
        apart = probe.divergence(fixed, another, lead)
        must = "between the global priors of two states must be 0; it is one distribution for all"
        expect_equal(apart, torch.zeros_like(apart), "cell.divergence", must)
        _expect_no_negative(probe.divergence(state, fixed, lead))


def _expect_no_negative(nats: Tensor) -> None:
    if bool((nats < -tolerance(nats.dtype) * (1 + nats.abs().max())).any()):
        least, remedy = float(nats.min()), "use a closed form, which cannot be less"
        raise ContractError(f"cell.divergence must be at least 0, got {least:.3g} nats; {remedy}")


_STEP_CHECKS: tuple[Callable[[Probe, Inputs, Inputs], None], ...] = (
    _check_arguments_are_kept,
    _check_nothing_is_remembered,
    _noise.check_given_noise,
    _check_leading_axes,
    _check_single_rows,
    _check_rows_do_not_mix,
    _noise.check_drawn_noise,
    _check_dependence,
    _check_divergence,
)

"""The objectives compile whole (no graph break), for every cell, and compute what they compute uncompiled.

With a real compiler (inductor) it is one test of everything, time loops included, since compiling takes its time.
"""

import shutil
from typing import Any

import pytest
import random_cases as cases
import torch
from torch import Tensor

from planet_lib import Losses, State, elbo_loss, imagine, latent_overshooting, observe

DISTANCE = 3


def everything(case: Any, chunk_size: int | None = None, stop: bool = False) -> tuple[State, Losses, Losses]:
    """Filtering, imagining, the ELBO with all its terms, and overshooting with all of its own."""
    model, sequence = case.model, case.sequence
    prior, posterior = observe(
        model.cell,
        sequence.embed,
        sequence.action,
        sequence.is_first,
        prior_noise=sequence.prior_noise,
        posterior_noise=sequence.posterior_noise,
    )
    start = State(*(field[-1] for field in posterior))
    imagined = imagine(model.cell, start, sequence.action[:2], noise=sequence.prior_noise[:2])
    losses = elbo_loss(
        model, case.batch, case.obs, prior, posterior, kl_balance=0.8, global_kl_scale=0.1, free_nats=0.5
    )
    extra = latent_overshooting(
        model,
        case.batch,
        prior,
        posterior,
        distance=DISTANCE,
        obs=case.obs,
        reward_scale=2.0,
        obs_scale=0.5,
        free_nats=0.5,
        weights=[1.0, 0.5],
        noise=case.chain_noise,
        chunk_size=chunk_size,
        stop_start_gradient=stop,
    )
    return imagined, losses, extra


def gradients(results: tuple[State, Losses, Losses], model: Any) -> tuple[Tensor, ...]:
    imagined, losses, extra = results
    total = losses.total + extra.total + imagined.stoch.square().sum()
    return torch.autograd.grad(total, list(model.parameters()), materialize_grads=True)


def agree(case: Any, tolerance: float, backend: str = "eager", **kwargs: Any) -> None:
    torch.compiler.reset()
    expected = everything(case, **kwargs)
    # One C++ file for each direction instead of one for each kernel: a third of the time less.
    options = {"cpp_wrapper": True} if backend == "inductor" else None
    got = torch.compile(everything, fullgraph=True, backend=backend, options=options)(case, **kwargs)
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    pair = gradients(got, case.model), gradients(expected, case.model)
    torch.testing.assert_close(*pair, rtol=tolerance, atol=tolerance)


def draw(kind: str, settings: dict[str, Any], *, length: int = 4, **kwargs: Any) -> Any:
    case = cases.draw_case(
        kind, 3, length=length, batch_size=2, distance=DISTANCE, padding="tail", **kwargs, **settings
    )
    case.batch.mask[:, 0] = True
    case.sequence.is_first[:, 0] = False
    return case


def to_float(value: Any) -> Any:
    if isinstance(value, tuple):
        return type(value)(*(to_float(field) for field in value))
    return value.float() if isinstance(value, torch.nn.Module) or value.is_floating_point() else value


@pytest.mark.parametrize(("kind", "settings"), cases.SOME_CELLS)
def test_they_trace_whole_for_every_cell(kind: str, settings: dict[str, Any]) -> None:
    # The plain cells with the plain options, the others with all the others.
    others = {"chunk_size": 1, "stop": kind == "ssm"} if settings else {}
    case = draw(kind, settings, goes_on=True, obs="both" if settings else "vector")
    agree(case, 1e-9, **others)


# The warning is of torch's own modules, on their first import.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("kind", ["rssm", "ssm", "rnn"])
def test_inductor_computes_the_same_values_and_gradients(kind: str) -> None:
    agree(to_float(draw(kind, {}, length=3)), 1e-5, backend="inductor")

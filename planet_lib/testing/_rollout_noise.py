"""Noise of dynamics: what is given decides the returns, and what is drawn can be replayed and is standard normal.

Each number that `draw_noise` draws is looked at over many generators, so that noise which several candidates share is
as good as noise of their own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from planet_lib.testing._rollouts import Asker, Question
from planet_lib.testing.contract import ContractError, difference, expect_equal

_DRAWS = 512  # tell noise whose mean is off by 0.3, or its variance by 0.4 ...
_STANDARD_ERRORS = 6.0  # ... at so many standard errors, which right dynamics never exceed in practice


def check_noise(asker: Asker, question: Question) -> None:
    """Noise decides where it is taken, and is drawn where it is not given; draw_noise does as its generator says."""
    if question.noise is None:
        return
    if asker.draw is not None:
        _check_draw_noise(asker, asker.draw, question.actions)
    first = asker.ask(question)
    if not difference(asker.ask(question._replace(noise=asker.noise(question.actions))), first):
        raise ContractError("dynamics.rollout must depend on its noise, got the same returns from any; use it")
    drawn, again = (asker.ask(question._replace(noise=None)) for _ in range(2))
    must = "must be replayed by torch.manual_seed where noise is None; draw from torch's global generator"
    expect_equal(again, drawn, "what dynamics.rollout returns", must)
    if not difference(asker.ask(question._replace(noise=None), seed=1), drawn):
        remedy = "draw torch.randn where noise is None"
        raise ContractError(f"dynamics.rollout must follow torch.manual_seed where noise is None; {remedy}")


def _check_draw_noise(asker: Asker, draw: Callable[..., Any], actions: Tensor) -> None:
    def drawn(seed: int, actions: Tensor = actions) -> Tensor:
        noise = asker.drawn(draw, actions, torch.Generator(asker.device).manual_seed(seed))
        if noise is None:
            raise ContractError("dynamics.draw_noise must return noise for any actions or for none, got both")
        return noise

    first, name = drawn(0), "what dynamics.draw_noise returns"
    random = torch.get_rng_state()
    expect_equal(drawn(0), first, name, "must be the same at the same seed of its generator; draw from that alone")
    # The planner asks before there are any candidates.
    unknown = torch.full_like(actions[:1, :1, :1, :1], torch.nan).expand_as(actions)
    expect_equal(drawn(0, unknown), first, name, "must not depend on what actions hold; read their shape alone")
    if not torch.equal(torch.get_rng_state(), random):
        raise ContractError(f"{name} must come from the generator given, got torch's global one used; pass it on")
    many = torch.stack([drawn(seed) for seed in range(_DRAWS)]).double()
    if not difference(many[1], many[0]):
        raise ContractError(f"{name} must follow its generator, got the same at another seed; pass it on")
    allowed = _STANDARD_ERRORS / _DRAWS**0.5
    mean, variance = float(many.mean(0).abs().max()), float((many.var(0) - 1).abs().max())
    if not (mean < allowed and variance < 2**0.5 * allowed):
        got = f"a mean that is off by {mean:.2g} or a variance by {variance:.2g}"
        raise ContractError(f"{name} must be standard normal, got {got}; draw torch.randn")
    torch.manual_seed(asker.seed)
    one = asker.drawn(draw, actions)
    torch.manual_seed(asker.seed)
    two = asker.drawn(draw, actions)
    if one is None or two is None or difference(one, two):
        raise ContractError(f"{name} must be replayed by torch.manual_seed where generator is None; use torch's own")

"""Candidates and environments: a return depends on its own alone, in whatever company and precision it is asked for."""

import torch

from planet_lib.testing._rollouts import Asker, Question
from planet_lib.testing.contract import ContractError, difference, expect_equal, runs


def check_mixing(asker: Asker, question: Question) -> None:
    """Neither candidates nor environments mix."""
    _check_candidates_do_not_mix(asker, question)
    _check_environments_do_not_mix(asker, question)
    _check_rows_alone(asker, question)
    _check_precisions(asker, question)


def _check_candidates_do_not_mix(asker: Asker, question: Question) -> None:
    first, name = asker.ask(question), "what dynamics.rollout returns"
    count = asker.num_candidates
    order = [*range(1, count), 0]
    got = asker.ask(asker.take_candidates(question, order))
    remedy = "take no rank, mean or other statistic over candidates, and repeat the state so that each has its own copy"
    expect_equal(got, first[:, order], name, f"must be permuted as the candidates are; {remedy}")
    for j in (0, count - 1):
        alone = asker.ask(asker.take_candidates(question, [j]))
        expect_equal(alone, first[:, j : j + 1], name, "must be the same for one candidate as among others; " + remedy)


def _check_environments_do_not_mix(asker: Asker, question: Question) -> None:
    first, name, last = asker.ask(question), "what dynamics.rollout returns", asker.batch_size - 1
    remedy = "take no statistic over the batch, and know that row b of the state goes with actions[:, b]"
    must = f"of one environment must not depend on the {{}} of others; {remedy}"
    for b in (0, last):
        kept = torch.arange(asker.batch_size, device=asker.device) == b
        changed = torch.where(kept[:, None, None], question.actions, asker.others(question.actions))
        got = asker.ask(question._replace(actions=changed))
        expect_equal(got[kept], first[kept], name, must.format("actions"))
    if asker.rows is None:
        return
    for b in (0, last):
        at = torch.full((asker.batch_size,), b, device=asker.device)
        with runs("rows must run with a state and an index"):
            mixed = question._replace(state=asker.rows(question.state, at))
        expect_equal(asker.ask(mixed)[b], first[b], name, must.format("state"))
    order = [*range(1, asker.batch_size), 0]
    got = asker.ask(asker.take_rows(asker.rows, question, order))
    expect_equal(got, first[order], name, f"must be permuted as the environments are; {remedy}")


def _check_rows_alone(asker: Asker, question: Question) -> None:
    if asker.rows is None:
        return
    first = asker.ask(question)
    must = "must be the same for {} as in a larger batch; an axis of size 1 is an axis like any other: no squeeze()"
    for b in (0, asker.batch_size - 1):
        alone = asker.take_rows(asker.rows, question, [b])
        got = asker.ask(alone)
        expect_equal(got, first[b : b + 1], "what dynamics.rollout returns", must.format("one environment alone"))
        got = asker.ask(asker.take_candidates(alone, [0]))
        expect_equal(got, first[b : b + 1, :1], "what dynamics.rollout returns", must.format("one candidate of one"))


def _check_precisions(asker: Asker, question: Question) -> None:
    """Actions of another precision may be refused, but not misread; rounding may decide a few landings otherwise."""
    first = asker.ask(question)
    for dtype in (torch.float32, torch.float64):
        noise = None if question.noise is None else question.noise.to(dtype)
        try:
            asker.dynamics.rollout(question.state, question.actions.to(dtype), noise=noise)
        except Exception:
            continue
        got = asker.ask(question._replace(actions=question.actions.to(dtype), noise=noise))
        pairs = zip(got.float().flatten(), first.float().flatten(), strict=True)
        unlike = sum(difference(one, other) > 0 for one, other in pairs)
        if unlike > first.numel() / 2:
            raise ContractError(
                f"what dynamics.rollout returns must be the same for actions in {dtype}, got {unlike} of "
                f"{first.numel()} returns that differ; compute in the precision of the arguments"
            )

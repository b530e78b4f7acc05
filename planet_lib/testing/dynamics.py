"""The contract of dynamics. Knows the `Dynamics` protocol, no class that implements it, and no planner.

Source: ours. The promises are those whose breach spoils a plan without an error: rows that mix, candidates that are
normalised together, a simulator that is not put back, a last action that counts for nothing.
"""

from typing import Any

import torch
from torch import Tensor

# torch's own definition of a pytree; it has no public name yet.
from torch.utils._pytree import tree_map

from planet_lib._shapes import check_flag, check_whole
from planet_lib.planning import Dynamics
from planet_lib.testing._rollout_mixing import check_mixing
from planet_lib.testing._rollout_noise import check_noise
from planet_lib.testing._rollouts import Asker, Bound, Question, Rows, identical
from planet_lib.testing.contract import ContractError, expect_equal, runs

_LONGER = 3  # steps beyond the horizon


def check_dynamics(
    dynamics: Dynamics,
    state: Any,
    *,
    low: Bound = -1.0,
    high: Bound = 1.0,
    action_dim: int | None = None,
    discrete: bool = False,
    horizon: int = 4,
    num_candidates: int = 5,
    noise_dim: int | None = None,
    random: bool = False,
    sparse: bool = False,
    delay: int = 0,
    nan: bool = True,
    rows: Rows | None = None,
    seed: int = 0,
    compile: bool = False,
) -> None:
    """Try whether dynamics keep what the planners rely on.

    In this order:

    - `rollout(state, actions, noise=None)` returns [B, J], floating, on the device of the state, for H and J as given,
      of 1 and larger, and for actions that are not contiguous or expanded; each row has a finite return, and none is
      +inf;
    - state, actions and noise are left as they were, bit for bit, by this and all that follows;
    - the same is answered when the same is asked again, whatever was asked in between, and an answer is not written
      over by the next;
    - noise that is given decides the returns; without it torch.manual_seed replays them. What `draw_noise` returns,
      where there is one, depends on its generator alone, is standard normal, and is taken by `rollout`;
    - candidates do not mix: permuting them permutes the returns, and one alone earns what it earns among others;
    - environments do not mix: neither other actions nor other states elsewhere change the return of a row, and a row
      asked about alone gives the same;
    - NaN in the actions of one candidate, or in one row of the state, spoils no other return (a ValueError will do);
    - returns depend on the actions of each step, the last included, and on the state;
    - float32 and float64 actions give the same, where both are taken;
    - if asked for, `rollout` traces under `torch.compile(fullgraph=True)`.

    It tries and does not prove: one state, one seed, one set of actions. It cannot know whether the returns are right.
    What is no tensor in the state is not compared with what it was, though the same question must still have the same
    answer; and such a state is taken apart only by a `rows` of yours, without which what concerns other rows of the
    state, and rows alone, is left out.

    torch's random state and its grad mode are left as they were. Tracing empties the caches of `torch.compile`.

    Args:
        dynamics: any `Dynamics`.
        state: what they start from, any pytree; its tensors are [B, ...] with B of at least 2, and rows that differ.
        low: smallest action: a number, or one per action dimension [A]. May be -inf.
        high: largest action, likewise.
        action_dim: A, where low and high are both single numbers.
        discrete: whether actions are one-hot.
        horizon: H, at least 2.
        num_candidates: J, at least 2.
        noise_dim: S, where `rollout` takes noise [H, B, J, S] but there is no `draw_noise`. None asks without noise.
        random: whether nothing replays the returns, as in a simulator with random numbers of its own. Then all that
            compares returns is left out.
        sparse: whether returns may be the same for most actions and states. Then no dependence is asked for.
        delay: how many of the last actions may show in no reward: 1 where an action changes a velocity, that changes
            the position one step later, and the reward asks for the position alone.
        nan: whether NaN is tried. A simulator might stop the process at one.
        rows: `rows(state, index)` returns the state of the rows index [N] int64, in that order; needed where the state
            holds other things than tensors.
        seed: of the random actions.
        compile: whether tracing is tried.

    Raises:
        ContractError: a promise is broken; the message says which, what came and what to do.
        TypeError: dynamics is a class.
        ValueError: the state, the bounds or a size are none to try dynamics with.

    Example:
        >>> from planet_lib.planning import StepDynamics
        >>> cart = StepDynamics(lambda x, action: x + action[:, 0], lambda x, action: -x.square())
        >>> check_dynamics(cart, torch.tensor([1.0, -2.0]), action_dim=1)
    """
    if isinstance(dynamics, type):
        raise TypeError(f"dynamics must be an instance, got the class {dynamics.__name__}; call it first")
    with runs("dynamics.rollout must be a method"):
        has_rollout = callable(getattr(dynamics, "rollout", None))
    if not has_rollout:
        remedy = "wrap a plain function in planet_lib.planning.FunctionDynamics"
        raise ContractError(f"dynamics.rollout must be a method, got none; {remedy}")
    check_flag(discrete=discrete, random=random, sparse=sparse, nan=nan, compile=compile)
    check_whole("delay", delay, least=0)
    with torch.inference_mode(False), torch.no_grad():
        asker = Asker(
            dynamics,
            state,
            low,
            high,
            action_dim,
            horizon=horizon,
            num_candidates=num_candidates,
            noise_dim=noise_dim,
            discrete=discrete,
            rows=rows,
            seed=seed,
        )
    with runs("dynamics must run as planet_lib.planning.Dynamics says"), torch.inference_mode(False), torch.no_grad():
        devices = [] if asker.device.type == "cpu" else [asker.device]
        with torch.random.fork_rng(devices, device_type=asker.device.type if devices else "cuda"):
            question = asker.question()
            _check_finite(asker, question)
            _check_sizes(asker, question)
            _check_answers_are_kept(asker, question)
            if random:
                return
            _check_nothing_is_remembered(asker, question)
            check_noise(asker, question)
            check_mixing(asker, question)
            if nan:
                _check_nan(asker, question)
            if not sparse:
                _check_dependence(asker, question, delay)
            if compile:
                _check_compile(asker, question)


def _check_finite(asker: Asker, question: Question) -> None:
    returns = asker.ask(question)
    if bool((returns == torch.inf).any()):
        remedy = "what cannot be evaluated is -inf or NaN"
        raise ContractError(f"what dynamics.rollout returns must not be +inf, which no planner follows; {remedy}")
    poor = (~returns.isfinite().any(1)).nonzero().flatten().tolist()
    if poor:
        got = f"got only {returns[poor[0], 0]} and the like in row {poor[0]}"
        raise ContractError(f"what dynamics.rollout returns must be finite for some actions, {got}; nothing to plan by")


def _check_sizes(asker: Asker, question: Question) -> None:
    """Other H and J run, and so do actions of any memory layout."""
    for horizon, count in (
        (1, None),
        (asker.horizon + _LONGER, None),
        (None, 1),
        (1, 1),
        (None, asker.num_candidates + 1),
    ):
        asker.ask(asker.question(horizon, count))
    strided = question.actions.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    asker.ask(question._replace(actions=strided), when="on actions that are not contiguous (reshape, not view)")
    noise = None if question.noise is None else question.noise[:, :, :1].expand_as(question.noise)
    actions = question.actions[:, :, :1].expand_as(question.actions)
    asker.ask(question._replace(actions=actions, noise=noise), when="on expanded actions (write into no argument)")


def _check_answers_are_kept(asker: Asker, question: Question) -> None:
    first = asker.ask(question)
    before = first.clone()
    asker.ask(question._replace(actions=asker.others(question.actions)))
    must = "must not be written over by the next call; return a tensor of its own each time"
    expect_equal(first, before, "what dynamics.rollout returns", must)


def _check_nothing_is_remembered(asker: Asker, question: Question) -> None:
    first = asker.ask(question)
    name, remedy = "what dynamics.rollout returns", "keep nothing from call to call: a simulator is put back first"
    random = "; where random numbers of its own decide, draw them by torch, take noise, or pass random=True"
    must = f"must be the same when the same is asked again; {remedy}{random}"
    expect_equal(asker.ask(question), first, name, must)
    for other in (question._replace(actions=asker.others(question.actions)), asker.question(asker.horizon + 1)):
        asker.ask(other)
        expect_equal(asker.ask(question), first, name, f"must not depend on calls in between; {remedy}")
    if question.noise is None:
        must = (
            "must be the same at any seed where no noise is taken; offer draw_noise, or pass noise_dim or random=True"
        )
    else:
        must = "must be the same at any seed, since the noise is given; draw nothing where it is"
    expect_equal(asker.ask(question, seed=1), first, name, must)


def _check_nan(asker: Asker, question: Question) -> None:
    first = asker.ask(question)
    actions = question.actions.clone()
    actions[0, 0, 0] = torch.nan
    spoilt = tree_map(_with_nan, question.state)
    cases = (
        ("one candidate's actions", question._replace(actions=actions), (slice(0, 1), slice(1, None))),
        ("one candidate's actions", question._replace(actions=actions), (slice(1, None), slice(None))),
        ("another row of the state", question._replace(state=spoilt), (slice(1, None), slice(None))),
    )
    for what, case, others in cases:
        try:
            got = asker.ask(case)
        except ContractError as error:
            if isinstance(error.__cause__, ValueError):
                continue
            raise
        must = f"must not be spoilt by NaN in {what}; select with torch.where, since 0 * NaN is NaN"
        expect_equal(got[others], first[others], "what dynamics.rollout returns", must)


def _check_dependence(asker: Asker, question: Question, delay: int) -> None:
    remedy = "use it, or try a longer horizon, or pass sparse=True where most rewards are the same"
    for horizon in (1, asker.horizon, asker.horizon + _LONGER):
        here = asker.question(horizon) if horizon != asker.horizon else question
        first, others = asker.ask(here), asker.others(here.actions)
        for t in range(horizon - delay):
            step = torch.arange(horizon, device=asker.device) == t
            changed = torch.where(step[:, None, None, None], others, here.actions)
            if identical(asker.ask(here._replace(actions=changed)), first):
                raise ContractError(
                    f"dynamics.rollout must depend on the actions of step {t + 1} of {horizon}, got the same returns "
                    f"from any; the last ones count by the states that they lead to, so {remedy}, or delay where it "
                    "takes steps until an action shows"
                )
    actions = question.actions[:, :1].expand_as(question.actions)
    noise = None if question.noise is None else question.noise[:, :1].expand_as(question.noise)
    returns = asker.ask(question._replace(actions=actions, noise=noise))
    if identical(returns, returns[:1].expand_as(returns)):
        raise ContractError(f"dynamics.rollout must depend on the state, got the same returns from any; {remedy}")


def _check_compile(asker: Asker, question: Question) -> None:
    torch.compiler.reset()
    rollout = asker.dynamics.rollout
    remedy = "no .item(), no Python branch on what a tensor holds; or pass compile=False"
    with runs(f"dynamics.rollout must trace under torch.compile(fullgraph=True) ({remedy})"):
        compiled: Any = torch.compile(rollout, fullgraph=True, backend="eager", dynamic=False)
        got = compiled(question.state, question.actions, noise=question.noise)
    must = "must be the same under torch.compile; branch on no tensor's value"
    expect_equal(got, asker.ask(question), "what dynamics.rollout returns", must)


def _with_nan(leaf: Any) -> Any:
    """A floating tensor with NaN in row 0; anything else as it is."""
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return leaf
    spoilt = leaf.clone()
    spoilt[0] = torch.nan
    return spoilt

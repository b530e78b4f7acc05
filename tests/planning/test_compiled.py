"""A planner that torch compiles plans as it did before; where torch cannot, it plans all the same."""

import warnings

import pytest
import torch

import planet_lib as pl
from planet_lib.planning import CEMPlanner, CompiledPlanner, ICEMPlanner, LatentDynamics

SIZES = {"action_dim": 2, "horizon": 2, "num_candidates": 16, "num_elites": 4, "num_iterations": 3}


class Waiting:
    """Dynamics that look at a number, which waits for the device."""

    def rollout(self, state, actions, noise=None):
        worth = -(actions - 0.5).square().sum((0, -1))
        return worth if float(worth.sum()) < 0 else worth.double()


def same(one, other, **tolerance):
    for name, left, right in zip(one._fields, one, other, strict=True):
        if left is not None or right is not None:
            torch.testing.assert_close(left, right, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def generator(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def state_of(model, rows=2):
    return pl.State(*(torch.randn(rows, *leaf.shape[1:], dtype=leaf.dtype) for leaf in model.cell.initial(rows)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")  # torch's own, on first use
@pytest.mark.parametrize("kind", [CEMPlanner, ICEMPlanner])
def test_a_compiled_plan_is_the_plain_one(rssm, kind):
    planner = kind(LatentDynamics(rssm), -1.0, [1.0, 0.2], **{**SIZES, "action_dim": None})
    compiled, state = CompiledPlanner(planner), state_of(rssm)
    plain, fast = planner(state, generator=generator()), compiled(state, generator=generator())
    assert (compiled.mode, compiled.reason) == ("compiled", None)
    same(fast, plain, rtol=1e-9, atol=1e-9)
    is_first = torch.tensor([False, True])
    plain = planner(state, previous=plain, is_first=is_first, generator=generator(1), with_spread=True)
    fast = compiled(state, previous=fast, is_first=is_first, generator=generator(1), with_spread=True)
    assert compiled.mode == "compiled"
    same(fast, plain, rtol=1e-9, atol=1e-9)
    with torch.no_grad():  # as an optimizer does: in place
        for parameter in rssm.parameters():
            parameter.mul_(1.2)
    same(compiled(state, generator=generator(2)), planner(state, generator=generator(2)), rtol=1e-9, atol=1e-9)


def test_dynamics_that_torch_cannot_compile_are_planned_with_as_they_are():
    planner = CEMPlanner(Waiting(), -1.0, 1.0, **SIZES)
    compiled, state = CompiledPlanner(planner), torch.zeros(3, 1)
    with pytest.warns(RuntimeWarning, match="planning without torch.compile, UserError: .*data-dependent"):
        plan = compiled(state, generator=generator())
    assert compiled.mode == "eager"
    assert "data-dependent" in compiled.reason
    same(plan, planner(state, generator=generator()), rtol=0, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        same(compiled(state, generator=generator()), plan, rtol=0, atol=0)


def test_what_the_planner_refuses_is_raised_and_is_no_reason_to_give_up():
    compiled = CompiledPlanner(CEMPlanner(Waiting(), -1.0, 1.0, **SIZES))
    with pytest.raises(ValueError, match=r"noise must be \[I, H, B, J, A\]"):
        compiled(torch.zeros(3, 1), noise=torch.zeros(2))
    assert compiled.reason is None


def test_it_offers_what_an_agent_asks_of_a_planner():
    planner = CEMPlanner(Waiting(), -1.0, [1.0, 0.2], **{**SIZES, "action_dim": None})
    compiled, action = CompiledPlanner(planner), torch.tensor([[0.5, 0.5]])
    assert (compiled.action_dim, compiled.num_rollouts) == (2, (16, 16, 16))
    torch.testing.assert_close(compiled.clip(action), torch.tensor([[0.5, 0.2]]))
    torch.testing.assert_close(compiled.explore(action, 0.1, torch.ones(1, 2)), torch.tensor([[0.6, 0.2]]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", [CEMPlanner, ICEMPlanner])
def test_a_plan_in_a_cuda_graph_is_the_plain_one_and_waits_for_nothing(rssm, kind):
    model = rssm.float().cuda()
    planner = kind(LatentDynamics(model), -1.0, [1.0, 0.2], **{**SIZES, "action_dim": None})
    state = pl.State(*(leaf.float().cuda() for leaf in state_of(rssm)))
    compiled = CompiledPlanner(planner)
    noise = torch.randn(3, 2, 2, 16, 2, device="cuda")
    moves = torch.randn(3, 2, 2, max(planner.num_rollouts), 4, device="cuda")
    given = {"noise": noise, "dynamics_noise": moves}
    plain = planner(state, **given)
    same(compiled(state, **given), plain, rtol=1e-4, atol=1e-4)
    assert (compiled.mode, compiled.reason) == ("graph", None)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = compiled(state, **given)
        planner(state, **given)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    same(again, plain, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)
    same(compiled(state, **given), planner(state, **given), rtol=1e-4, atol=1e-4)
    one, two = compiled(state), compiled(state)
    assert not torch.equal(one.mean, two.mean)  # each replay draws anew

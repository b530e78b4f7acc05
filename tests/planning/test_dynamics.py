"""The learned model as dynamics, against stepping through it candidate by candidate."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import planet_lib as pl

H, B, J, A = 3, 2, 5, 2


def normal(*shape, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_state(cell, seed=9):
    torch.manual_seed(seed)
    with torch.no_grad():
        return cell.posterior(cell.prior(cell.initial(B), normal(B, A, seed=seed)), normal(B, 7, seed=seed))


def test_a_return_is_the_sum_of_the_rewards_of_the_imagined_states(model):
    cell, state = model.cell, some_state(model.cell)
    actions, noise = normal(H, B, J, A, seed=1), normal(H, B, J, cell.noise_dim, seed=2)
    returns = pl.LatentDynamics(model).rollout(state, actions, noise)
    for j in range(J):
        imagined = pl.imagine(cell, state, actions[:, :, j], noise=noise[:, :, j])
        torch.testing.assert_close(returns[:, j], model.reward_head(cell.features(imagined)).sum(0))


def test_noise_that_is_not_given_is_drawn_for_each_candidate(rssm):
    torch.manual_seed(0)
    same = torch.zeros(H, B, J, A, dtype=torch.float64)
    assert pl.LatentDynamics(rssm).rollout(some_state(rssm.cell), same).unique().numel() == B * J


def test_a_return_is_differentiable_in_actions_and_state(rssm):
    state, actions = some_state(rssm.cell), normal(H, B, J, A).requires_grad_()
    state.stoch.requires_grad_()
    pl.LatentDynamics(rssm).rollout(state, actions, normal(H, B, J, 4)).sum().backward()
    assert bool((actions.grad.abs().sum((1, 2, 3)) > 0).all())
    assert bool((state.stoch.grad.abs().sum(1) > 0).all())


def test_a_cell_with_a_state_of_its_own_can_be_planned_with():
    class Position(NamedTuple):
        x: Tensor

    class Walk(nn.Module):
        action_dim, feature_dim, noise_dim, embed_dim = 1, 1, 0, 1

        def initial(self, batch_size):
            return Position(x=torch.zeros(batch_size, 1))

        def prior(self, state, action, noise=None):
            return Position(x=state.x + action)

        def posterior(self, prior, embed, noise=None):
            return Position(x=embed)

        def features(self, state):
            return state.x

    class Nearness(nn.Module):
        def forward(self, features):
            return -(features[..., 0] - 2).square()

    model = pl.WorldModel(nn.Identity(), Walk(), nn.Identity(), Nearness())
    actions = torch.tensor([[1.0, 2.0], [1.0, 1.0]]).reshape(2, 1, 2, 1)
    returns = pl.LatentDynamics(model).rollout(Position(x=torch.zeros(1, 1)), actions)
    assert returns.tolist() == [[-1.0, -1.0]]  # 1, 2 and 2, 3: what is reached counts, not the start
    planner = pl.CEMPlanner(pl.LatentDynamics(model), [-1.0], [1.0], horizon=3)
    plan = planner(Position(x=torch.tensor([[0.0], [3.5]])), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plan.mean[:, :, 0].sum(0), torch.tensor([2.0, -1.5]), atol=0.02, rtol=0)
    torch.testing.assert_close(plan.action, torch.tensor([[1.0], [-1.0]]), atol=0.02, rtol=0)


def test_planning_with_a_learned_model_compiles_into_one_graph(model):
    planner = pl.CEMPlanner(
        pl.LatentDynamics(model), [-1.0, -0.5], [1.0, 0.5], horizon=H, num_candidates=20, num_elites=5, num_iterations=2
    )
    noise, given = normal(2, H, B, 20, A), normal(2, H, B, 20, model.cell.noise_dim, seed=1)

    def plan(state):
        return planner(state, noise=noise, dynamics_noise=given)

    state = some_state(model.cell)
    for one, other in zip(torch.compile(plan, fullgraph=True, backend="eager")(state), plan(state), strict=True):
        torch.testing.assert_close(one, other)


def test_wrong_actions_and_noise_are_named(rssm):
    dynamics, state = pl.LatentDynamics(rssm), some_state(rssm.cell)
    with pytest.raises(
        ValueError, match=r"actions must be \[H, B, J, A\] with A=2 \(the cell's action_dim\), got \[3, 2, 5, 6\]"
    ):
        dynamics.rollout(state, torch.zeros(H, B, J, 6))
    with pytest.raises(
        ValueError, match=r"noise must be \[H, B, J, S\] with H=3, B=2, J=5, S=4 .*, got \[3, 2, 1, 4\]"
    ):
        dynamics.rollout(state, torch.zeros(H, B, J, A), torch.zeros(H, B, 1, 4))


def test_a_state_of_another_batch_and_a_reward_head_of_another_shape_are_named(rssm):
    actions = torch.zeros(H, B, J, A, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"state must have fields \[2, \.\.\.\] \(from actions\), got one of \[1, 200\]"
    ):
        pl.LatentDynamics(rssm).rollout(rssm.cell.initial(1), actions)
    for forget, got in (
        (lambda features: features[..., :1], r"\[10, 1\]"),
        (lambda features: features.mean(), r"\[\]"),
    ):
        rssm.reward_head.forward = forget
        with pytest.raises(ValueError, match=rf"the reward head's output must be \[N\] with N=10 .*, got {got}"):
            pl.LatentDynamics(rssm).rollout(some_state(rssm.cell), actions)


class Column(nn.Module):
    """A head that returns one of the features."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, features):
        return features[..., self.number]


class Script(NamedTuple):
    said: Tensor


class Scripted(nn.Module):
    """Its features are the last action: reward, and the logit of going on."""

    action_dim, feature_dim, noise_dim = 2, 2, 0

    def prior(self, state, action, noise=None):
        return Script(action)

    def features(self, state):
        return state.said


def scripted(continue_head: nn.Module | None) -> pl.LatentDynamics:
    return pl.LatentDynamics(pl.WorldModel(nn.Identity(), Scripted(), nn.Identity(), Column(0), continue_head))


def logit(probability: float) -> float:
    return float(torch.tensor(probability, dtype=torch.float64).logit())


def play(dynamics: pl.LatentDynamics, *candidates: list[tuple[float, float]]) -> list[float]:
    """Returns of candidates that are lists of (reward, probability of going on)."""
    steps = [[(reward, logit(goes_on)) for reward, goes_on in candidate] for candidate in candidates]
    actions = torch.tensor(steps, dtype=torch.float64).transpose(0, 1)[:, None]
    return dynamics.rollout(Script(torch.full((1, 2), float("nan"), dtype=torch.float64)), actions)[0].tolist()


def test_rewards_count_with_the_probability_that_the_episode_got_so_far():
    plan = [(1.0, 0.9), (10.0, 0.5), (100.0, 0.2), (1000.0, 0.7)]
    by_hand = 1 + 0.9 * 10 + 0.9 * 0.5 * 100 + 0.9 * 0.5 * 0.2 * 1000
    assert play(scripted(Column(1)), plan) == pytest.approx([by_hand])
    assert play(scripted(None), plan) == pytest.approx([1111.0])


def test_nothing_counts_after_a_certain_end_but_the_reward_that_comes_with_it():
    ends_at_once, goes_on = [(3.0, 0.0), (1e6, 1.0), (-1e6, 1.0)], [(3.0, 1.0), (5.0, 1.0), (7.0, 0.0)]
    ends_next = [(3.0, 1.0), (5.0, 0.0), (7.0, 1.0)]
    assert play(scripted(Column(1)), ends_at_once, ends_next, goes_on) == [3.0, 8.0, 15.0]


def test_the_first_reward_counts_fully_and_one_step_asks_no_continue_head():
    class Forbidden(nn.Module):
        def forward(self, features):
            raise AssertionError("nothing depends on whether the episode goes on after the last step")

    assert play(scripted(Forbidden()), [(4.0, 0.0)]) == [4.0]


def test_a_model_with_a_continue_head_is_the_product_along_its_imagined_states(model):
    torch.manual_seed(1)
    model.continue_head = pl.ContinueHead(model.cell.feature_dim, hidden_dim=8).double()
    cell, state = model.cell, some_state(model.cell)
    actions, noise = normal(H, B, J, A, seed=1), normal(H, B, J, cell.noise_dim, seed=2)
    returns = pl.LatentDynamics(model).rollout(state, actions, noise)
    for j in range(J):
        features = cell.features(pl.imagine(cell, state, actions[:, :, j], noise=noise[:, :, j]))
        reward, goes_on = model.reward_head(features), model.continue_head(features).sigmoid()
        torch.testing.assert_close(
            returns[:, j], reward[0] + goes_on[0] * reward[1] + goes_on[0] * goes_on[1] * reward[2]
        )
    assert (goes_on - 0.5).abs().max() > 0.01


def test_a_return_is_differentiable_in_the_continue_head(rssm):
    rssm.continue_head = pl.ContinueHead(rssm.cell.feature_dim, hidden_dim=8).double()
    pl.LatentDynamics(rssm).rollout(some_state(rssm.cell), normal(H, B, J, A), normal(H, B, J, 4)).sum().backward()
    for name, parameter in rssm.continue_head.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_a_continue_head_of_another_shape_is_named(rssm):
    rssm.continue_head = pl.ContinueHead(rssm.cell.feature_dim)
    rssm.continue_head.forward = lambda features: features[..., :1]
    with pytest.raises(ValueError, match=r"the continue head's output must be \[N\] with N=10 .*, got \[10, 1\]"):
        pl.LatentDynamics(rssm).rollout(some_state(rssm.cell), normal(H, B, J, A))


def test_planning_prefers_the_reward_before_the_end_to_the_larger_one_after_it():
    planner = pl.CEMPlanner(scripted(Column(1)), [-1.0, -9.0], [1.0, 9.0], horizon=3, num_candidates=400)
    plan = planner(Script(torch.zeros(1, 2)), generator=torch.Generator().manual_seed(0))
    assert (plan.mean[:, 0, 0] > 0.9).all()
    assert (plan.mean[:2, 0, 1] > 2.0).all(), "going on pays where there is a reward to come"


# Where candidates start, what counts, and noise


def any_state(model, rows=2):
    like = model.cell.initial(rows)
    return type(like)(*(torch.randn_like(leaf).abs() for leaf in like))


def test_a_sampled_start_is_another_sample_of_the_same_distribution_for_each_candidate(rssm):
    state, actions = any_state(rssm), torch.rand(3, 2, 4, 2, dtype=torch.float64)
    noise = torch.randn(4, 2, 4, 4, dtype=torch.float64)
    got = pl.LatentDynamics(rssm, start="sampled").rollout(state, actions, noise)
    for row, candidate in ((0, 0), (1, 3)):
        one = type(state)(*(leaf[row : row + 1] for leaf in state))
        moved = one._replace(stoch=one.mean + one.std * noise[0, row, candidate])
        alone = pl.LatentDynamics(rssm).rollout(
            moved, actions[:, row, candidate][:, None, None], noise[1:, row, candidate][:, None, None]
        )
        torch.testing.assert_close(got[row, candidate], alone[0, 0])


def test_the_samples_of_a_start_have_the_mean_and_deviation_of_the_state(rssm):
    state, seen = any_state(rssm, 1), []

    def keep(state, action):
        seen.append(state)
        return action[:, 0]

    cell, first = rssm.cell, []
    redraw = cell.redraw
    cell.redraw = lambda state, noise=None: first.append(redraw(state, noise)) or first[-1]
    pl.LatentDynamics(rssm, start="sampled", objective=keep).rollout(state, torch.zeros(1, 1, 20_000, 2).double())
    samples = first[0].stoch
    torch.testing.assert_close(samples.mean(0), state.mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(samples.std(0), state.std[0], atol=0.05, rtol=0)
    assert len(seen) == 1


def test_discount_weighs_each_later_reward_less():
    rewards = [(1.0, 0.5), (10.0, 0.5), (100.0, 0.5)]
    plain = scripted(None)
    assert play(plain, rewards) == [111.0]
    plain.discount = 0.5
    assert play(plain, rewards) == [1 + 5 + 25]


def test_discount_and_continue_head_multiply():
    class Even(nn.Module):
        def forward(self, features):
            return torch.zeros_like(features[..., 0])

    dynamics = scripted(Even())
    dynamics.discount = 0.5
    assert play(dynamics, [(1.0, 0.5), (10.0, 0.5), (100.0, 0.5)]) == [1 + 10 / 4 + 100 / 16]


def test_an_objective_replaces_the_reward_head_and_sees_each_state_with_the_action_that_led_to_it(rssm):
    state, actions, seen = any_state(rssm), torch.rand(3, 2, 4, 2, dtype=torch.float64), []

    def objective(state, action):
        seen.append((state, action))
        return state.deter[:, 0] - action.square().sum(-1)

    noise = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    rssm.reward_head = nn.Identity()  # would return another shape
    got = pl.LatentDynamics(rssm, objective=objective).rollout(state, actions, noise)
    one, expected = type(state)(*(leaf[1:] for leaf in state)), 0.0
    for t in range(3):
        one = rssm.cell.prior(one, actions[t, 1, 2:3], noise[t, 1, 2:3])
        expected = expected + one.deter[0, 0] - actions[t, 1, 2].square().sum()
    torch.testing.assert_close(got[1, 2], expected)
    assert [tuple(action.shape) for _, action in seen] == [(8, 2)] * 3


@pytest.mark.parametrize("start", ["shared", "sampled"])
def test_the_noise_that_is_drawn_is_what_a_rollout_draws(model, start):
    dynamics, actions = pl.LatentDynamics(model, start=start), torch.zeros(3, 2, 4, 2, dtype=torch.float64)
    noise = dynamics.draw_noise(actions, torch.Generator().manual_seed(0))
    state = any_state(model)
    if model.cell.noise_dim == 0:
        assert noise is None
    else:
        assert noise.shape == (3 + (start == "sampled"), 2, 4, model.cell.noise_dim)
        assert abs(float(noise.std()) - 1) < 0.2
    torch.manual_seed(0)
    torch.testing.assert_close(dynamics.rollout(state, actions), dynamics.rollout(state, actions, noise))


def test_wrong_settings_are_named(rssm):
    with pytest.raises(ValueError, match="start must be one of shared, sampled, got 'mean'"):
        pl.LatentDynamics(rssm, start="mean")
    with pytest.raises(ValueError, match="transition must be one of drawn, mean, got 'still'"):
        pl.LatentDynamics(rssm, transition="still")
    with pytest.raises(ValueError, match=r"start must be 'shared' where transition is 'mean', .*, got 'sampled'"):
        pl.LatentDynamics(rssm, start="sampled", transition="mean")
    with pytest.raises(ValueError, match=r"discount must be greater than 0 and at most 1, got 1.5"):
        pl.LatentDynamics(rssm, discount=1.5)
    with pytest.raises(ValueError, match=r"what objective returns must be \[N\] with N=4"):
        pl.LatentDynamics(rssm, objective=lambda state, action: action).rollout(
            any_state(rssm), torch.zeros(1, 2, 2, 2).double()
        )

    class Bare(nn.Module):
        action_dim = feature_dim = noise_dim = 1

    rssm.cell = Bare()
    with pytest.raises(TypeError, match=r"start 'sampled' needs a cell with redraw\(state, noise\), got Bare"):
        pl.LatentDynamics(rssm, start="sampled")
    with pytest.raises(TypeError, match=r"transition 'mean' needs a cell with redraw\(state, noise\), got Bare"):
        pl.LatentDynamics(rssm, transition="mean")


def test_transitions_by_the_mean_are_those_without_noise_from_the_mean_of_the_state(rssm):
    state, actions = some_state(rssm.cell), normal(H, B, J, A, seed=1)
    got = pl.LatentDynamics(rssm, transition="mean").rollout(state, actions)
    still = normal(H, B, J, rssm.cell.noise_dim) * 0
    from_mean = pl.LatentDynamics(rssm).rollout(state._replace(stoch=state.mean), actions, still)
    torch.testing.assert_close(got, from_mean)
    assert not torch.allclose(got, pl.LatentDynamics(rssm).rollout(state, actions, still))


def test_transitions_by_the_mean_draw_nothing_and_take_no_noise(model):
    dynamics, actions = pl.LatentDynamics(model, transition="mean"), normal(H, B, J, A)
    state = some_state(model.cell)
    before = torch.get_rng_state()
    first, again = (dynamics.rollout(state, actions) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert dynamics.draw_noise(actions) is None
    with pytest.raises(ValueError, match=r"noise must be None where transition is 'mean', got \[3, 2, 5, 4\]"):
        dynamics.rollout(state, actions, normal(H, B, J, 4))


def test_a_planner_of_few_candidates_is_not_misled_by_luck_where_transitions_are_means(rssm):
    """Candidates that are all the same earn the same; drawn, the best of them is only the luckiest."""
    same, state = torch.zeros(H, 1, 50, A, dtype=torch.float64), some_state(rssm.cell)
    row = type(state)(*(field[:1] for field in state))
    assert pl.LatentDynamics(rssm, transition="mean").rollout(row, same).std() < 1e-12
    assert pl.LatentDynamics(rssm).rollout(row, same).std() > 1e-4

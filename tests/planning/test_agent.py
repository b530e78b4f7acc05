"""The agent: what it filters with, what it executes, and when it refuses."""

import math

import pytest
import torch
from torch import Tensor

import planet_lib as pl
from planet_lib.data.collect import run_episode
from planet_lib.models.decoders import DictDecoder
from planet_lib.models.encoders import DictEncoder
from planet_lib.planning import AgentNoise, AgentState, PlanningAgent

ITERATIONS, H, B, J, A = 2, 3, 3, 12, 2


def normal(*shape, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_agent(model, dynamics=None, low=(-1.0, -1.0), high=(1.0, 1.0), **settings) -> PlanningAgent:
    planner = pl.CEMPlanner(
        dynamics or pl.LatentDynamics(model),
        low,
        high,
        horizon=H,
        num_candidates=J,
        num_elites=4,
        num_iterations=ITERATIONS,
    )
    return PlanningAgent(model, planner, **settings)


def make_noise(model, batch_size=B, seed=0) -> AgentNoise:
    dim = model.cell.noise_dim
    return AgentNoise(
        prior=normal(batch_size, dim, seed=seed),
        posterior=normal(batch_size, dim, seed=seed + 1),
        candidates=normal(ITERATIONS, H, batch_size, J, A, seed=seed + 2),
        dynamics=normal(ITERATIONS, H, batch_size, J, dim, seed=seed + 3),
        exploration=normal(batch_size, A, seed=seed + 4),
    )


def rows(noise: AgentNoise, index: slice) -> AgentNoise:
    """The noise of some environments of the batch."""
    return AgentNoise(
        prior=noise.prior[index],
        posterior=noise.posterior[index],
        candidates=noise.candidates[:, :, index],
        dynamics=noise.dynamics[:, :, index],
        exploration=noise.exploration[index],
    )


def first(*flags) -> Tensor:
    return torch.tensor([bool(flag) for flag in flags])


def test_two_acts_agree_with_filtering_planning_and_exploring_by_hand(model):
    agent, cell = make_agent(model, exploration_std=0.5), model.cell
    obs = normal(2, B, 5, seed=50)
    one, two = make_noise(model), make_noise(model, seed=10)
    action, state, _ = agent(obs[0], first(1, 1, 1), None, explore=True, noise=one)
    action, state, plan = agent(obs[1], first(0, 0, 0), state, explore=True, noise=two)

    with torch.no_grad():
        prior = cell.prior(cell.initial(B), torch.zeros(B, A, dtype=torch.float64), one.prior)
        latent = cell.posterior(prior, model.encoder(obs[0]), one.posterior)
        planned = agent.planner(latent, noise=one.candidates, dynamics_noise=one.dynamics).action
        executed = (planned + 0.5 * one.exploration).clamp(-1, 1)
        latent = cell.posterior(cell.prior(latent, executed, two.prior), model.encoder(obs[1]), two.posterior)
        expected = agent.planner(latent, noise=two.candidates, dynamics_noise=two.dynamics)
    for got, wanted in zip((*state.latent, *plan), (*latent, *expected), strict=True):
        torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(action, (expected.action + 0.5 * two.exploration).clamp(-1, 1))
    assert torch.equal(state.action, action)


def test_a_row_that_begins_an_episode_acts_as_a_fresh_agent_does(model):
    agent, obs = make_agent(model), normal(2, B, 5, seed=50)
    _, state, _ = agent(obs[0], first(1, 1, 1), None, explore=True)
    noise, middle = make_noise(model), slice(1, 2)
    action, after, plan = agent(obs[1], first(0, 1, 0), state, explore=True, noise=noise)
    fresh_action, fresh_state, fresh_plan = agent(
        obs[1, middle], first(1), None, explore=True, noise=rows(noise, middle)
    )
    torch.testing.assert_close(action[middle], fresh_action)
    torch.testing.assert_close(plan.mean[:, middle], fresh_plan.mean)
    torch.testing.assert_close(model.cell.features(after.latent)[middle], model.cell.features(fresh_state.latent))
    going_on, other, _ = agent(obs[1], first(0, 0, 0), state, explore=True, noise=noise)
    assert torch.equal(going_on[[0, 2]], action[[0, 2]])
    assert not torch.allclose(other.latent.stoch[1], after.latent.stoch[1])


def test_the_prior_is_drawn_from_its_own_noise(rssm, monkeypatch):
    noise, given = make_noise(rssm), []
    prior = rssm.cell.prior
    monkeypatch.setattr(
        rssm.cell, "prior", lambda state, action, noise=None: given.append(noise) or prior(state, action, noise)
    )
    make_agent(rssm)(normal(B, 5), first(1, 1, 1), None, explore=True, noise=noise)
    assert torch.equal(given[0], noise.prior)


def test_without_exploration_the_plan_is_executed(rssm):
    action, state, plan = make_agent(rssm)(normal(B, 5), first(1, 1, 1), None, explore=False)
    assert torch.equal(action, plan.action)
    assert torch.equal(state.action, plan.action)


def test_exploration_stays_within_the_planners_box_and_is_what_is_remembered(rssm):
    agent = make_agent(rssm, low=(-0.2, 0.0), high=(0.1, 0.5), exploration_std=100.0)
    draw = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [0.0, 1.0]], dtype=torch.float64)
    action, state, plan = agent(normal(B, 5), first(1, 1, 1), None, explore=True, noise=AgentNoise(exploration=draw))
    assert action.tolist() == [[0.1, 0.5], [-0.2, 0.0], [float(plan.action[2, 0]), 0.5]]
    assert torch.equal(state.action, action)


@pytest.mark.parametrize("explore", [True, False])
def test_writing_into_the_action_does_not_change_what_is_remembered(rssm, explore):
    action, state, _ = make_agent(rssm)(normal(B, 5), first(1, 1, 1), None, explore=explore)
    executed = action.clone()
    action.zero_()
    assert torch.equal(state.action, executed)


def test_exploration_has_the_given_deviation(rssm):
    agent = make_agent(rssm, low=(-9.0, -9.0), high=(9.0, 9.0), exploration_std=0.3)
    torch.manual_seed(0)
    many = 500
    action, _, plan = agent(normal(many, 5), torch.ones(many, dtype=torch.bool), None, explore=True)
    assert abs(float((action - plan.action).std()) - 0.3) < 0.02


class Spoilt:
    """No row of these has a finite return but those named."""

    def __init__(self, *healthy):
        self.healthy = torch.tensor(healthy)[:, None]

    def rollout(self, state, actions, noise=None):
        return (-actions.square().sum((0, -1))).where(self.healthy, math.nan)


def test_rows_without_a_finite_return_are_refused_by_number(rssm):
    agent = make_agent(rssm, Spoilt(False, True, False))
    with pytest.raises(
        pl.NonFiniteError, match=r"no candidate had a finite predicted return in row\(s\) \[0, 2\] of the batch"
    ):
        agent(normal(B, 5), first(1, 1, 1), None, explore=True)
    make_agent(rssm, Spoilt(True, True, True))(normal(B, 5), first(1, 1, 1), None, explore=True)


def test_an_observation_that_is_not_finite_is_refused(rssm):
    obs = normal(B, 5)
    obs[1] = math.nan
    with pytest.raises(pl.NonFiniteError, match=r"row\(s\) \[1\] of the batch: the observation"):
        make_agent(rssm)(obs, first(1, 1, 1), None, explore=False)


def pixel_model() -> pl.WorldModel:
    encoder = pl.ConvEncoder((1, 32, 32), depth=1)
    cell = pl.RSSMCell(A, encoder.embed_dim, deter_dim=8, stoch_dim=4, hidden_dim=8)
    return pl.WorldModel(encoder, cell, pl.Decoder(12, (1, 32, 32), depth=1), pl.RewardHead(12, hidden_dim=8)).double()


def test_images_are_dequantised_at_the_depth_asked_for():
    torch.manual_seed(0)
    model = pixel_model()
    obs = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    pixels = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    noise = make_noise(model, 2)._replace(pixels=pixels)
    _, bytes_state, _ = make_agent(model, bits=3)(obs, first(1, 1), None, explore=False, noise=noise)
    floats = pl.dequantise(obs, bits=3, noise=pixels)
    _, float_state, _ = make_agent(model)(floats, first(1, 1), None, explore=False, noise=noise)
    torch.testing.assert_close(bytes_state.latent.mean, float_state.latent.mean)


def test_images_are_dequantised_anew_at_each_call():
    torch.manual_seed(0)
    model = pixel_model()
    agent, obs, noise = make_agent(model), torch.zeros(2, 1, 32, 32, dtype=torch.uint8), make_noise(model, 2)
    means = [agent(obs, first(1, 1), None, explore=False, noise=noise)[1].latent.mean for _ in range(2)]
    assert not torch.equal(*means)


@pytest.fixture
def seeing() -> pl.WorldModel:
    """A model in float64 that sees a camera and joints."""
    torch.manual_seed(0)
    encoder = DictEncoder({"camera": pl.ConvEncoder((1, 32, 32), depth=1), "joints": pl.VectorEncoder(5, embed_dim=7)})
    cell = pl.RSSMCell(A, encoder.embed_dim, deter_dim=8, stoch_dim=4, hidden_dim=8)
    decoder = DictDecoder({"camera": pl.Decoder(12, (1, 32, 32), depth=1), "joints": pl.Decoder(12, (5,))})
    return pl.WorldModel(encoder, cell, decoder, pl.RewardHead(12, hidden_dim=8)).double()


def sights(batch_size=B) -> dict[str, Tensor]:
    pixels = torch.randint(
        0, 256, (batch_size, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )
    return {"camera": pixels, "joints": normal(batch_size, 5, seed=3).float()}


def test_a_dictionary_is_filtered_as_its_prepared_entries(seeing):
    obs, cell = sights(), seeing.cell
    pixels = torch.rand(B, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    noise = make_noise(seeing)._replace(pixels={"camera": pixels})
    kept = {name: value.clone() for name, value in obs.items()}
    _, state, _ = make_agent(seeing, bits=3)(obs, first(1, 1, 1), None, explore=False, noise=noise)
    with torch.no_grad():
        floats = {
            "camera": pl.dequantise(obs["camera"], bits=3, noise=pixels).double(),
            "joints": obs["joints"].double(),
        }
        prior = cell.prior(cell.initial(B), torch.zeros(B, A, dtype=torch.float64), noise.prior)
        latent = cell.posterior(prior, seeing.encoder(floats), noise.posterior)
    torch.testing.assert_close(state.latent.mean, latent.mean)
    assert all(torch.equal(value, kept[name]) for name, value in obs.items())


def test_every_entry_of_a_dictionary_counts(seeing):
    noise = make_noise(seeing)._replace(pixels={"camera": torch.zeros(B, 1, 32, 32)})
    agent, obs = make_agent(seeing), sights()

    def mean(**changes):
        return agent({**obs, **changes}, first(1, 1, 1), None, explore=False, noise=noise)[1].latent.mean

    assert torch.equal(mean(), mean())
    assert not torch.allclose(mean(), mean(camera=255 - obs["camera"]))
    assert not torch.allclose(mean(), mean(joints=obs["joints"] + 1))


def test_it_acts_on_dictionaries_through_run_episode(seeing):
    class Clock:
        def reset(self, *, seed=None):
            self.left = 3
            return self.observe(), {}

        def step(self, action):
            self.left -= 1
            return self.observe(), 1.0, False, self.left == 0, {}

        def observe(self):
            return {name: value[0].numpy() for name, value in sights(1).items()}

    episode = run_episode(Clock(), make_agent(seeing).policy(explore=True))
    assert list(episode.obs) == ["camera", "joints"]
    assert episode.reward.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"joints": torch.zeros(2, 5)},
            ValueError,
            r"obs\['joints'\] must be \[B, ...\] with B=3 \(the rows of obs\['camera'\]\), got \[2, 5\]",
        ),
        (
            {"joints": torch.tensor(1.0)},
            ValueError,
            r"obs\['joints'\] must be \[B, ...\], got \[\]; give it a first axis",
        ),
        ({"joints": [1]}, TypeError, r"obs\['joints'\] must be a uint8 or float tensor, got list"),
        ({"joints": torch.zeros(B, 5).int()}, TypeError, r"obs\['joints'\] must be uint8 .* got torch.int32"),
    ],
)
def test_a_wrong_entry_of_a_dictionary_is_named(seeing, changes, error, message):
    with pytest.raises(error, match=message):
        make_agent(seeing)({**sights(), **changes}, first(1, 1, 1), None, explore=True)


def test_a_dictionary_that_is_empty_or_has_other_noise_is_refused(seeing):
    agent = make_agent(seeing)
    with pytest.raises(ValueError, match="obs must have at least one entry, got an empty dictionary"):
        agent({}, first(1, 1, 1), None, explore=True)
    with pytest.raises(
        TypeError, match=r"noise must be a dictionary or None, as obs is a dictionary, got a torch\.float32"
    ):
        agent(sights(), first(1, 1, 1), None, explore=True, noise=AgentNoise(pixels=torch.zeros(1)))
    with pytest.raises(ValueError, match=r"is_first must be \[B\] with B=3 \(the rows of obs\), got \[2\]"):
        agent(sights(), first(1, 1), None, explore=True)


def test_vectors_of_another_precision_are_taken(rssm):
    action, _, _ = make_agent(rssm)(normal(B, 5).float(), first(1, 1, 1), None, explore=False)
    assert action.dtype == torch.float64


def test_the_initial_state_is_the_cells_and_no_action(model):
    agent = make_agent(model)
    state = agent.initial(B)
    assert isinstance(state, AgentState)
    assert torch.equal(state.action, torch.zeros(B, A, dtype=torch.float64))
    for field, zero in zip(state.latent, model.cell.initial(B), strict=True):
        assert torch.equal(field, zero)
    noise = make_noise(model)
    given = agent(normal(B, 5), first(0, 0, 0), state, explore=True, noise=noise)[0]
    assert torch.equal(given, agent(normal(B, 5), first(0, 0, 0), None, explore=True, noise=noise)[0])


def test_acting_keeps_no_graph_and_changes_no_weight(rssm):
    before = [parameter.clone() for parameter in rssm.parameters()]
    action, state, plan = make_agent(rssm)(normal(B, 5), first(1, 1, 1), None, explore=True)
    assert not any(tensor.requires_grad for tensor in (action, *state.latent, *plan[:5]))
    assert all(torch.equal(one, other) for one, other in zip(before, rssm.parameters(), strict=True))


def test_it_is_a_policy_for_run_episode(rssm):
    seen = []

    class Clock:
        def reset(self, *, seed=None):
            self.left = 4
            return self.observe(), {}

        def step(self, action):
            seen.append(torch.as_tensor(action))
            self.left -= 1
            return self.observe(), 1.0, False, self.left == 0, {}

        def observe(self):
            return torch.full((5,), float(self.left)).numpy()

    episode = run_episode(Clock(), make_agent(rssm).policy(explore=True))
    assert episode.reward.tolist() == [0, 1, 1, 1, 1]
    assert torch.equal(torch.stack(seen), torch.from_numpy(episode.action[1:]))


def test_wrong_arguments_are_named(rssm):
    planner = pl.CEMPlanner(pl.LatentDynamics(rssm), -1.0, 1.0, action_dim=6)
    with pytest.raises(ValueError, match=r"planner must plan actions of the cell's action_dim=2, got 6"):
        PlanningAgent(rssm, planner)
    for std in (-0.1, math.nan):
        with pytest.raises(ValueError, match=rf"exploration_std must not be negative, got {std}"):
            make_agent(rssm, exploration_std=std)
    agent = make_agent(rssm)
    with pytest.raises(ValueError, match=r"is_first must be \[B\] with B=3 \(the rows of obs\), got \[2\]"):
        agent(normal(B, 5), first(1, 1), None, explore=True)
    with pytest.raises(TypeError, match=r"is_first must be bool, got torch.float32"):
        agent(normal(B, 5), torch.ones(B), None, explore=True)
    with pytest.raises(TypeError, match=r"obs must be uint8 \(images\) or float \(vectors\), got torch.int64"):
        agent(torch.zeros(B, 5, dtype=torch.int64), first(1, 1, 1), None, explore=True)


def test_a_state_or_noise_of_another_batch_is_named_and_not_stretched(rssm):
    agent = make_agent(rssm)
    obs, begin = normal(B, 5), first(0, 0, 0)
    message = r"state must have fields \[3, \.\.\.\] \(the rows of obs\), got one of \[1, 2\]"
    with pytest.raises(ValueError, match=message):
        agent(obs, begin, agent.initial(1), explore=True)
    state = agent.initial(B)
    with pytest.raises(ValueError, match=r"state must have fields \[3, \.\.\.\] .*got one of \[1, 200\]"):
        agent(obs, begin, state._replace(latent=rssm.cell.initial(1)), explore=True)
    with pytest.raises(ValueError, match=r"prior_noise must be \[B, S\] with B=3, S=4 .*got \[1, 4\]"):
        agent(obs, begin, state, explore=True, noise=AgentNoise(prior=normal(1, 4)))
    message = r"noise.exploration must be \[B, A\] with B=3, A=2 \(from obs and the planner\), got \[2\]"
    with pytest.raises(ValueError, match=message):
        agent(obs, begin, state, explore=True, noise=AgentNoise(exploration=normal(2)))
    with pytest.raises(TypeError, match=r"obs must be a uint8 or float tensor, got ndarray"):
        agent(obs.numpy(), begin, state, explore=True)


def test_a_warm_start_hands_the_plan_before_to_the_planner_and_which_rows_are_first(rssm):
    agent, noise = make_agent(rssm, warm_start=True), make_noise(rssm)
    obs = normal(B, 5)
    _, state, plan = agent(obs, first(1, 1, 1), None, explore=False, noise=noise)
    assert state.plan is plan
    is_first, again = first(0, 1, 0), make_noise(rssm, seed=50)
    _, after, second = agent(obs, is_first, state, explore=False, noise=again)
    expected = agent.planner(
        after.latent, previous=plan, is_first=is_first, noise=again.candidates, dynamics_noise=again.dynamics
    )
    torch.testing.assert_close(second.mean, expected.mean)
    cold = agent.planner(after.latent, noise=again.candidates, dynamics_noise=again.dynamics)
    assert torch.equal(second.mean[:, 1], cold.mean[:, 1])
    assert not torch.allclose(second.mean[:, 0], cold.mean[:, 0])


def test_without_warm_start_no_plan_is_carried(rssm):
    _, state, _ = make_agent(rssm)(normal(B, 5), first(1, 1, 1), None, explore=False)
    assert state.plan is None


def test_choices_are_explored_with_the_given_probability(rssm):
    class Second:
        def rollout(self, state, actions, noise=None):
            return actions[..., 1].sum(0)

    planner = pl.DiscreteCEMPlanner(Second(), 2, horizon=1, num_candidates=64, num_elites=4, num_iterations=2)
    agent, rows = PlanningAgent(rssm, planner, exploration_std=0.4), 4000
    action, state, plan = agent(normal(rows, 5), torch.ones(rows, dtype=torch.bool), None, explore=True)
    assert torch.equal(plan.action, torch.tensor([[0.0, 1.0]]).double().expand(rows, 2))
    assert set(map(tuple, action.tolist())) == {(0.0, 1.0), (1.0, 0.0)}
    assert abs(float(action[:, 0].mean()) - 0.2) < 0.03  # half of the choices at random are the planned one
    assert torch.equal(state.action, action)

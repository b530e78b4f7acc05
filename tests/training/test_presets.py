"""The presets: the paper's numbers, and the parts they describe."""

import dataclasses

import pytest
import torch

from planet_lib.training.presets import PRESETS, Preset, build_agent, build_model


def test_paper_has_the_numbers_of_its_appendix():
    paper = PRESETS["paper"]
    assert (paper.batch_size, paper.window, paper.updates_per_episode, paper.seed_episodes) == (50, 50, 100, 5)
    assert (paper.deter_dim, paper.stoch_dim, paper.hidden_dim, paper.min_std) == (200, 30, 200, 0.1)
    assert (paper.reward_hidden_dim, paper.reward_num_hidden, paper.free_nats) == (200, 2, 3.0)
    assert (paper.learning_rate, paper.adam_eps, paper.grad_clip) == (1e-3, 1e-4, 1000.0)
    assert (paper.horizon, paper.num_iterations, paper.num_candidates, paper.num_elites) == (12, 10, 1000, 100)
    assert (paper.exploration_std, paper.overshooting_distance) == (0.3, 1)


def test_camera_ready_differs_from_the_paper_in_reward_head_and_scale_alone():
    paper, ready = PRESETS["paper"].settings(), PRESETS["camera_ready"].settings()
    changed = {name: ready[name] for name in paper if paper[name] != ready[name]}
    assert changed == {"reward_hidden_dim": 300, "reward_num_hidden": 3, "reward_scale": 10.0}


def test_every_field_says_what_it_is():
    assert [item.name for item in dataclasses.fields(Preset) if not item.metadata.get("help")] == []


@pytest.mark.parametrize("preset", ["cpu", "paper"])
@pytest.mark.parametrize("cell", ["rssm", "ssm", "rnn"])
@pytest.mark.parametrize("obs_shape", [(3, 64, 64), (5,)], ids=["pixels", "state"])
def test_every_combination_decodes_what_it_encodes(preset, cell, obs_shape):
    model = build_model(PRESETS[preset], cell, obs_shape, 2)
    state = model.cell.posterior(
        model.cell.prior(model.cell.initial(3), torch.zeros(3, 2)), model.encoder(torch.zeros(3, *obs_shape))
    )
    assert model.decoder(model.cell.features(state)).shape == (3, *obs_shape)


def test_an_agent_plans_with_the_presets_budget():
    preset = dataclasses.replace(PRESETS["cpu"], horizon=3, num_candidates=7, num_elites=2, num_iterations=2)
    agent = build_agent(preset, build_model(preset, "rssm", (5,), 2))
    _, _, plan = agent(torch.zeros(4, 5), torch.ones(4, dtype=torch.bool), None, explore=False)
    assert plan.mean.shape == (3, 4, 2)


def test_unknown_cells_and_networks_are_named():
    with pytest.raises(ValueError, match="cell must be rssm, ssm or rnn, got 'lstm'"):
        build_model(PRESETS["paper"], "lstm", (5,), 1)
    with pytest.raises(ValueError, match="network must be conv or patch, got 'vit'"):
        build_model(dataclasses.replace(PRESETS["paper"], network="vit"), "rssm", (3, 64, 64), 1)

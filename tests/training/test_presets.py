"""The presets: the paper's numbers, where each one comes from, and the parts they describe."""

import argparse
import dataclasses
import inspect
import re

import pytest
import torch
from torch import nn

from planet_lib.models._layers import ACTIVATIONS
from planet_lib.training import check_settings
from planet_lib.training.presets import (
    MODEL_FIELDS,
    PRESETS,
    Preset,
    add_flags,
    build_agent,
    build_model,
    build_objective,
    get_preset,
    obs_shape_of,
    sources,
)
from planet_lib.training.settings import _CHOICES

# The files of google-research/planet that are cited, below planet/; those of only one commit are marked.
LAST_COMMIT = {
    "control/mpc_agent.py",
    "control/planning.py",
    "control/wrappers.py",
    "models/rssm.py",
    "networks/basic.py",
    "networks/conv_ha.py",
    "scripts/configs.py",
    "scripts/objectives.py",
    "scripts/tasks.py",
    "tools/numpy_episodes.py",
    "training/utility.py",
}
FIRST_COMMIT = LAST_COMMIT - {"scripts/objectives.py"} | {"tools/mse_distribution.py", "training/define_model.py"}

CELLS = ("rssm", "ssm", "rnn")


def fault(source, files):
    """What is wrong with a source, or None."""
    word = re.match(r"(paper|code|ours): \S", source)
    if word is None:
        return f"begins with no source: {source}"
    cited = re.findall(r"[\w/]+\.py", source)
    if word[1] == "code" and not re.match(rf"code: ({'|'.join(map(re.escape, files))})[,;]? ?", source):
        return f"names no known file: {source}"
    unknown = [file for file in cited if file not in files]
    return f"names an unknown file: {unknown}" if unknown else None


def test_the_checker_of_sources_notices_what_is_missing_or_unknown():
    assert fault("paper: appendix A", LAST_COMMIT) is None
    assert fault("code: scripts/configs.py, free_nats", LAST_COMMIT) is None
    assert fault("ours: because", LAST_COMMIT) is None
    assert fault("", LAST_COMMIT)
    assert fault("paper:", LAST_COMMIT)
    assert fault("folklore: 3 is usual", LAST_COMMIT)
    assert fault("code: the reward head", LAST_COMMIT)
    assert fault("code: scripts/config.py, free_nats", LAST_COMMIT)
    assert fault("code: scripts/configs.py, of networks/basics.py", LAST_COMMIT)
    assert fault("code: tools/mse_distribution.py", LAST_COMMIT)


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_value_of_every_preset_names_its_source(name):
    given = sources(name)
    assert list(given) == [item.name for item in dataclasses.fields(Preset)]
    files = FIRST_COMMIT if name == "v1" else LAST_COMMIT
    assert {field: fault(source, files) for field, source in given.items() if fault(source, files)} == {}


def test_most_of_the_codes_two_presets_cite_it_and_what_cpu_changes_is_ours():
    for name in ("camera_ready", "v1"):
        assert sum(source.startswith("code:") for source in sources(name).values()) > 30
    changed = {name for name, value in PRESETS["cpu"].settings().items() if value != PRESETS["paper"].settings()[name]}
    assert all(sources("cpu")[name].startswith("ours:") for name in changed)


def test_every_field_says_what_it_is():
    assert [item.name for item in dataclasses.fields(Preset) if not item.metadata.get("help")] == []


def test_paper_has_the_numbers_of_its_appendix():
    paper = PRESETS["paper"]
    assert paper == Preset()
    assert (paper.batch_size, paper.window, paper.updates_per_episode, paper.seed_episodes) == (50, 50, 100, 5)
    assert (paper.deter_dim, paper.stoch_dim, paper.hidden_dim, paper.min_std) == (200, 30, 200, 0.1)
    assert (paper.reward_hidden_dim, paper.reward_num_hidden, paper.free_nats) == (200, 2, 3.0)
    assert (paper.obs_scale, paper.reward_scale, paper.kl_scale, paper.global_kl_scale) == (1.0, 1.0, 1.0, 0.0)
    assert (paper.learning_rate, paper.adam_eps, paper.grad_clip) == (1e-3, 1e-4, 1000.0)
    assert (paper.horizon, paper.num_iterations, paper.num_candidates, paper.num_elites) == (12, 10, 1000, 100)
    assert (paper.exploration_std, paper.overshooting_distance) == (0.3, 1)


def differences(name, other):
    ours, theirs = PRESETS[name].settings(), PRESETS[other].settings()
    return {field: ours[field] for field in ours if ours[field] != theirs[field]}


def test_camera_ready_differs_from_the_paper_in_reward_head_and_scale_gru_and_initialisation_alone():
    assert differences("camera_ready", "paper") == {
        "reward_hidden_dim": 300,
        "reward_num_hidden": 3,
        "reward_scale": 10.0,
        "gru": "reset_before",
        "init": "glorot",
        "deviation": "std",  # the paper's text has the mean absolute deviation
        "start": "shared",
    }


def test_v1_differs_from_the_last_commit_in_its_overshooting_global_prior_head_weights_and_warm_up():
    assert differences("v1", "camera_ready") == {
        "reward_hidden_dim": 100,
        "reward_num_hidden": 2,
        "free_nats": 2.0,
        "obs_scale": 2.0,  # the squared error without the half, twice ours
        "reward_scale": 20.0,
        "global_kl_scale": 0.1,
        "overshooting_distance": 49,
        "overshooting_reward_scale": 200.0,
        "warmup_updates": 200,
        "discount": 0.99,
    }


def test_the_numbers_of_cpu_are_those_of_the_results_that_are_published_with_it():
    assert differences("cpu", "paper") == {
        "num_episodes": 300,
        "eval_every": 20,
        "eval_episodes": 5,
        "replay_capacity": 200_000,
        "image_size": 32,
        "supersample": 2,
        "channels": "red",
        "batch_size": 12,
        "window": 30,
        "network": "patch",
        "depth": 48,
        "embed_dim": 256,
        "deter_dim": 100,
        "stoch_dim": 20,
        "hidden_dim": 100,
        "reward_hidden_dim": 100,
        "free_nats": 0.3,
        "obs_scale": 20.0,
        "reward_scale": 100.0,
        "learning_rate": 2e-3,
        "adam_eps": 1e-7,
        "grad_clip": 100.0,
        "horizon": 16,
        "num_candidates": 80,
        "num_elites": 10,
        "num_iterations": 4,
        "deviation": "std",
        "start": "shared",
        "transition": "mean",
        "warm_start": 1,
    }


@pytest.mark.parametrize("name", list(PRESETS))
def test_only_where_episodes_can_terminate_does_a_head_learn_whether_they_go_on(name):
    assert get_preset(name, env="dmc:walker-walk").continue_scale == 0
    assert get_preset(name, env="gym:Hopper-v5").continue_scale == 1


def test_the_rnn_has_no_free_nats_in_any_preset():
    assert {get_preset(name, cell="rnn").free_nats for name in PRESETS} == {0.0}


def test_an_unknown_preset_is_named():
    for ask in (get_preset, sources):
        with pytest.raises(ValueError, match=r"^name must be paper, camera_ready, v1 or cpu, got 'v2'$"):
            ask("v2")


def test_settings_that_lack_fields_are_of_another_version_and_all_of_them_are_named():
    settings = {"env": "dmc:walker-walk", **PRESETS["cpu"].settings()}
    assert Preset.from_settings(settings) == PRESETS["cpu"]
    del settings["gru"], settings["precision"]
    with pytest.raises(
        ValueError, match=r"^the settings of runs/x lack gru, precision: .* another version of planet_lib"
    ):
        Preset.from_settings(settings, where="runs/x")


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("obs_shape", [(3, 64, 64), (5,)], ids=["pixels", "state"])
def test_every_combination_decodes_what_it_encodes(preset, cell, obs_shape):
    model = build_model(PRESETS[preset], cell, obs_shape, 2)
    state = model.cell.posterior(
        model.cell.prior(model.cell.initial(3), torch.zeros(3, 2)), model.encoder(torch.zeros(3, *obs_shape))
    )
    assert model.decoder(model.cell.features(state)).shape == (3, *obs_shape)


@pytest.mark.parametrize("preset", ["cpu", "camera_ready"])
def test_a_dictionary_is_encoded_and_decoded_entry_by_entry_by_the_kind_of_each(preset):
    shapes = {"camera": (3, 16, 32), "joints": (5,)}
    model = build_model(PRESETS[preset], "rssm", shapes, 2)
    obs = {name: torch.zeros(3, *shape) for name, shape in shapes.items()}
    state = model.cell.posterior(model.cell.prior(model.cell.initial(3), torch.zeros(3, 2)), model.encoder(obs))
    decoded = model.decoder(model.cell.features(state))
    assert {name: tuple(value.shape[1:]) for name, value in decoded.items()} == shapes


def state_after(preset, cell):
    """The prior of one step, from weights that depend on the shapes alone."""
    made = build_model(preset, cell, (5,), 2).cell
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.linspace(-0.5, 0.3, parameter.numel()).view_as(parameter))
        torch.manual_seed(0)
        return made.prior(made.prior(made.initial(3), torch.ones(3, 2)), torch.ones(3, 2))


@pytest.mark.parametrize(
    ("cell", "field", "value"),
    [
        *((cell, field, value) for cell in CELLS for field, value in (("num_layers", 2), ("activation", "elu"))),
        *((cell, "gru", "reset_before") for cell in ("rssm", "rnn")),
    ],
)
def test_every_setting_of_the_cell_changes_what_it_computes(cell, field, value):
    usual, changed = (
        state_after(preset, cell) for preset in (PRESETS["cpu"], dataclasses.replace(PRESETS["cpu"], **{field: value}))
    )
    assert not torch.equal(usual.mean, changed.mean)


@pytest.mark.parametrize("cell", ["rssm", "ssm"])
def test_the_smallest_deviation_is_added_or_kept_to(cell):
    added, clamped = (
        build_model(dataclasses.replace(PRESETS["cpu"], min_std=50.0, min_std_mode=mode), cell, (5,), 2).cell
        for mode in ("add", "clamp")
    )
    assert bool((added.prior(added.initial(3), torch.zeros(3, 2)).std > 50).all())
    assert bool((clamped.prior(clamped.initial(3), torch.zeros(3, 2)).std == 50).all())


def test_glorot_reaches_every_part_of_the_model():
    model = build_model(PRESETS["camera_ready"], "rssm", (3, 64, 64), 2)
    for part in (model.encoder, model.decoder, model.reward_head):
        layers = [layer for layer in part.modules() if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
        assert layers
        assert all(bool((layer.bias == 0).all()) for layer in layers)
    torch_model = build_model(PRESETS["paper"], "rssm", (3, 64, 64), 2)
    assert bool((torch_model.reward_head.layers[0].bias != 0).any())


def test_a_continue_head_exists_where_it_counts_and_has_the_size_of_the_reward_head():
    assert build_model(PRESETS["paper"], "rssm", (5,), 2).continue_head is None
    model = build_model(dataclasses.replace(PRESETS["camera_ready"], continue_scale=0.5), "rssm", (5,), 2)
    shapes = [[tuple(p.shape) for p in head.parameters()] for head in (model.continue_head, model.reward_head)]
    assert shapes[0] == shapes[1]


def test_the_objective_takes_every_weight_and_reads_0_as_none_where_it_means_that():
    preset = dataclasses.replace(PRESETS["v1"], kl_balance=0.8, continue_scale=0.7, overshooting_obs_scale=0.6)
    objective = build_objective(preset)
    assert dataclasses.asdict(objective) == {
        "free_nats": 2.0,
        "obs_scale": 2.0,
        "reward_scale": 20.0,
        "kl_scale": 1.0,
        "kl_balance": 0.8,
        "global_kl_scale": 0.1,
        "continue_scale": 0.7,
        "overshooting_distance": 49,
        "overshooting_scale": 1.0,
        "overshooting_reward_scale": 200.0,
        "overshooting_obs_scale": 0.6,
        "overshooting_chunk": None,
    }
    plain = build_objective(PRESETS["paper"])
    assert (plain.kl_balance, plain.overshooting_chunk) == (None, None)


def test_an_agent_plans_with_the_presets_budget():
    preset = dataclasses.replace(PRESETS["cpu"], horizon=3, num_candidates=7, num_elites=2, num_iterations=2)
    agent = build_agent(preset, build_model(preset, "rssm", (5,), 2))
    _, _, plan = agent(torch.zeros(4, 5), torch.ones(4, dtype=torch.bool), None, explore=False)
    assert plan.mean.shape == (3, 4, 2)


@pytest.mark.parametrize(("name", "kind"), [("cem", "CEMPlanner"), ("icem", "ICEMPlanner"), ("mppi", "MPPIPlanner")])
def test_an_agent_plans_by_the_presets_planner(name, kind):
    sizes = {"horizon": 3, "num_candidates": 7, "num_elites": 2, "num_iterations": 2}
    asked = {"start": "sampled", "transition": "drawn", "discount": 0.9}
    preset = dataclasses.replace(PRESETS["cpu"], planner=name, warm_start=1, **asked, **sizes)
    agent = build_agent(preset, build_model(preset, "rssm", (5,), 2))
    assert (type(agent.planner).__name__, agent.warm_start) == (kind, True)
    assert {field: getattr(agent.planner.dynamics, field) for field in asked} == asked
    _, state, plan = agent(torch.zeros(4, 5), torch.ones(4, dtype=torch.bool), None, explore=False)
    assert state.plan is plan


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"planner": "cma"}, "planner must be one of cem, icem, mppi, shooting, got 'cma'"),
        ({"warm_start": 2}, "warm_start must be 0 or 1, got 2"),
        ({"deviation": "var"}, "deviation must be one of std, mad, got 'var'"),
        ({"start": "mean"}, "start must be one of shared, sampled, got 'mean'"),
        ({"transition": "still"}, "transition must be one of drawn, mean, got 'still'"),
        ({"discount": 0.0}, "discount must be greater than 0 and at most 1, got 0.0"),
    ],
)
def test_a_wrong_setting_of_the_planner_is_named(setting, message):
    preset = dataclasses.replace(PRESETS["cpu"], **setting)
    with pytest.raises(ValueError, match=message):
        build_agent(preset, build_model(preset, "rssm", (5,), 2))


def test_unknown_cells_and_networks_are_named():
    with pytest.raises(ValueError, match="cell must be rssm, ssm or rnn, got 'lstm'"):
        build_model(PRESETS["paper"], "lstm", (5,), 1)
    with pytest.raises(ValueError, match="network must be conv or patch, got 'vit'"):
        build_model(dataclasses.replace(PRESETS["paper"], network="vit"), "rssm", (3, 64, 64), 1)


def test_every_choice_that_settings_allow_makes_a_model_and_no_activation_is_left_out():
    assert _CHOICES["activation"] == tuple(ACTIVATIONS)
    for name, choices in _CHOICES.items():
        for choice in choices:
            preset = dataclasses.replace(PRESETS["cpu"], **{name: choice})
            check_settings(preset.settings())
            build_model(preset, "rssm", (3, 16, 16), 1)


def test_the_shape_of_an_observation_is_read_from_its_space():
    spaces = pytest.importorskip("gymnasium.spaces")
    pixels, vector = spaces.Box(0, 255, (3, 8, 8), "uint8"), spaces.Box(-1, 1, (5,))
    assert obs_shape_of(pixels) == (3, 8, 8)
    assert obs_shape_of(spaces.Dict({"pixels": pixels, "state": vector})) == {"pixels": (3, 8, 8), "state": (5,)}


def test_the_rnn_learns_more_slowly_in_the_preset_cpu_alone():
    assert get_preset("cpu", cell="rnn").learning_rate == 1e-3
    assert get_preset("cpu", cell="rssm").learning_rate == 2e-3
    assert get_preset("cpu", cell="ssm").learning_rate == 2e-3
    assert dataclasses.replace(get_preset("paper", cell="rnn"), free_nats=3.0) == get_preset("paper")


def test_every_field_of_a_preset_is_a_flag_with_its_value_and_help():
    parser = argparse.ArgumentParser()
    add_flags(parser, PRESETS["v1"])
    assert vars(parser.parse_args([])) == PRESETS["v1"].settings()
    changed = vars(parser.parse_args(["--window", "7", "--gru", "reset_after", "--kl-scale", "0.5"]))
    assert (changed["window"], changed["gru"], changed["kl_scale"]) == (7, "reset_after", 0.5)
    for item in dataclasses.fields(Preset):
        assert item.metadata["help"] in " ".join(parser.format_help().split())


def test_discrete_actions_are_planned_by_the_discrete_planner_and_no_other():
    preset = dataclasses.replace(PRESETS["cpu"], num_candidates=7, num_elites=3, horizon=4, num_iterations=2)
    agent = build_agent(preset, build_model(preset, "rssm", (5,), 3), one_hot=True)
    planner = agent.planner
    assert type(planner).__name__ == "DiscreteCEMPlanner"
    assert (planner.action_dim, planner.horizon, planner.num_candidates, planner.num_elites) == (3, 4, 7, 3)
    with pytest.raises(ValueError, match="planner must be cem where actions are discrete, got 'icem'"):
        build_agent(dataclasses.replace(preset, planner="icem"), agent.model, one_hot=True)


def test_the_fields_that_make_a_model_are_those_that_building_one_reads():
    names = set(MODEL_FIELDS)
    assert names <= {item.name for item in dataclasses.fields(Preset)}
    source = inspect.getsource(inspect.getmodule(build_model))
    read = {item.name for item in dataclasses.fields(Preset) if re.search(rf"\b{item.name}\b", source)}
    assert names == read - {"continue_scale"} | {"image_size"}


def test_several_tasks_of_one_body_have_its_camera_and_others_the_first():
    cartpoles, others = "dmc:cartpole-balance,dmc:cartpole-swingup", "dmc:cartpole-balance,dmc:reacher-easy"
    assert get_preset("cpu", env=cartpoles).camera == "lookatcart"
    assert get_preset("cpu", env=others).camera == ""
    assert get_preset("cpu", env="dmc:ball_in_cup-catch,dmc:cartpole-balance") == PRESETS["cpu"]
    cup = get_preset("cpu", env="dmc:ball_in_cup-catch")
    assert (cup.camera, cup.obs_scale, cup.seed_episodes) == ("cam1", 400.0, 40)
    assert get_preset("paper", env="dmc:ball_in_cup-catch") == PRESETS["paper"]
    assert get_preset("cpu", env="dmc:cartpole-balance,gym:Hopper-v5").continue_scale == 1.0

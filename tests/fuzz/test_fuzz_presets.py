"""Presets, fuzzed: whatever the settings are, a model learns and an agent acts, or an error names a setting."""

from argparse import ArgumentParser
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fuzzing import Entry, finite, fuzz

from planet_lib import Batch, NonFiniteError
from planet_lib.training import check_settings, update
from planet_lib.training.presets import (
    PRESETS,
    Preset,
    add_flags,
    build_agent,
    build_model,
    build_objective,
    env_settings,
    get_preset,
    obs_shape_of,
    sources,
)

TINY = {
    "deter_dim": 4,
    "stoch_dim": 3,
    "hidden_dim": 5,
    "embed_dim": 4,
    "depth": 4,
    "reward_hidden_dim": 5,
    "horizon": 2,
    "num_candidates": 4,
    "num_elites": 2,
    "num_iterations": 1,
    "overshooting_distance": 2,
    "image_size": 16,
    "batch_size": 2,
    "window": 3,
    "kl_balance": 0.8,
    "continue_scale": 1.0,
    "num_layers": 1,
}
SETTINGS = {**PRESETS["cpu"].settings(), **TINY}
OBS_SHAPE, ACTION_DIM = (3,), 2
CHOICES = {
    "network": ["conv", "patch"],
    "activation": ["relu", "elu", "silu", "gelu", "tanh"],
    "min_std_mode": ["add", "clamp"],
    "gru": ["reset_after", "reset_before"],
    "init": ["torch", "glorot"],
    "precision": ["float32", "bfloat16"],
    "channels": ["all", "red", "grey"],
    "planner": ["cem", "icem", "mppi", "shooting"],
    "deviation": ["std", "mad"],
    "start": ["shared", "sampled"],
    "transition": ["drawn", "mean"],
    "warm_start": [0, 1],
    "discount": [0.5, 1.0],
    "horizon": [1, 3],
    "num_candidates": [1, 2, 5],
    "overshooting_distance": [1, 3],
    "overshooting_chunk": [0, 1],
    "min_std": [0.0, 1e-9, 1e300],
    "learning_rate": [1e-9, 1e30],
    "exploration_std": [0.0, 1e30],
}
# Where a setting is out of range, the part that takes it may call it by its own name.
KNOWN_AS = {
    "num_candidates": ("num_elites",),
    "num_elites": ("num_candidates",),
    "reward_hidden_dim": ("hidden_dim",),
    "reward_num_hidden": ("num_hidden",),
}


def make_batch(obs_shape=OBS_SHAPE):
    flags = torch.zeros(3, 2, dtype=torch.bool)
    obs = torch.randint(0, 256, (3, 2, *obs_shape), dtype=torch.uint8) if len(obs_shape) == 3 else torch.randn(3, 2, 3)
    return Batch(
        obs=obs, action=torch.rand(3, 2, 2), reward=torch.randn(3, 2), is_first=flags, terminated=flags, mask=~flags
    )


def learn_and_act(obs_shape=OBS_SHAPE, cell="rssm", **settings):
    """One update, and one decision of the agent, from settings as a command line gives them."""
    torch.manual_seed(0)
    check_settings(settings)
    preset = Preset.from_settings(settings)
    model = build_model(preset, cell, obs_shape, ACTION_DIM)
    agent, objective = build_agent(preset, model), build_objective(preset)
    optimizer = torch.optim.Adam(model.parameters(), lr=preset.learning_rate, eps=preset.adam_eps)
    autocast = torch.bfloat16 if preset.precision == "bfloat16" else None
    limits = {"grad_clip": preset.grad_clip, "autocast": autocast}
    obs = torch.zeros(1, *obs_shape, dtype=torch.uint8 if len(obs_shape) == 3 else torch.float32)
    try:
        result = update(model, optimizer, make_batch(obs_shape), objective, **limits)
        action, _, _ = agent(obs, torch.ones(1, dtype=torch.bool), None, explore=True)
    except NonFiniteError:  # weights of 1e30, or a learning rate: in range, and more than float32 can add up
        return None
    return result, action


def learned_and_acted(given, answer):
    if answer is None:
        assert max(value for value in given.values() if isinstance(value, int | float)) > 1e9
        return
    result, action = answer
    assert finite(result.losses.total)
    assert np.shape(action) == (1, ACTION_DIM)
    assert np.abs(np.asarray(action)).max() <= 1


def parsed(preset, words):
    parser = ArgumentParser(exit_on_error=False)
    add_flags(parser, preset)
    return parser.parse_args(words)


ENTRIES = [
    Entry(
        "training.presets.Preset",
        learn_and_act,
        lambda: dict(SETTINGS),
        learned_and_acted,
        also=CHOICES,
        known_as=KNOWN_AS,
    ),
    Entry(
        "training.presets.Preset of pixels",
        lambda **given: learn_and_act((3, given["image_size"], given["image_size"]), **given),
        lambda: dict(SETTINGS),
        learned_and_acted,
        also=CHOICES,
        known_as={**KNOWN_AS, "image_size": ("(C, Y, X)", "obs_shape", "image_shape"), "depth": ("patch_dim",)},
        keep=[name for name in SETTINGS if name not in ("image_size", "network", "depth", "embed_dim", "deter_dim")],
        slow=2,
    ),
    Entry(
        "training.presets.Preset.from_settings",
        Preset.from_settings,
        lambda: {"settings": dict(SETTINGS), "where": "runs/first"},
        lambda given, answer: (
            all(value == type(value)(given["settings"][name]) for name, value in answer.settings().items())
            or pytest.fail("others")
        ),
        known_as={"settings": tuple(SETTINGS)},
    ),
    Entry(
        "training.presets.build_model",
        build_model,
        lambda: {"preset": Preset.from_settings(SETTINGS), "cell": "ssm", "obs_shape": (3,), "action_dim": 2},
        known_as={"obs_shape": ("encoders", "image_shape")},
        check=lambda given, answer: answer.cell.action_dim == given["action_dim"] or pytest.fail("other actions"),
        also={
            "cell": ["rssm", "rnn"],
            "obs_shape": [
                [3],
                (1, 16, 16),
                (1, 5, 5),
                {"a": (3,)},
                {"a": (3,), "b": (1, 16, 16)},
                {"a/b": (3,)},
                (3, 3),
            ],
        },
    ),
    Entry(
        "training.presets.build_agent",
        build_agent,
        lambda: {
            "preset": Preset.from_settings(SETTINGS),
            "model": build_model(Preset.from_settings(SETTINGS), "rssm", (3,), 2),
            "one_hot": False,
        },
        lambda given, answer: answer.planner.action_dim == 2 or pytest.fail("other actions"),
        also={"preset": [replace(PRESETS["cpu"], planner="icem"), PRESETS["paper"]]},
        known_as={"one_hot": ("planner",)},
    ),
    Entry(
        "training.presets.build_objective",
        build_objective,
        lambda: {"preset": PRESETS["v1"]},
        lambda given, answer: answer.overshooting_distance == 49 or pytest.fail("another distance"),
        also={"preset": ["v1", PRESETS["cpu"].settings()]},
    ),
    Entry(
        "training.presets.env_settings",
        env_settings,
        lambda: {"preset": PRESETS["v1"]},
        lambda given, answer: answer["image_size"] == (64, 64) or pytest.fail("another size"),
        also={"preset": ["v1", PRESETS["v1"].settings()]},
    ),
    Entry(
        "training.presets.get_preset",
        get_preset,
        lambda: {"name": "cpu", "cell": "rnn", "env": "dmc:cartpole-balance"},
        lambda given, answer: len(fields(answer)) == len(SETTINGS) or pytest.fail("fields"),
        also={"name": list(PRESETS), "cell": ["rssm", "ssm"], "env": ["", "gym:Hopper-v5", ",", "a,b"]},
    ),
    Entry(
        "training.presets.sources",
        sources,
        lambda: {"name": "cpu"},
        lambda given, answer: set(answer) == set(SETTINGS) or pytest.fail("fields"),
        also={"name": list(PRESETS)},
    ),
    Entry(
        "training.presets.add_flags",
        lambda parser, preset: add_flags(parser, preset) or parser.parse_args(["--batch-size", "7"]),
        lambda: {"parser": ArgumentParser(exit_on_error=False), "preset": PRESETS["cpu"]},
        lambda given, answer: answer.batch_size == 7 or pytest.fail("another batch"),
        also={"preset": ["cpu", SETTINGS, Preset]},
    ),
    Entry(
        "training.presets.obs_shape_of",
        obs_shape_of,
        lambda: {"space": SimpleNamespace(shape=(3, 16, 16), spaces=None)},
        lambda given, answer: answer == given["space"].shape or pytest.fail(f"{answer}"),
        also={
            "space": [
                *(SimpleNamespace(shape=None), SimpleNamespace(shape=3), SimpleNamespace(shape=("x",))),
                *(SimpleNamespace(spaces={}), SimpleNamespace(spaces={"a": None}), SimpleNamespace(spaces=[1])),
            ]
        },
    ),
]
LEFT_OUT = {
    "training.presets.PRESETS": "a dictionary of presets",
    "training.presets.MODEL_FIELDS": "names alone",
    "training.presets.LOOK_FIELDS": "names alone",
}


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_answers_rightly_or_names_what_is_wrong(entry):
    fuzz(entry)

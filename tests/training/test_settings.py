import importlib.util
import math

import pytest
import torch

from planet_lib.training import check_extras, check_renderer, check_settings, choose_device
from planet_lib.training.presets import PRESETS


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_passes(name):
    check_settings({**PRESETS[name].settings(), "seed": 0})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_episodes", -1, "num_episodes must be a whole number of at least 0, got -1"),
        ("seed_episodes", 0, "seed_episodes must be a whole number of at least 1, got 0"),
        ("updates_per_episode", 0, "updates_per_episode must be a whole number of at least 1, got 0"),
        ("eval_every", 0, "eval_every must be a whole number of at least 1, got 0"),
        ("eval_episodes", 0, "eval_episodes must be a whole number of at least 1, got 0"),
        ("batch_size", "x", "batch_size must be a whole number of at least 1, got 'x'"),
        ("window", [2], r"window must be a whole number of at least 1, got \[2\]"),
        ("overshooting_distance", True, "overshooting_distance must be a whole number of at least 1, got True"),
        ("free_nats", -1.0, "free_nats must be a finite number of at least 0, got -1.0"),
        ("free_nats", None, "free_nats must be a finite number of at least 0, got None"),
        ("obs_scale", math.nan, "obs_scale must be a finite number of at least 0, got nan"),
        ("kl_scale", math.inf, "kl_scale must be a finite number of at least 0, got inf"),
        ("learning_rate", 0.0, "learning_rate must be greater than 0, got 0.0"),
        ("grad_clip", math.nan, "grad_clip must be greater than 0, got nan"),
        ("adam_eps", 0.0, "adam_eps must be at least 1e-30, got 0.0"),
        ("adam_eps", -1.0, "adam_eps must be a finite number of at least 0, got -1.0"),
        ("num_layers", 0, "num_layers must be a whole number of at least 1, got 0"),
        ("overshooting_chunk", -1, "overshooting_chunk must be a whole number of at least 0, got -1"),
        ("warmup_updates", 0.5, "warmup_updates must be a whole number of at least 0, got 0.5"),
        ("global_kl_scale", -0.1, "global_kl_scale must be a finite number of at least 0, got -0.1"),
        ("continue_scale", math.inf, "continue_scale must be a finite number of at least 0, got inf"),
        ("overshooting_reward_scale", "1", "overshooting_reward_scale must be a finite number of at least 0, got '1'"),
        ("overshooting_obs_scale", -1, "overshooting_obs_scale must be a finite number of at least 0, got -1"),
        ("kl_balance", 1.1, r"kl_balance must be between 0 \(the plain KL\) and 1, got 1.1"),
        ("stop_at", math.nan, "stop_at must be a finite number, or None to go on to the last episode, got nan"),
        ("stop_at", math.inf, "stop_at must be a finite number, or None to go on to the last episode, got inf"),
        ("kl_balance", math.nan, r"kl_balance must be between 0 \(the plain KL\) and 1, got nan"),
        ("network", "foo", "network must be conv or patch, got 'foo'"),
        ("activation", "rely", "activation must be relu, elu, silu, gelu or tanh, got 'rely'"),
        ("min_std_mode", "max", "min_std_mode must be add or clamp, got 'max'"),
        ("gru", "lstm", "gru must be reset_after or reset_before, got 'lstm'"),
        ("init", "xavier", "init must be torch or glorot, got 'xavier'"),
        ("precision", "float16", "precision must be float32 or bfloat16, got 'float16'"),
        ("seed", -1, "seed must be a whole number from 0 to 2147483647, got -1"),
    ],
)
def test_a_setting_that_no_run_can_have_is_named(name, value, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_settings({**PRESETS["cpu"].settings(), name: value})


def test_an_infinite_grad_clip_means_none_and_passes():
    check_settings({"grad_clip": math.inf})


def test_auto_is_the_cpu_without_cuda_and_cuda_with_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


@pytest.mark.parametrize("name", ["foo", "meta", "cuda:99"])
def test_a_device_that_cannot_be_used_is_named_in_one_line(name):
    with pytest.raises(ValueError, match=f"device must be auto, cpu, or one .* got '{name}': .") as raised:
        choose_device(name)
    assert "\n" not in str(raised.value)


def test_extras_that_a_run_draws_with_are_named_only_where_they_are_needed(monkeypatch):
    check_extras(pixels=True)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "imageio_ffmpeg" else found(name))
    check_extras(pixels=False)
    with pytest.raises(ImportError, match=r"need imageio-ffmpeg, not installed here: .*planet-worldmodel\[train\]"):
        check_extras(pixels=True)


def test_another_renderer_than_the_models_is_refused_unless_it_was_asked_for():
    check_renderer("gl-tuned", "gl-tuned")
    check_renderer("gl-tuned", "rays", told=["renderer"])
    check_renderer("gl-tuned", "gl-fast", told=["quality"])
    with pytest.raises(ValueError, match=r"renderer must be gl-tuned, .* got rays; say --renderer"):
        check_renderer("gl-tuned", "rays")
    with pytest.raises(ValueError, match=r"renderer must be rays, .* got gl-fast; say --renderer"):
        check_renderer("rays", "gl-fast", told=["quality"])


def test_each_of_several_tasks_is_held_to_its_own_renderer_and_a_new_one_to_the_simulators():
    trained = {"gym:Pendulum-v1": "own", "dmc:cartpole-balance": "gl-tuned"}
    check_renderer(trained, "own", task="gym:Pendulum-v1")
    check_renderer(trained, "gl-tuned", task="dmc:cartpole-balance")
    check_renderer(trained, "gl-tuned", task="dmc:cartpole-swingup")
    for task in ("dmc:cartpole-balance", "dmc:cartpole-swingup"):
        with pytest.raises(ValueError, match=r"renderer must be gl-tuned, .* got rays"):
            check_renderer(trained, "rays", task=task)

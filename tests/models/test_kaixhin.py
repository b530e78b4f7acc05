"""Loading checkpoints of Kaixhin/PlaNet: the layers by `torch.nn.functional` alone, and files that must be refused."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from planet_lib import load_kaixhin_checkpoint
from planet_lib.models import step
from planet_lib.models.kaixhin import rename_kaixhin

Weights = dict[str, Tensor]
BELIEF, STATE, HIDDEN, ACTION, OBS = 12, 5, 9, 2, 7


def linear(name: str, inputs: int, outputs: int) -> Weights:
    return {f"{name}.weight": torch.randn(outputs, inputs) * 0.2, f"{name}.bias": torch.randn(outputs) * 0.2}


def conv(name: str, first: int, second: int, kernel: int, *, outputs: int) -> Weights:
    return {
        f"{name}.weight": torch.randn(first, second, kernel, kernel) * 0.05,
        f"{name}.bias": torch.randn(outputs) * 0.05,
    }


def transition(embedding: int) -> Weights:
    return {
        **linear("fc_embed_state_action", STATE + ACTION, BELIEF),
        "rnn.weight_ih": torch.randn(3 * BELIEF, BELIEF) * 0.3,
        "rnn.weight_hh": torch.randn(3 * BELIEF, BELIEF) * 0.3,
        "rnn.bias_ih": torch.randn(3 * BELIEF) * 0.3,
        "rnn.bias_hh": torch.randn(3 * BELIEF) * 0.3,
        **linear("fc_embed_belief_prior", BELIEF, HIDDEN),
        **linear("fc_state_prior", HIDDEN, 2 * STATE),
        **linear("fc_embed_belief_posterior", BELIEF + embedding, HIDDEN),
        **linear("fc_state_posterior", HIDDEN, 2 * STATE),
    }


def checkpoint(kind: str) -> dict[str, Weights]:
    embedding = {"visual": 1024, "visual 200": 200, "symbolic": 11}[kind]
    encoder: Weights
    observation: Weights
    if kind == "symbolic":
        encoder = linear("fc1", OBS, embedding) | linear("fc2", embedding, embedding)
        encoder |= linear("fc3", embedding, embedding)
        observation = linear("fc1", BELIEF + STATE, embedding) | linear("fc2", embedding, embedding)
        observation |= linear("fc3", embedding, OBS)
    else:
        encoder = conv("conv1", 32, 3, 4, outputs=32) | conv("conv2", 64, 32, 4, outputs=64)
        encoder |= conv("conv3", 128, 64, 4, outputs=128) | conv("conv4", 256, 128, 4, outputs=256)
        if embedding != 1024:
            encoder |= linear("fc", 1024, embedding)
        observation = linear("fc1", BELIEF + STATE, embedding) | conv("conv1", embedding, 128, 5, outputs=128)
        observation |= conv("conv2", 128, 64, 5, outputs=64) | conv("conv3", 64, 32, 6, outputs=32)
        observation |= conv("conv4", 32, 3, 6, outputs=3)
    return {
        "transition_model": transition(embedding),
        "observation_model": observation,
        "reward_model": linear("fc1", BELIEF + STATE, HIDDEN)
        | linear("fc2", HIDDEN, HIDDEN)
        | linear("fc3", HIDDEN, 1),
        "encoder": encoder,
        "optimiser": {"state": {}, "param_groups": [{"lr": 1e-3, "params": [0, 1]}]},
    }


def apply_linear(weights: Weights, name: str, value: Tensor) -> Tensor:
    return F.linear(value, weights[f"{name}.weight"], weights[f"{name}.bias"])


def three_layers(weights: Weights, value: Tensor) -> Tensor:
    hidden = F.relu(apply_linear(weights, "fc1", value))
    return apply_linear(weights, "fc3", F.relu(apply_linear(weights, "fc2", hidden)))


def port_encode(weights: Weights, obs: Tensor) -> Tensor:
    if "conv1.weight" not in weights:
        return three_layers(weights, obs)
    for i in range(1, 5):
        obs = F.relu(F.conv2d(obs, weights[f"conv{i}.weight"], weights[f"conv{i}.bias"], stride=2))
    flat = obs.reshape(-1, 1024)
    return apply_linear(weights, "fc", flat) if "fc.weight" in weights else flat


def port_decode(weights: Weights, features: Tensor) -> Tensor:
    if "conv1.weight" not in weights:
        return three_layers(weights, features)
    image = apply_linear(weights, "fc1", features)[:, :, None, None]
    for i in range(1, 5):
        image = F.conv_transpose2d(image, weights[f"conv{i}.weight"], weights[f"conv{i}.bias"], stride=2)
        image = F.relu(image) if i < 4 else image
    return image


def port_gru(weights: Weights, value: Tensor, belief: Tensor) -> Tensor:
    from_value = F.linear(value, weights["rnn.weight_ih"], weights["rnn.bias_ih"]).chunk(3, -1)
    from_belief = F.linear(belief, weights["rnn.weight_hh"], weights["rnn.bias_hh"]).chunk(3, -1)
    reset, update = (torch.sigmoid(from_value[i] + from_belief[i]) for i in (0, 1))
    return (1 - update) * torch.tanh(from_value[2] + reset * from_belief[2]) + update * belief


def port_distribution(weights: Weights, kind: str, value: Tensor) -> tuple[Tensor, Tensor]:
    hidden = F.relu(apply_linear(weights, f"fc_embed_belief_{kind}", value))
    mean, raw = apply_linear(weights, f"fc_state_{kind}", hidden).chunk(2, -1)
    return mean, F.softplus(raw) + 0.1


@pytest.mark.parametrize("kind", ["visual", "visual 200", "symbolic"])
def test_a_loaded_checkpoint_computes_what_its_layers_say(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(1)
    saved = checkpoint(kind)
    torch.save(saved, tmp_path / "models_1000.pth")
    model = load_kaixhin_checkpoint(tmp_path / "models_1000.pth")
    obs = torch.rand(3, OBS) if kind == "symbolic" else torch.rand(3, 3, 64, 64) - 0.5
    state = model.cell.initial(3)._replace(deter=torch.randn(3, BELIEF), stoch=torch.randn(3, STATE))
    action = torch.rand(3, ACTION) * 2 - 1
    prior_noise, posterior_noise = torch.randn(2, 3, STATE)
    with torch.no_grad():
        embed = model.encoder(obs)
        prior, posterior = step(
            model.cell,
            state,
            action,
            embed,
            torch.zeros(3, dtype=torch.bool),
            prior_noise=prior_noise,
            posterior_noise=posterior_noise,
        )
        features = model.cell.features(posterior)

        theirs = saved["transition_model"]
        port_embed = port_encode(saved["encoder"], obs)
        hidden = F.relu(apply_linear(theirs, "fc_embed_state_action", torch.cat([state.stoch, action], 1)))
        belief = port_gru(theirs, hidden, state.deter)
        prior_mean, prior_std = port_distribution(theirs, "prior", belief)
        mean, std = port_distribution(theirs, "posterior", torch.cat([belief, port_embed], 1))
        port_features = torch.cat([belief, mean + std * posterior_noise], 1)
        pairs = [
            (embed, port_embed),
            (prior.deter, belief),
            (prior.mean, prior_mean),
            (prior.std, prior_std),
            (prior.stoch, prior_mean + prior_std * prior_noise),
            (posterior.mean, mean),
            (posterior.std, std),
            (features, port_features),
            (model.decoder(features), port_decode(saved["observation_model"], port_features)),
            (model.reward_head(features), three_layers(saved["reward_model"], port_features).squeeze(1)),
        ]
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


class Payload:
    """Pickles as a call that makes a folder: what a hostile file would do."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, zipped: bool) -> None:
    target = tmp_path / "the code ran"
    path = tmp_path / "models_1000.pth"
    torch.save({**checkpoint("symbolic"), "optimiser": Payload(target)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"holding only tensors, got '.*models_1000.pth', which cannot be read safely"):
        load_kaixhin_checkpoint(path)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists(), "the payload is no threat, so this test shows nothing"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_refused(tmp_path: Path, zipped: bool) -> None:
    whole = tmp_path / "whole.pth"
    torch.save(checkpoint("symbolic"), whole, _use_new_zipfile_serialization=zipped)
    content = whole.read_bytes()
    for kept in (0, 1, 2, 7, 50, len(content) // 3, len(content) // 2, len(content) - 30, len(content) - 1):
        part = tmp_path / "part.pth"
        part.write_bytes(content[:kept])
        with pytest.raises(ValueError, match=r"path must be a checkpoint of Kaixhin/PlaNet .*cannot be read safely"):
            load_kaixhin_checkpoint(part)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.pth"
    for content in (b"just some text\n", b"PK\x03\x04 not a zip", bytes(range(256)) * 8, b"\x80\x02]q\x00."):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="path must be a checkpoint of Kaixhin/PlaNet"):
            load_kaixhin_checkpoint(path)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    for missing in ("transition_model", "observation_model", "reward_model", "encoder"):
        saved = checkpoint("symbolic")
        del saved[missing]
        torch.save(saved, tmp_path / "models.pth")
        with pytest.raises(ValueError, match=rf"with the parts transition_model, .* without {missing}$"):
            load_kaixhin_checkpoint(tmp_path / "models.pth")
    torch.save(torch.zeros(3), tmp_path / "models.pth")
    with pytest.raises(ValueError, match=r"without transition_model, reward_model, encoder, observation_model$"):
        load_kaixhin_checkpoint(tmp_path / "models.pth")


def without(part: str, name: str) -> Callable[[dict[str, Weights]], None]:
    return lambda saved: saved[part].__delitem__(name)


def with_weight(part: str, name: str, value: object) -> Callable[[dict[str, Weights]], None]:
    return lambda saved: saved[part].update({name: value})


@pytest.mark.parametrize(
    "spoil",
    [
        without("transition_model", "rnn.weight_hh"),
        without("transition_model", "fc_state_prior.bias"),
        without("reward_model", "fc3.weight"),
        without("encoder", "fc2.bias"),
        with_weight("transition_model", "fc_state_prior.weight", torch.zeros(8, HIDDEN)),
        with_weight("transition_model", "fc_state_prior.weight", torch.zeros(2 * 40, HIDDEN)),
        with_weight("transition_model", "rnn.weight_ih", torch.zeros(3, 3)),
        with_weight("transition_model", "rnn.weight_hh", torch.zeros(())),
        with_weight("reward_model", "fc2.weight", torch.zeros(HIDDEN, HIDDEN + 1)),
        with_weight("encoder", "fc3.weight", torch.zeros(13, 11)),
        with_weight("encoder", "fc1.weight", "a string"),
        with_weight("encoder", "fc9.weight", torch.zeros(1)),
        with_weight("observation_model", "fc3.bias", torch.zeros(OBS + 1)),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, spoil: Callable[[dict[str, Weights]], None]) -> None:
    saved = checkpoint("symbolic")
    spoil(saved)
    torch.save(saved, tmp_path / "models.pth")
    with pytest.raises(ValueError, match=r"Kaixhin/PlaNet, got '.*models.pth', whose weights do not fit: ."):
        load_kaixhin_checkpoint(tmp_path / "models.pth")


def test_a_path_without_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"models_7\.pth"):
        load_kaixhin_checkpoint(tmp_path / "models_7.pth")


def test_renaming_names_the_known_parts_and_unknown_weights() -> None:
    with pytest.raises(ValueError, match=r"part must be one of transition_model, .*observation_model, got 'actor'"):
        rename_kaixhin("actor", {})
    with pytest.raises(ValueError, match="fc7"):
        rename_kaixhin("reward_model", {"fc7.bias": torch.zeros(1)})

"""Load the checkpoints of Kaixhin/PlaNet, the PyTorch port most people have weights of.

Knows that port's names and layer shapes. Source: Kaixhin/PlaNet (MIT), models.py and main.py, which saves
`{"transition_model", "observation_model", "reward_model", "encoder", "optimiser"}` of state dicts.
"""

import os
import zipfile
from collections.abc import Mapping
from typing import BinaryIO

import torch
from torch import Tensor, nn

from planet_lib._shapes import check_choice, check_floating, check_path, shown
from planet_lib.models.cells import RSSMCell
from planet_lib.models.decoders import Decoder, RewardHead
from planet_lib.models.encoders import ConvEncoder, VectorEncoder
from planet_lib.models.world_model import WorldModel

_NAMES = {
    "transition_model": {
        "fc_embed_state_action": "path.layers.0",
        "rnn": "path.gru",
        "fc_embed_belief_prior": "prior_head.layers.0",
        "fc_state_prior": "prior_head.out",
        "fc_embed_belief_posterior": "posterior_head.layers.0",
        "fc_state_posterior": "posterior_head.out",
    },
    "reward_model": {"fc1": "layers.0", "fc2": "layers.1", "fc3": "layers.2"},
    "encoder": {
        **{f"conv{i}": f"convs.{i - 1}" for i in range(1, 5)},
        **{f"fc{i}": f"layers.{i - 1}" for i in range(1, 4)},
        "fc": "project",
    },
    "observation_model": {
        **{f"conv{i}": f"network.layers.{i - 1}" for i in range(1, 5)},
        **{f"fc{i}": f"network.layers.{i - 1}" for i in range(1, 4)},
    },
}
_PARTS = tuple(_NAMES)


def load_kaixhin_checkpoint(path: str | os.PathLike[str]) -> WorldModel:
    """Build a `WorldModel` from a checkpoint of Kaixhin/PlaNet (`models_*.pth`), images or vectors, any sizes.

    The sizes are read off the weights. The optimiser's state is left out. The port's activation (relu by default) and
    its minimal deviation 0.1 are not part of its checkpoints: relu and 0.1 are assumed.

    Nothing is unpickled but tensors (`torch.load(weights_only=True)`), so a stranger's file can run no code.

    Args:
        path: the file.

    Returns:
        A model whose encoder, cell, decoder and reward head compute what the port's do.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not readable without running code, or is not such a checkpoint.

    Example:
        >>> load_kaixhin_checkpoint("models_1000.pth")
        Traceback (most recent call last):
            ...
        FileNotFoundError: [Errno 2] No such file or directory: 'models_1000.pth'
    """
    path = check_path("path", path)
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):  # a pipe may never end
        raise ValueError(f"path must be a file, got {path!r}, which is neither file nor directory")
    with open(path, "rb") as file:
        try:
            _check_unpacked(file)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle makes torch fail in any way at all: OSError, struct.error, ...
            raise ValueError(
                f"path must be a checkpoint of Kaixhin/PlaNet holding only tensors, got {path!r}, which "
                f"cannot be read safely ({type(error).__name__})"
            ) from error
    missing = [
        part for part in _PARTS if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(part), dict)
    ]
    if missing:
        raise ValueError(
            f"path must be a checkpoint of Kaixhin/PlaNet with the parts {', '.join(_PARTS)}, got "
            f"{path!r} without {', '.join(missing)}"
        )
    try:
        weights = {part: rename_kaixhin(part, checkpoint[part]) for part in _PARTS}
        for name, value in ((name, value) for named in weights.values() for name, value in named.items()):
            _check_weight(name, value)
        # First without memory: a damaged file may claim any size.
        with torch.device("meta"):
            _check_sizes(_build({part: checkpoint[part] for part in _PARTS}), weights)
        model = _build({part: checkpoint[part] for part in _PARTS})
        for part, module in _modules(model).items():
            module.load_state_dict(weights[part])
    except (KeyError, RuntimeError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"path must be a checkpoint of Kaixhin/PlaNet, got {path!r}, whose weights do not fit: {error}"
        ) from error
    return model


def rename_kaixhin(part: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate one part's state dict into the names of planet_lib's module.

    Args:
        part: "transition_model" (-> `RSSMCell`), "reward_model" (-> `RewardHead`), "encoder" (-> `ConvEncoder` or
            `VectorEncoder`) or "observation_model" (-> `Decoder`).
        weights: the port's state dict.

    Returns:
        The same tensors under our names.

    Raises:
        ValueError: part is none of the four, or a weight has a name that the port does not use.
        TypeError: weights is no mapping.

    Example:
        >>> list(rename_kaixhin("reward_model", {"fc1.bias": torch.zeros(200)}))
        ['layers.0.bias']
    """
    check_choice("part", part, _PARTS)
    given: object = weights
    if not isinstance(given, Mapping):
        raise TypeError(f"weights must be a mapping of names to tensors, got {shown(given)}")
    names = dict(_NAMES[part])
    if part == "observation_model" and "conv1.weight" in weights:
        names["fc1"] = "network.seed"
    renamed = {}
    for name, value in weights.items():
        layer, _, kind = name.partition(".") if isinstance(name, str) else ("", "", "")
        if layer not in names:
            raise ValueError(f"weights must have the names of the port's {part}, got {shown(name)}")
        renamed[f"{names[layer]}.{kind}"] = value
    return renamed


def _check_unpacked(file: BinaryIO) -> None:
    """Raise where an archive would unfold to more than the file holds: `torch.save` packs nothing."""
    if zipfile.is_zipfile(file):
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > os.fstat(file.fileno()).st_size:
            raise ValueError(f"{size} bytes unpacked")
    file.seek(0)


def _check_weight(name: str, value: Tensor) -> None:
    """Raise unless a weight is a dense tensor of floats that has memory for each of its numbers."""
    check_floating(name, value)
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"{name} must hold {value.numel()} numbers, got {value.untyped_storage().nbytes()} bytes")


def _modules(model: WorldModel) -> dict[str, nn.Module]:
    """The parts of a model by the port's names."""
    modules = (model.cell, model.reward_head, model.encoder, model.decoder)
    return {part: module for part, module in zip(_PARTS, modules, strict=True) if isinstance(module, nn.Module)}


def _check_sizes(model: WorldModel, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise unless each part has weights of these names and shapes, and no others."""
    for part, module in _modules(model).items():
        expected = {name: list(value.shape) for name, value in module.state_dict().items()}
        got = {name: list(value.shape) for name, value in weights[part].items()}
        for name in sorted(expected.keys() | got.keys()):
            if expected.get(name) != got.get(name):
                raise ValueError(f"{part}'s {name} must be {expected.get(name, 'absent')}, got {got.get(name, 'none')}")


def _build(parts: Mapping[str, Mapping[str, Tensor]]) -> WorldModel:
    """Make modules of the sizes that the weights have."""
    transition, observation = parts["transition_model"], parts["observation_model"]
    encoder_weights, reward = parts["encoder"], parts["reward_model"]
    stoch_dim = transition["fc_state_prior.weight"].shape[0] // 2
    deter_dim = transition["rnn.weight_hh"].shape[1]
    hidden_dim = transition["fc_embed_belief_prior.weight"].shape[0]
    cell = RSSMCell(
        action_dim=transition["fc_embed_state_action.weight"].shape[1] - stoch_dim,
        embed_dim=transition["fc_embed_belief_posterior.weight"].shape[1] - deter_dim,
        deter_dim=deter_dim,
        stoch_dim=stoch_dim,
        hidden_dim=hidden_dim,
    )
    encoder: nn.Module
    if "conv1.weight" in encoder_weights:
        project = encoder_weights.get("fc.weight")
        encoder = ConvEncoder((3, 64, 64), embed_dim=None if project is None else project.shape[0])
        decoder = Decoder(cell.feature_dim, (3, 64, 64), seed_dim=observation["fc1.weight"].shape[0])
    else:
        obs_dim = encoder_weights["fc1.weight"].shape[1]
        embed_dim = encoder_weights["fc3.weight"].shape[0]
        encoder = VectorEncoder(obs_dim, embed_dim=embed_dim)
        decoder = Decoder(cell.feature_dim, (obs_dim,), hidden_dim=embed_dim)
    head = RewardHead(cell.feature_dim, hidden_dim=reward["fc1.weight"].shape[0])
    return WorldModel(encoder, cell, decoder, head)

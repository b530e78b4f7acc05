"""The world model that a preset describes. For `presets`, where everybody else finds it."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from planet_lib._shapes import check_count, shown, whole_sizes
from planet_lib.models import (
    ContinueHead,
    ConvEncoder,
    Decoder,
    DictDecoder,
    DictEncoder,
    PatchDecoder,
    PatchEncoder,
    RewardHead,
    RNNCell,
    RSSMCell,
    SSMCell,
    VectorEncoder,
    WorldModel,
    init_glorot_,
)
from planet_lib.training._preset import Preset, check_preset


def build_model(
    preset: Preset, cell: str, obs_shape: tuple[int, ...] | Mapping[str, tuple[int, ...]], action_dim: int
) -> WorldModel:
    """Make the world model that a preset describes, freshly initialised from torch's global generator.

    It has a continue head where the preset's continue_scale is above 0.

    Args:
        preset: sizes and kind of network.
        cell: "rssm", "ssm" or "rnn".
        obs_shape: (C, Y, X) of pixels, (N,) of a vector, or such a shape for each entry of a dictionary.
        action_dim: A.

    Returns:
        The model, on the CPU in float32.

    Raises:
        ValueError: an unknown cell, network or initialisation, or another setting that the parts refuse.

    Example:
        >>> from planet_lib.training.presets import PRESETS
        >>> model = build_model(PRESETS["paper"], "rssm", (3, 64, 64), 6)
        >>> type(model.cell).__name__, model.cell.feature_dim, model.continue_head
        ('RSSMCell', 230, None)
        >>> model = build_model(PRESETS["cpu"], "ssm", {"pixels": (3, 64, 64), "state": (5,)}, 6)
        >>> model.encoder.embed_dim
        512
    """
    check_preset(preset)
    given: object = cell
    if not isinstance(given, str) or given not in ("rssm", "ssm", "rnn"):
        raise ValueError(f"cell must be rssm, ssm or rnn, got {shown(cell)}")
    check_count(action_dim=action_dim)
    obs_shape = _checked_shapes(obs_shape)
    encoder: nn.Module
    decoder: nn.Module
    if isinstance(obs_shape, Mapping):
        encoders = {name: _build_encoder(preset, shape) for name, shape in obs_shape.items()}
        encoder = DictEncoder(encoders)
        latent = _build_cell(preset, cell, action_dim, encoder.embed_dim)
        decoder = DictDecoder(
            {
                name: _build_decoder(preset, latent.feature_dim, shape, encoders[name].embed_dim)
                for name, shape in obs_shape.items()
            }
        )
    else:
        encoder = _build_encoder(preset, obs_shape)
        latent = _build_cell(preset, cell, action_dim, encoder.embed_dim)
        decoder = _build_decoder(preset, latent.feature_dim, obs_shape, encoder.embed_dim)
    sizes = {"hidden_dim": preset.reward_hidden_dim, "num_hidden": preset.reward_num_hidden}
    reward_head = RewardHead(latent.feature_dim, **sizes, activation=preset.activation)
    goes_on = None
    if preset.continue_scale > 0:
        goes_on = ContinueHead(latent.feature_dim, **sizes, activation=preset.activation)
    model = WorldModel(encoder, latent, decoder, reward_head, goes_on)
    if preset.init == "glorot":
        init_glorot_(model)
    return model


def _checked_shapes(given: object) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
    """Return obs_shape as tuples of ints, or raise where it is neither a shape nor a dictionary of such."""
    shapes = dict(given) if isinstance(given, Mapping) else {"": given}
    checked = {name: whole_sizes(shape) for name, shape in shapes.items()}
    known = {name: shape for name, shape in checked.items() if shape is not None and len(shape) in (1, 3)}
    if not checked or len(known) < len(checked) or not all(isinstance(name, str) for name in checked):
        raise ValueError(
            "obs_shape must be (C, Y, X) of pixels, (N,) of a vector, or a dictionary of such, of whole sizes of at "
            f"least 1, got {shown(given)}"
        )
    return known if isinstance(given, Mapping) else known[""]


def _build_cell(preset: Preset, cell: str, action_dim: int, embed_dim: int) -> RSSMCell | SSMCell | RNNCell:
    common: dict[str, Any] = {
        name: getattr(preset, name) for name in ("hidden_dim", "num_layers", "activation", "init")
    }
    gaussian = {name: getattr(preset, name) for name in ("stoch_dim", "min_std", "min_std_mode")}
    path = {name: getattr(preset, name) for name in ("deter_dim", "gru")}
    if cell == "rssm":
        return RSSMCell(action_dim, embed_dim, **common, **gaussian, **path)
    if cell == "ssm":
        return SSMCell(action_dim, embed_dim, **common, **gaussian)
    return RNNCell(action_dim, embed_dim, **common, **path, stoch_dim=preset.stoch_dim)


def _build_encoder(preset: Preset, obs_shape: tuple[int, ...]) -> ConvEncoder | PatchEncoder | VectorEncoder:
    if len(obs_shape) == 1:
        return VectorEncoder(obs_shape[0], embed_dim=preset.embed_dim or 200)
    if preset.network == "conv":
        return ConvEncoder(_image(obs_shape), depth=preset.depth, embed_dim=preset.embed_dim or None)
    if preset.network == "patch":
        return PatchEncoder(_image(obs_shape), patch_dim=preset.depth, embed_dim=preset.embed_dim or 256)
    raise ValueError(f"network must be conv or patch, got {preset.network!r}")


def _build_decoder(
    preset: Preset, feature_dim: int, obs_shape: tuple[int, ...], embed_dim: int
) -> Decoder | PatchDecoder:
    if len(obs_shape) == 3 and preset.network == "patch":
        return PatchDecoder(feature_dim, _image(obs_shape), patch_dim=preset.depth, hidden_dim=embed_dim)
    return Decoder(feature_dim, obs_shape, depth=preset.depth, hidden_dim=preset.hidden_dim)


def _image(obs_shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, height, width = obs_shape
    return channels, height, width

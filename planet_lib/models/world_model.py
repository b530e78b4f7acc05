"""The parts of a world model, kept together. No loss, no optimiser, no device, no configuration."""

from typing import Any

from torch import nn

from planet_lib._shapes import is_whole, shown
from planet_lib.models.cells import Cell
from planet_lib.models.cells.protocol import check_members


class WorldModel(nn.Module):
    """Encoder, cell, decoder and heads of one model of the world.

    A container and nothing else: use its parts by name (`model.encoder(images)`, `model.reward_head(features)`), pass
    it to `elbo_loss`, `latent_overshooting` and `LatentDynamics`, and save it by its `state_dict`.

    Args:
        encoder: observations [..., C, Y, X] or [..., N], or a dictionary of such -> embeddings [..., E].
        cell: any `Cell`; an `nn.Module` if it has parameters.
        decoder: features [..., F] -> the mean of the observation, or a dictionary of means.
        reward_head: features [..., F] -> the mean of the reward [...].
        continue_head: features [..., F] -> logits [...] of the episode's going on; None where episodes never end by
            themselves.

    Raises:
        TypeError: encoder, decoder or a head is not an `nn.Module`, or cell has no sizes or prior
            (the members of `Cell` that every use needs; the others are looked for where they are used), or a size is no
            whole number.
        ValueError: sizes of the parts do not fit each other.

    Example:
        >>> from planet_lib import ConvEncoder, Decoder, RewardHead, RSSMCell
        >>> encoder = ConvEncoder((3, 64, 64))
        >>> cell = RSSMCell(action_dim=6, embed_dim=encoder.embed_dim)
        >>> model = WorldModel(encoder, cell, Decoder(cell.feature_dim, (3, 64, 64)), RewardHead(cell.feature_dim))
        >>> sum(parameter.numel() for parameter in model.parameters()) > 2_000_000
        True
    """

    cell: Cell[Any]

    def __init__(
        self,
        encoder: nn.Module,
        cell: Cell[Any],
        decoder: nn.Module,
        reward_head: nn.Module,
        continue_head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_members(cell, "prior")  # which every use of it needs; one that is only planned with needs no divergence
        parts: dict[str, object] = {"encoder": encoder, "decoder": decoder, "reward_head": reward_head}
        if continue_head is not None:
            parts["continue_head"] = continue_head
        for name, part in parts.items():
            if not isinstance(part, nn.Module):
                raise TypeError(f"{name} must be a torch.nn.Module, got {type(part).__name__}")
        embed_dim, feature_dim = getattr(encoder, "embed_dim", None), cell.feature_dim
        _check_size("cell.embed_dim", getattr(cell, "embed_dim", None), f"encoder.embed_dim={embed_dim}", embed_dim)
        for name in [name for name in parts if name != "encoder"]:
            size = getattr(parts[name], "feature_dim", None)
            _check_size(f"{name}.feature_dim", size, f"cell.feature_dim={feature_dim}", feature_dim)
        self.encoder = encoder
        self.cell = cell
        self.decoder = decoder
        self.reward_head = reward_head
        self.continue_head = continue_head


def _check_size(name: str, size: int | None, expected: str, expected_size: int | None) -> None:
    """Raise where both parts state a size and the two differ; a user's own part need not state any."""
    for whose, stated in ((name, size), (expected.partition("=")[0], expected_size)):
        if stated is not None and not is_whole(stated):
            raise TypeError(f"{whose} must be a whole number of at least 1, got {shown(stated)}")
    if size is not None and expected_size is not None and size != expected_size:
        raise ValueError(f"{name} must equal {expected}, got {size}")

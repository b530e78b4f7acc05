"""Encoders: from one observation to an embedding. They know nothing of time, actions or losses.

Source: the convolutions are those of PlaNet (arXiv:1811.04551, appendix A), after Ha and Schmidhuber 2018. Differences:
any height, width and number of channels (64x64 with depth 32 is the paper's network, 1024 numbers out), and a patch
stem as a cheap alternative for machines without a GPU.
"""

import itertools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from planet_lib._shapes import check_dense, check_image_shape, check_last, is_whole, shown
from planet_lib.models import _convs
from planet_lib.models._layers import apply_layers, check_meets, sizes


def conv_layers(height: int, width: int) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Kernels of the stride-2 convolutions, one pair (Y, X) per layer, and the size of the last map.

    A layer is added as long as its output keeps at least 2 pixels on the shorter side: 64 gives 31, 14, 6, 2. Where a
    kernel of 4 would leave a row or column over it is 5, so that every pixel is seen; but a side of 64 has the paper's
    kernels of 4, which leave its last two pixels unseen.
    """
    kernels: list[tuple[int, int]] = []
    sizes = (height, width)
    while min((size - 4) // 2 + 1 for size in sizes) >= 2:
        longer = [(size - 4) % 2 if side != 64 else 0 for size, side in zip(sizes, (height, width), strict=True)]
        kernels.append((4 + longer[0], 4 + longer[1]))
        sizes = ((sizes[0] - 4) // 2 + 1, (sizes[1] - 4) // 2 + 1)
    return kernels, sizes


class ConvEncoder(nn.Module):
    """Image encoder of stride-2 convolutions, relu after each.

    embed = flatten(conv_n(... conv_1(image))), each convolution 4x4 with stride 2 and no padding, with depth, 2 depth,
    4 depth, then 8 depth channels. As many layers as keep 2 pixels on the shorter side: four at 64x64. Where 4 would
    leave a row or column over the kernel is 5 on that side, so that the embedding depends on every pixel. Only a side
    of 64 keeps the paper's kernels, which never see its last two pixels.

    Shapes: images [..., C, Y, X] float in [-0.5, 0.5] (see `planet_lib.dequantise`) -> [..., E] with E = embed_dim.

    Args:
        image_shape: (C, Y, X), channels first; the shorter side at least 6 pixels.
        depth: channels of the first layer; 32 is the paper's.
        embed_dim: size of the embedding; None keeps the flattened map (1024 in the paper), a number adds a linear
            layer.

    Raises:
        ValueError: image_shape is not three positive sizes, or too small; depth or embed_dim below 1; images do not fit
            image_shape when called.
        TypeError: images are not floats of the weights' type when called.

    Source: arXiv:1811.04551, appendix A; google-research/planet networks/conv_ha.py.

    Example:
        >>> encoder = ConvEncoder((3, 64, 64))
        >>> encoder(torch.zeros(50, 2, 3, 64, 64)).shape, encoder.embed_dim
        (torch.Size([50, 2, 1024]), 1024)
    """

    def __init__(self, image_shape: tuple[int, int, int], *, depth: int = 32, embed_dim: int | None = None) -> None:
        super().__init__()
        self.image_shape = check_image_shape("image_shape", image_shape)
        (depth,) = sizes(depth=depth)
        if embed_dim is not None:
            (embed_dim,) = sizes(embed_dim=embed_dim)
        channels, height, width = self.image_shape
        kernels, (rows, columns) = conv_layers(height, width)
        if not kernels:
            raise ValueError(f"image_shape must be at least 6 pixels high and wide, got {self.image_shape}")
        widths = [channels] + [depth * min(2**layer, 8) for layer in range(len(kernels))]
        self.convs = nn.ModuleList(
            nn.Conv2d(below, above, kernel, stride=2)
            for (below, above), kernel in zip(itertools.pairwise(widths), kernels, strict=True)
        )
        flat = widths[-1] * rows * columns
        self.embed_dim = flat if embed_dim is None else embed_dim
        self.project = nn.Identity() if embed_dim is None else nn.Linear(flat, embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images [..., C, Y, X] as [..., E]."""
        hidden = flatten_images(images, self.image_shape)
        check_meets("images", images, self, "the encoder's weights")
        maps = _convs.encode(hidden, self.convs)
        embed: Tensor = self.project(maps.flatten(1))
        return embed.reshape(*images.shape[:-3], self.embed_dim)


class PatchEncoder(nn.Module):
    """Image encoder that cuts the image into square patches and maps each by the same small network.

    embed = elu(W_2 concat_p elu(W_1 patch_p + b_1) + b_2). All of it is matrix products, which suits a CPU; in
    exchange a patch does not see its neighbours before the last layer.

    Shapes: images [..., C, Y, X] float in [-0.5, 0.5] -> [..., E] with E = embed_dim.

    Args:
        image_shape: (C, Y, X), channels first; Y and X multiples of patch.
        patch: side of a patch in pixels.
        patch_dim: numbers kept of each patch.
        embed_dim: size of the embedding.

    Raises:
        ValueError: image_shape is not divisible by patch; images do not fit it when called.
        TypeError: images are not floats when called.

    Source: ours, for the `cpu` preset; the stem is that of Dosovitskiy et al. 2020 (arXiv:2010.11929).

    Example:
        >>> encoder = PatchEncoder((3, 64, 64), embed_dim=256)
        >>> encoder(torch.zeros(50, 2, 3, 64, 64)).shape
        torch.Size([50, 2, 256])
    """

    def __init__(
        self, image_shape: tuple[int, int, int], *, patch: int = 8, patch_dim: int = 32, embed_dim: int = 256
    ) -> None:
        super().__init__()
        self.image_shape = check_image_shape("image_shape", image_shape)
        patch, patch_dim, embed_dim = sizes(patch=patch, patch_dim=patch_dim, embed_dim=embed_dim)
        self.patch = check_patch(self.image_shape, patch)
        channels, height, width = self.image_shape
        self.embed_dim = embed_dim
        self.stem = nn.Linear(channels * patch * patch, patch_dim)
        self.project = nn.Linear(patch_dim * (height // patch) * (width // patch), embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images [..., C, Y, X] as [..., E]."""
        flat = flatten_images(images, self.image_shape)
        check_meets("images", images, self, "the encoder's weights")
        patches = rearrange(flat, "n c (y p) (x q) -> n (y x) (c p q)", p=self.patch, q=self.patch)
        hidden = F.elu(self.stem(patches))
        embed = F.elu(self.project(hidden.flatten(1)))
        return embed.reshape(*images.shape[:-3], self.embed_dim)


class VectorEncoder(nn.Module):
    """Encoder of a vector observation: linear layers with relu between them, none at the end.

    Shapes: obs [..., N] float -> [..., E] with E = embed_dim.

    Args:
        obs_dim: N, the numbers in one observation.
        embed_dim: size of the embedding, and of the hidden layers.
        num_layers: linear layers in all.

    Raises:
        ValueError: a size below 1; obs does not end in N when called.
        TypeError: obs is not floats when called.

    Source: Kaixhin/PlaNet models.py, SymbolicEncoder (three layers).

    Example:
        >>> VectorEncoder(5, embed_dim=64)(torch.zeros(50, 2, 5)).shape
        torch.Size([50, 2, 64])
    """

    def __init__(self, obs_dim: int, *, embed_dim: int = 200, num_layers: int = 3) -> None:
        super().__init__()
        obs_dim, embed_dim, num_layers = sizes(obs_dim=obs_dim, embed_dim=embed_dim, num_layers=num_layers)
        self.obs_dim, self.embed_dim = obs_dim, embed_dim
        widths = [obs_dim] + [embed_dim] * num_layers
        self.layers = nn.ModuleList(nn.Linear(below, above) for below, above in itertools.pairwise(widths))

    def forward(self, obs: Tensor) -> Tensor:
        """Embed vectors [..., N] as [..., E]."""
        check_last("obs", obs, self.obs_dim, because="the encoder's obs_dim")
        if not obs.is_floating_point():
            raise TypeError(f"obs must be floats, got {obs.dtype}; convert it with obs.float()")
        check_meets("obs", obs, self, "the encoder's weights")
        return apply_layers(self.layers, obs)


class DictEncoder(nn.Module):
    """Encoder of several things seen at once, each by its own encoder: their embeddings side by side.

    embed = [encoder_1(obs[name_1]), encoder_2(obs[name_2]), ...], in the order in which the encoders were given.

    Shapes: obs a dictionary of what the encoders take, the leading axes the same -> [..., E] with E = embed_dim.

    Args:
        encoders: name -> encoder with an `embed_dim`; the names are those in the observation.

    Raises:
        ValueError: no encoder, a name that is empty or has a dot, or, when called, other names than these.
        TypeError: an encoder that is no `nn.Module` with an embed_dim, or an observation that is no dictionary.

    Source: ours.

    Example:
        >>> encoder = DictEncoder({"camera": ConvEncoder((3, 64, 64)), "joints": VectorEncoder(5, embed_dim=64)})
        >>> encoder({"camera": torch.zeros(50, 2, 3, 64, 64), "joints": torch.zeros(50, 2, 5)}).shape
        torch.Size([50, 2, 1088])
    """

    def __init__(self, encoders: Mapping[str, nn.Module]) -> None:
        super().__init__()
        check_names("encoders", encoders)
        dims = [check_part(f"encoders[{name!r}]", encoder, "embed_dim") for name, encoder in encoders.items()]
        self.encoders = nn.ModuleDict(encoders)
        self.embed_dim = sum(dims)

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        """Embed a dictionary of observations as [..., E]."""
        if not isinstance(obs, dict):
            raise TypeError(f"obs must be a dictionary of {', '.join(self.encoders)}, got {type(obs).__name__}")
        if set(obs) != set(self.encoders):
            got = ", ".join(map(str, obs)) or "none"
            raise ValueError(f"obs must have the entries {', '.join(self.encoders)}, got {got}")
        embeds = {name: self._embed(name, encoder, obs[name]) for name, encoder in self.encoders.items()}
        first = next(iter(embeds))
        for name, embed in embeds.items():
            if embed.shape[:-1] != embeds[first].shape[:-1]:
                raise ValueError(
                    f"obs[{name!r}] must have the leading axes {list(embeds[first].shape[:-1])} of obs[{first!r}], got "
                    f"{list(embed.shape[:-1])}"
                )
        return torch.cat(list(embeds.values()), -1)

    def _embed(self, name: str, encoder: nn.Module, obs: Tensor) -> Tensor:
        """Embed one entry; what is wrong with it is told by its name."""
        try:
            embed: Tensor = encoder(obs)
        except (ValueError, TypeError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"obs[{name!r}]: {error}") from error
        return embed


def check_part(name: str, part: nn.Module, size: str) -> int:
    """Return the size that a part states under the name `size`, or raise a `TypeError`."""
    given: object = part
    stated = getattr(given, size, None)
    if not isinstance(given, nn.Module) or stated is None or not is_whole(stated):
        got = type(given).__name__ if stated is None else f"{type(given).__name__} with {shown(stated)}"
        article = "an" if size.startswith("e") else "a"
        raise TypeError(f"{name} must be a torch.nn.Module with {article} {size}, got {got}")
    return int(stated)


def check_names(argument: str, parts: Mapping[str, nn.Module]) -> None:
    """Raise unless there are parts, under names that can stand in a state dict."""
    if not isinstance(parts, Mapping):
        raise TypeError(f"{argument} must be a mapping of names to parts, got {type(parts).__name__}")
    if not parts:
        raise ValueError(f"{argument} must hold at least one entry, got none")
    for name in parts:
        if not isinstance(name, str) or not name or "." in name or "/" in name:
            raise ValueError(f"{argument} must have names without dots and slashes, got {name!r}")
        if hasattr(nn.ModuleDict, name) or name == "training":
            raise ValueError(f"{argument} must have names that torch.nn.ModuleDict has not taken, got {name!r}")


def check_patch(image_shape: tuple[int, int, int], patch: int) -> int:
    """Return `patch`, or raise where it does not divide the image's height and width."""
    _, height, width = image_shape
    if height % patch or width % patch:
        got = f"{patch} for image_shape {image_shape}"
        raise ValueError(f"patch must divide the image's height {height} and width {width}, got {got}")
    return patch


def flatten_images(images: Tensor, image_shape: tuple[int, int, int]) -> Tensor:
    """Merge the leading axes of float images [..., C, Y, X] into one, or raise where the shape or dtype is wrong."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor of floats, got {type(images).__name__}")
    if images.ndim < 4 or tuple(images.shape[-3:]) != image_shape:
        hint = ""
        if images.ndim >= 3 and tuple(images.shape[-3:]) == (*image_shape[1:], image_shape[0]):
            hint = "; move the channels first with images.movedim(-1, -3)"
        expected = ", ".join(map(str, image_shape))
        raise ValueError(
            f"images must be [..., {expected}] (the encoder's image_shape, channels first) with at least one "
            f"leading axis, got {list(images.shape)}{hint}"
        )
    if not images.is_floating_point():
        raise TypeError(
            f"images must be floats in [-0.5, 0.5], got {images.dtype}; turn uint8 frames into floats with "
            "planet_lib.dequantise(images)"
        )
    check_dense("images", images)
    return images.flatten(0, -4)

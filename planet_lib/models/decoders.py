"""Decoders and heads: from the features of a latent state to what is predicted. They know nothing of time or losses.

Source: PlaNet (arXiv:1811.04551, appendix A). Difference: the image decoder mirrors any image shape exactly; a patch
decoder is a cheap alternative for machines without a GPU.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from planet_lib._shapes import check_choice, check_image_shape, check_last, shown, whole_sizes
from planet_lib.models import _convs
from planet_lib.models._layers import ACTIVATIONS, apply_layers, check_meets, sizes
from planet_lib.models.encoders import check_names, check_part, check_patch


class Decoder(nn.Module):
    """Predict the mean of an observation of exactly the given shape; unit variance is the loss's business.

    An image (C, Y, X) comes from a linear layer without activation and stride-2 transposed convolutions with relu
    between them; a vector (N,) from linear layers with relu between them.

    At 64x64 with depth 32 this is the paper's network: linear to 1024, then kernels 5, 5, 6, 6 with 128, 64, 32, C
    channels. Other sizes get the layers that lead to them: sizes are counted back from the output, (size - kernel) / 2
    + 1 at each layer, and where that leaves a remainder the kernel is one longer on that side, so odd and non-square
    images fit exactly and every pixel depends on the features, those at the edge too.

    Shapes: features [..., F] -> [..., C, Y, X] or [..., N].

    Args:
        feature_dim: F, the cell's feature_dim.
        obs_shape: (C, Y, X), channels first, at least 6 pixels high and wide, or (N,).
        depth: channels before the last layer, doubled at each layer below; 32 is the paper's. Images only.
        seed_dim: numbers in the linear layer's output; None is 32 depth, 1024 in the paper. Images only.
        hidden_dim: size of the hidden layers. Vectors only.
        num_layers: linear layers in all. Vectors only.

    Raises:
        ValueError: obs_shape is neither an image's nor a vector's; features do not end in F when called.

    Source: arXiv:1811.04551, appendix A; google-research/planet networks/conv_ha.py.

    Example:
        >>> import torch
        >>> Decoder(230, (3, 64, 64))(torch.zeros(50, 2, 230)).shape
        torch.Size([50, 2, 3, 64, 64])
        >>> Decoder(230, (5,))(torch.zeros(50, 2, 230)).shape
        torch.Size([50, 2, 5])
    """

    def __init__(
        self,
        feature_dim: int,
        obs_shape: Sequence[int],
        *,
        depth: int = 32,
        seed_dim: int | None = None,
        hidden_dim: int = 200,
        num_layers: int = 3,
    ) -> None:
        super().__init__()
        self.feature_dim, depth, hidden_dim, num_layers = sizes(
            feature_dim=feature_dim, depth=depth, hidden_dim=hidden_dim, num_layers=num_layers
        )
        (seed_dim,) = sizes(seed_dim=32 * depth if seed_dim is None else seed_dim)
        self.obs_shape = _check_obs_shape(obs_shape)
        if len(self.obs_shape) == 1:
            self.network: nn.Module = _VectorDecoder(self.feature_dim, self.obs_shape[0], hidden_dim, num_layers)
        else:
            image_shape = check_image_shape("obs_shape", self.obs_shape)
            self.network = _ConvDecoder(self.feature_dim, image_shape, depth, seed_dim)

    def forward(self, features: Tensor) -> Tensor:
        """Predict observations [..., C, Y, X] or [..., N] from features [..., F]."""
        check_last("features", features, self.feature_dim, because="the decoder's feature_dim")
        check_meets("features", features, self, "the decoder's weights")
        flat = features.reshape(-1, self.feature_dim)
        prediction: Tensor = self.network(flat)
        return prediction.reshape(*features.shape[:-1], *self.obs_shape)


class PatchDecoder(nn.Module):
    """Predict an image patch by patch: the mirror of `PatchEncoder`, all matrix products.

    hidden = elu(W_1 features + b_1);  piece_p = elu(W_2p hidden + b_2p), one for each patch;
    patch_p = W_4 elu(W_3 piece_p + b_3) + b_4, by the same weights for all patches.

    Shapes: features [..., F] -> [..., C, Y, X].

    Args:
        feature_dim: F, the cell's feature_dim.
        image_shape: (C, Y, X), channels first; Y and X multiples of patch.
        patch: side of a patch in pixels.
        patch_dim: numbers from which a patch is drawn.
        hidden_dim: size of the layer between features and patches.
        draw_dim: size of the hidden layer that draws a patch. Without it thin lines at an angle stay blurred.

    Raises:
        ValueError: image_shape is not divisible by patch; features do not end in F when called.

    Source: ours, for the `cpu` preset.

    Example:
        >>> import torch
        >>> PatchDecoder(230, (3, 64, 64))(torch.zeros(50, 2, 230)).shape
        torch.Size([50, 2, 3, 64, 64])
    """

    def __init__(
        self,
        feature_dim: int,
        image_shape: tuple[int, int, int],
        *,
        patch: int = 8,
        patch_dim: int = 32,
        hidden_dim: int = 256,
        draw_dim: int = 128,
    ) -> None:
        super().__init__()
        feature_dim, patch, patch_dim, hidden_dim, draw_dim = sizes(
            feature_dim=feature_dim, patch=patch, patch_dim=patch_dim, hidden_dim=hidden_dim, draw_dim=draw_dim
        )
        self.feature_dim = feature_dim
        self.obs_shape = check_image_shape("image_shape", image_shape)
        self.patch = check_patch(self.obs_shape, patch)
        self.patch_dim = patch_dim
        channels, height, width = self.obs_shape
        self.rows, self.columns = height // patch, width // patch
        self.hidden = nn.Linear(feature_dim, hidden_dim)
        self.spread = nn.Linear(hidden_dim, self.rows * self.columns * patch_dim)
        self.sketch = nn.Linear(patch_dim, draw_dim)
        self.draw = nn.Linear(draw_dim, channels * patch * patch)

    def forward(self, features: Tensor) -> Tensor:
        """Predict images [..., C, Y, X] from features [..., F]."""
        check_last("features", features, self.feature_dim, because="the decoder's feature_dim")
        check_meets("features", features, self, "the decoder's weights")
        flat = features.reshape(-1, self.feature_dim)
        pieces = F.elu(self.spread(F.elu(self.hidden(flat)))).reshape(
            len(flat), self.rows * self.columns, self.patch_dim
        )
        patches = self.draw(F.elu(self.sketch(pieces)))
        image: Tensor = rearrange(
            patches, "n (y x) (c p q) -> n c (y p) (x q)", y=self.rows, p=self.patch, q=self.patch
        )
        return image.reshape(*features.shape[:-1], *self.obs_shape)


class DictDecoder(nn.Module):
    """Predict the means of several things seen at once, each by its own decoder.

    Shapes: features [..., F] -> a dictionary of what the decoders predict.

    Args:
        decoders: name -> decoder, all of one feature_dim; the names are those in the observation.

    Raises:
        ValueError: no decoder, a name that is empty or has a dot, or decoders of different feature_dim.
        TypeError: a decoder that is no `nn.Module` with a feature_dim.

    Source: ours.

    Example:
        >>> import torch
        >>> decoder = DictDecoder({"camera": Decoder(230, (3, 64, 64)), "joints": Decoder(230, (5,))})
        >>> {name: tuple(mean.shape) for name, mean in decoder(torch.zeros(2, 230)).items()}
        {'camera': (2, 3, 64, 64), 'joints': (2, 5)}
    """

    def __init__(self, decoders: Mapping[str, nn.Module]) -> None:
        super().__init__()
        check_names("decoders", decoders)
        dims = {name: check_part(f"decoders[{name!r}]", part, "feature_dim") for name, part in decoders.items()}
        if len(set(dims.values())) > 1:
            raise ValueError(f"decoders must all have one feature_dim, the cell's, got {dims}")
        self.decoders = nn.ModuleDict(decoders)
        self.feature_dim = next(iter(dims.values()))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Predict a dictionary of observations from features [..., F]."""
        return {name: decoder(features) for name, decoder in self.decoders.items()}


class RewardHead(nn.Module):
    """Predict the mean of the reward (of the whole action repeat) from linear layers with an activation between them.

    Shapes: features [..., F] -> [...].

    Args:
        feature_dim: F, the cell's feature_dim.
        hidden_dim: size of the hidden layers.
        num_hidden: hidden layers; the paper has 2 of 200, google-research/planet 3 of 300.
        activation: behind each hidden layer: relu, elu, silu, gelu or tanh.

    Raises:
        ValueError: a size below 1, an unknown activation; features do not end in F when called.

    Source: arXiv:1811.04551, appendix A.

    Example:
        >>> import torch
        >>> RewardHead(230)(torch.zeros(50, 2, 230)).shape
        torch.Size([50, 2])
    """

    def __init__(
        self, feature_dim: int, *, hidden_dim: int = 200, num_hidden: int = 2, activation: str = "relu"
    ) -> None:
        super().__init__()
        feature_dim, hidden_dim, num_hidden = sizes(
            feature_dim=feature_dim, hidden_dim=hidden_dim, num_hidden=num_hidden
        )
        check_choice("activation", activation, ACTIVATIONS)
        self.feature_dim, self.activation = feature_dim, activation
        widths = [feature_dim] + [hidden_dim] * num_hidden + [1]
        self.layers = nn.ModuleList(nn.Linear(below, above) for below, above in itertools.pairwise(widths))

    def forward(self, features: Tensor) -> Tensor:
        """Predict one number [...] from features [..., F]."""
        check_last("features", features, self.feature_dim, because="the head's feature_dim")
        check_meets("features", features, self, "the head's weights")
        return apply_layers(self.layers, features, self.activation).squeeze(-1)


class ContinueHead(RewardHead):
    """Predict whether the episode goes on after a state, as the logit of its probability.

    p(goes on | features) = sigmoid(logit). For environments that terminate: `elbo_loss` trains it on "not terminated",
    and `LatentDynamics` counts imagined rewards only as far as the episode is likely to get.

    Shapes: features [..., F] -> logits [...].

    Args and errors as those of `RewardHead`, whose layers it has.

    Source: Dreamer (arXiv:1912.01603), which predicts discounts in the same way; PlaNet's tasks never end early.

    Example:
        >>> import torch
        >>> head = ContinueHead(230)
        >>> probability = torch.sigmoid(head(torch.zeros(50, 2, 230)))
        >>> probability.shape
        torch.Size([50, 2])
    """


def _check_obs_shape(obs_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of an image or a vector as a tuple of ints, or raise where it is neither."""
    given: object = obs_shape
    is_sized = isinstance(given, Sequence) or (isinstance(given, np.ndarray) and given.ndim == 1)
    if is_sized and len(obs_shape) == 1 and not isinstance(given, str | bytes):
        sizes(**{"obs_shape's obs_dim": obs_shape[0]})
    elif is_sized and len(obs_shape) == 3:
        return check_image_shape("obs_shape", obs_shape)
    found = whole_sizes(obs_shape)
    if found is None or len(found) != 1:
        got = shown(tuple(obs_shape) if isinstance(given, list) else given)
        raise ValueError(f"obs_shape must be (C, Y, X) or (N,), got {got}")
    return found


class _VectorDecoder(nn.Module):
    def __init__(self, feature_dim: int, obs_dim: int, hidden_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [feature_dim] + [hidden_dim] * (num_layers - 1) + [obs_dim]
        self.layers = nn.ModuleList(nn.Linear(below, above) for below, above in itertools.pairwise(widths))

    def forward(self, features: Tensor) -> Tensor:
        return apply_layers(self.layers, features)


class _ConvDecoder(nn.Module):
    def __init__(self, feature_dim: int, image_shape: tuple[int, int, int], depth: int, seed_dim: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        kernels: list[tuple[int, int]] = []
        rows, columns = height, width
        while True:
            kernel = 6 if len(kernels) < 2 else 5
            if min((rows - kernel) // 2, (columns - kernel) // 2) < 0:
                break
            kernels.insert(0, (kernel + (rows - kernel) % 2, kernel + (columns - kernel) % 2))
            rows, columns = (rows - kernel) // 2 + 1, (columns - kernel) // 2 + 1
        if not kernels:
            raise ValueError(f"obs_shape must be at least 6 pixels high and wide, got {image_shape}")
        num_layers = len(kernels)
        widths = [depth * min(2 ** (num_layers - 2 - layer), 8) for layer in range(num_layers - 1)] + [channels]
        # A 1x1 seed has all of seed_dim as channels; a larger one shares them, down to a floor, among its pixels.
        seed_channels = seed_dim if rows * columns == 1 else max(seed_dim // (rows * columns), 8 * depth)
        self.seed_shape = (seed_channels, rows, columns)
        self.seed = nn.Linear(feature_dim, seed_channels * rows * columns)
        below = seed_channels
        layers: list[nn.Module] = []
        for above, kernel_size in zip(widths, kernels, strict=True):
            layers.append(nn.ConvTranspose2d(below, above, kernel_size, stride=2))
            below = above
        self.layers = nn.ModuleList(layers)

    def forward(self, features: Tensor) -> Tensor:
        seed: Tensor = self.seed(features).reshape(-1, *self.seed_shape)
        return _convs.decode(seed, self.layers)

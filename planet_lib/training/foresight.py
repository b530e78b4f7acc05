"""How wrong a world model's imagination is, by how far it looks ahead.

The model is judged alone: actions come from recorded episodes, no planner is involved. Knows models and episodes, but
no files: `planet_lib.training.curves` draws the errors.

Source: ours. Predictors that know no dynamics, and the posterior, which sees all, tell what an error means.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from planet_lib._shapes import check_count, check_positive, check_whole, is_whole, shown
from planet_lib.data.pixels import dequantise, prepare
from planet_lib.models import WorldModel, imagine, observe
from planet_lib.models.rollout import map_state
from planet_lib.training.diagnostics import check_given, device_of, draw, each_entry, image_name, pick_entry, tensor_of
from planet_lib.types import Array, Batch, Episode, Observation


class OpenLoopError(NamedTuple):
    """How wrong predictions are, by how far they look ahead: H horizons, 1 to H steps after the last row seen.

    Image errors are mean squared errors per pixel and channel, where black to white is 1 (the library's [-0.5, 0.5], or
    [0, 1]: the same). The truth is the frame at the model's bit depth without the dequantisation noise: the centre of
    each pixel's level, which is what the best decoder predicts. Reward errors are mean squared errors, in the square of
    the reward's unit. Both are means over windows and over samples: the error of one sampled future, not of a mean of
    futures. Far ahead, where nothing is left to know, samples of even the true distribution err by twice its variance,
    the mean frame by once.

    Shapes: horizon [H] int, 1 to H; image [H] of the model, open loop; image_median [H] with the median in place of the
    mean over windows and samples, which a few futures that explode do not move (the lower one of an even number);
    reconstruction [H] of its posterior, which has seen the very frame: the lower limit; last_frame [H] of repeating the
    last frame seen; mean_frame [H] of always showing the mean of all frames of the episodes; reward [H] of the model,
    open loop; reward_reconstruction [H] of its posterior. reward_variance is the variance of the true rewards over all
    predicted rows: the error of always predicting their mean. num_windows says how many windows there are.

    Example:
        >>> half = np.array([0.5, 0.5])
        >>> error = OpenLoopError(horizon=np.array([1, 2]), image=half, image_median=half, reconstruction=half,
        ...     last_frame=half, mean_frame=half, reward=half, reward_reconstruction=half, reward_variance=2.0,
        ...     num_windows=1)
        >>> error.reward_r2
        array([0.75, 0.75])
    """

    horizon: Array
    image: Array
    image_median: Array
    reconstruction: Array
    last_frame: Array
    mean_frame: Array
    reward: Array
    reward_reconstruction: Array
    reward_variance: float
    num_windows: int

    @property
    def reward_r2(self) -> Array:
        """1 - reward / reward_variance [H]: 1 is perfect, 0 as good as the mean; nan if all rewards are equal."""
        variance = self.reward_variance if self.reward_variance > 0 else np.nan
        r2: Array = 1 - self.reward / variance
        return r2


@torch.no_grad()
def open_loop_error(
    model: WorldModel,
    episodes: Sequence[Episode],
    *,
    context: int = 5,
    length: int = 50,
    every: int = 25,
    num_samples: int = 5,
    seed: int = 0,
    image: str | None = None,
) -> OpenLoopError:
    """Measure how fast the model's imagination parts from what happened: `context` rows seen, the rest from actions.

    Windows of `length` rows are cut from the episodes, one every `every` rows, as many as fit; episodes shorter than
    `length` have none. As in training, a window in the middle of an episode starts from the zero state. Each window is
    predicted `num_samples` times. All windows and samples are filtered in one `observe` and predicted in one `imagine`.

    Everything random comes from `seed`, by noise that is drawn on the CPU and handed over: the same on every device,
    and torch's global generators stay as they are (unless a cell draws noise of its own).

    Args:
        model: the world model.
        episodes: with pixels, alone or in a dictionary; all of the same shapes. Not those it was trained on.
        context: rows that are seen, at least 1.
        length: rows of a window; H = length - context are predicted.
        every: rows from one window's start to the next.
        num_samples: futures sampled per window. One does where cell and decoder are deterministic.
        seed: of the noise.
        image: which entry of a dictionary is judged; None is the only one with pixels. The model sees all entries.

    Returns:
        The errors by horizon; see `OpenLoopError`.

    Raises:
        ValueError: no episodes, or none of `length` rows; they differ in shapes, or hold no pixels, or several and
            `image` does not choose; context, every or num_samples is out of range.

    Example:
        >>> from planet_lib.training.presets import PRESETS, build_model
        >>> model = build_model(PRESETS["cpu"], "rssm", (3, 64, 64), 1)
        >>> rows = np.arange(12)
        >>> episode = Episode(obs=np.zeros((12, 3, 64, 64), np.uint8), action=np.zeros((12, 1), np.float32),
        ...     reward=np.zeros(12, np.float32), is_first=rows == 0, terminated=rows > 11, truncated=rows == 11)
        >>> error = open_loop_error(model, [episode], context=2, length=8, every=4, num_samples=1)
        >>> error.horizon.tolist(), error.num_windows, error.last_frame.tolist()
        ([1, 2, 3, 4, 5, 6], 2, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    """
    check_positive(every=every, num_samples=num_samples)
    check_count(every=every, num_samples=num_samples)
    check_whole("length", length, least=1)
    if not is_whole(context, 1, length - 1):
        raise ValueError(f"context must be between 1 and length - 1 = {length - 1}, got {shown(context)}")
    check_whole("seed", seed, least=0, most=2**63 - 1)
    context, length, every, num_samples = int(context), int(length), int(every), int(num_samples)
    name = _check_alike(model, episodes, image)
    windows = _cut_windows(episodes, length, every)
    foreseen, seen = _look_ahead(model, windows, context, num_samples, torch.Generator().manual_seed(int(seed)))

    truth = pick_entry(windows.obs, name)
    last_frame = _levels(truth[context - 1].to(seen.device))
    mean_frame = _mean_frame(episodes, name).to(last_frame)
    shape = (num_samples, *last_frame.shape)
    image_errors = []
    for h in range(length - context):  # the frames of all rows at once might not fit into memory
        wanted = _levels(truth[context + h].to(seen.device))
        drawn = [draw(model, features[h], name).reshape(shape) for features in (foreseen, seen)]
        guesses = (*drawn, last_frame, mean_frame)
        each = [(guess - wanted).square().mean((-3, -2, -1)) for guess in guesses]  # [num_samples, B] or [B]
        image_errors.append(torch.stack([each[0].median(), *(error.mean() for error in each)]))
    median, image_error, reconstruction, last, mean = torch.stack(image_errors, dim=1).double().cpu().numpy()

    reward = windows.reward[context:].to(seen.device)
    rewards = torch.stack([model.reward_head(features) for features in (foreseen, seen)])
    misses = rewards.reshape(2, len(reward), num_samples, -1) - reward.unsqueeze(1)
    reward_error, reward_reconstruction = misses.square().mean((2, 3)).double().cpu().numpy()
    return OpenLoopError(
        horizon=np.arange(1, length - context + 1),
        image=image_error,
        image_median=median,
        reconstruction=reconstruction,
        last_frame=last,
        mean_frame=mean,
        reward=reward_error,
        reward_reconstruction=reward_reconstruction,
        reward_variance=float(reward.double().var(correction=0)),
        num_windows=reward.shape[1],
    )


def _cut_windows(episodes: Sequence[Episode], length: int, every: int) -> Batch:
    """Windows of `length` rows, one every `every` rows of each episode, on the CPU; or raise where none fits."""
    places = [(e, slice(s, s + length)) for e in episodes for s in range(0, len(e.reward) - length + 1, every)]
    if not places:
        longest = max(len(episode.reward) for episode in episodes)
        raise ValueError(f"length must be at most the {longest} rows of the longest episode, got {length}")
    obs = _stack([each_entry(lambda value, rows=rows: value[rows], episode.obs) for episode, rows in places])
    action, reward, is_first, terminated = (
        _stack([getattr(episode, field)[rows] for episode, rows in places])
        for field in ("action", "reward", "is_first", "terminated")
    )
    return Batch(obs, action, reward, is_first, terminated, mask=torch.ones_like(is_first))


def _look_ahead(
    model: WorldModel, windows: Batch, context: int, num_samples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Features [H, num_samples * B, F] of the rows after the context: imagined from the context, and filtered."""
    device = device_of(model)
    # Row by row, since the activations of an encoder for all frames at once might not fit into memory.
    rows = range(len(windows.reward))
    embed = torch.stack([model.encoder(_see(windows.obs, t, num_samples, generator, device)) for t in rows])
    shape = (*embed.shape[:2], model.cell.noise_dim)
    prior_noise, posterior_noise, noise = (torch.randn(shape, generator=generator).to(embed) for _ in range(3))
    action = windows.action.repeat(1, num_samples, 1).to(device)
    is_first = windows.is_first.repeat(1, num_samples).to(device)
    _, posterior = observe(
        model.cell, embed, action, is_first, prior_noise=prior_noise, posterior_noise=posterior_noise
    )
    last = map_state(lambda field: field[context - 1], posterior)
    imagined = imagine(model.cell, last, action[context:], noise=noise[context:])
    return model.cell.features(imagined), model.cell.features(posterior)[context:]


def _see(obs: Observation, t: int, num_samples: int, generator: torch.Generator, device: torch.device) -> Observation:
    """What the model sees of row t [num_samples * B, ...]: each sample has dequantisation noise of its own."""
    row = each_entry(lambda value: torch.cat([value[t]] * num_samples).to(device), obs)
    noise = each_entry(lambda value: torch.rand(value.shape, generator=generator).to(device), row)
    seen: Observation = prepare(row, noise=noise)
    return seen


def _levels(pixels: Tensor) -> Tensor:
    """Floats of the model's bit depth without noise: the centre of each level, the mean over the noise."""
    return dequantise(pixels, noise=torch.full(pixels.shape, 0.5, device=pixels.device))


def _mean_frame(episodes: Sequence[Episode], name: str | None) -> Tensor:
    """The mean [C, Y, X] of all frames of the episodes."""
    frames = (_levels(pick_entry(each_entry(tensor_of, episode.obs), name)) for episode in episodes)
    return torch.stack([value.double().sum(0) for value in frames]).sum(0) / sum(len(e.reward) for e in episodes)


def _check_alike(model: WorldModel, episodes: Sequence[Episode], image: str | None) -> str | None:
    """Return the name of the entry with the pixels, or raise unless all episodes hold the same kinds of things."""
    given: object = episodes
    if isinstance(given, Episode) or not isinstance(given, list | tuple):
        raise TypeError(f"episodes must be a list of episodes, got {type(given).__name__}")
    if not episodes:
        raise ValueError("episodes must be at least one, got none")
    for episode in episodes:
        check_given(model, episode)
    name = image_name(episodes[0].obs, image)
    first = _describe(episodes[0])
    for number, episode in enumerate(episodes):
        if _describe(episode) != first:
            raise ValueError(f"episodes must all hold {first} like the first, got {_describe(episode)} in {number}")
    return name


def _describe(episode: Episode) -> str:
    """The kinds and sizes of what a row holds."""
    entries = dict(sorted(episode.obs.items())) if isinstance(episode.obs, dict) else {"obs": episode.obs}
    fields = {**entries, "action": episode.action}
    return ", ".join(f"{name} {value.dtype} {list(value.shape[1:])}" for name, value in fields.items())


def _stack(parts: Sequence[Any]) -> Any:
    """Arrays of the windows side by side as one tensor [T, B, ...], or dictionaries of such entry by entry."""
    if isinstance(parts[0], dict):
        return {name: _stack([part[name] for part in parts]) for name in parts[0]}
    return torch.from_numpy(np.stack(parts, axis=1))

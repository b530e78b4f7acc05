"""Curves: what the agent earns and its model loses over a run, and how wrong models are the further they look ahead.

`learning_curve` reads `metrics.csv`. Each draws one PNG. Needs the `train` extra, imported when it draws; touches no
global state of matplotlib, so it can be called from a program that draws its own figures.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from planet_lib._files import atomic_path
from planet_lib._shapes import check_path
from planet_lib.training._curve_checks import check_errors, check_levels, check_text
from planet_lib.training._extras import require
from planet_lib.training.metrics import read_metrics

LONGEST = 150  # characters; much more leaves no room for the curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from planet_lib.training.foresight import OpenLoopError

Column = np.ndarray[Any, Any]

_NEEDED = (
    "env_steps",
    "kind",
    "episode_return",
    "eval_mean",
    "eval_std",
    "loss_obs",
    "loss_reward",
    "kl",
    "kl_clipped",
)
_BLUE, _ORANGE, _GREEN, _GREY = "#2f6fb5", "#e07b1a", "#2c8c5a", "#8a8f98"


def learning_curve(
    path: str | os.PathLike[str],
    metrics_path: str | os.PathLike[str],
    *,
    random_return: "float | Mapping[str, float] | None" = None,
    free_nats: float | None = None,
    title: str = "",
) -> None:
    """Draw the returns of training and evaluation, and below them the losses, as a PNG.

    Above: every training episode as a dot and their mean over the last 10 as a line, seed episodes in grey; every
    evaluation as its mean with one standard deviation over its episodes. Where the column `task` has several names,
    each task has a colour, with its evaluations and the mean of its last 10 training episodes. Below: observation loss,
    reward loss, and the KL as it is and as it is minimised.

    Args:
        path: where, ending in .png.
        metrics_path: a file by `MetricsWriter`, whose columns contain env_steps, kind ("seed", "train" or "eval"),
            episode_return, eval_mean, eval_std, loss_obs, loss_reward, kl and kl_clipped, and perhaps task. Empty cells
            are skipped.
        random_return: what a random policy earns, drawn as a line to beat; by task where there are several.
        free_nats: the level below which the KL is not minimised, drawn as a line.
        title: above the picture, such as the environment; of a long one the first 150 characters.

    Raises:
        ValueError: a column is missing, or `path` does not end in .png.
        ImportError: matplotlib is not installed; the message says how to get it.
    """
    check_text(path, title)
    check_levels(random_return, free_nats)
    check_path("metrics_path", metrics_path)
    rows = read_metrics(metrics_path)
    missing = [name for name in _NEEDED if name not in rows]
    if missing:
        raise ValueError(f"{metrics_path} must have the columns {', '.join(_NEEDED)}, it lacks {', '.join(missing)}")
    texts = [name for name in _NEEDED if name != "kind" and rows[name].dtype.kind != "f"]
    if texts:
        raise ValueError(f"{metrics_path} must hold numbers in the column {texts[0]}, got {rows[texts[0]][0]!r}")
    figure = require("matplotlib.figure", purpose="the learning curve").Figure(figsize=(11, 7.5), layout="constrained")
    # The Agg canvas is given to the figure instead of choosing a backend for the whole program.
    require("matplotlib.backends.backend_agg", purpose="the learning curve").FigureCanvasAgg(figure)
    above, below = figure.subfigures(2, 1, height_ratios=[1.5, 1.0])
    returns = above.subplots()
    tasks = list(dict.fromkeys(rows["task"].astype(str))) if "task" in rows else []
    if len(tasks) > 1:
        _draw_tasks(returns, rows, tasks, random_return if isinstance(random_return, Mapping) else {})
    else:
        if isinstance(random_return, Mapping):
            random_return = next(iter(random_return.values()), None)
        _draw_returns(returns, rows, random_return)
    if title:
        returns.set_title(_plain(title), fontsize=14, loc="left")
    panels = below.subplots(1, 3)
    _draw_losses(panels[0], rows, {"loss_obs": ("", _BLUE)}, "observation loss\n(½ squared error per frame)")
    _draw_losses(panels[1], rows, {"loss_reward": ("", _BLUE)}, "reward loss\n(½ squared error per step)")
    kl = {"kl": ("raw", _BLUE), "kl_clipped": ("minimised", _ORANGE)}
    _draw_losses(panels[2], rows, kl, "KL (nats per step)", level=free_nats)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def open_loop_curve(path: str | os.PathLike[str], errors: "Mapping[str, OpenLoopError]", *, title: str = "") -> None:
    """Draw the open-loop errors of models as a PNG: those of the image on the left, of the reward on the right.

    Each model is one line over the horizon, with its posterior's error, the lower limit, dotted in its colour. In grey
    are the predictors that know no dynamics, from the first entry: all are meant to be judged on the same episodes. A
    line far above them leaves the picture at ten times their error.

    Args:
        path: where, ending in .png.
        errors: what `open_loop_error` returned, by the model's name.
        title: above the picture, such as the environment; of a long one the first 150 characters.

    Raises:
        ValueError: no errors, or `path` does not end in .png.
        ImportError: matplotlib is not installed; the message says how to get it.
    """
    check_errors(errors)
    check_text(path, title)
    figure = require("matplotlib.figure", purpose="the curve").Figure(figsize=(12, 5.4), layout="constrained")
    # The Agg canvas is given to the figure instead of choosing a backend for the whole program.
    require("matplotlib.backends.backend_agg", purpose="the curve").FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for number, (model, error) in enumerate(errors.items()):
        name = _plain(model)
        for axes, ahead, limit in (
            (left, error.image, error.reconstruction),
            (right, error.reward, error.reward_reconstruction),
        ):
            axes.plot(error.horizon, ahead, color=f"C{number}", linewidth=2, label=f"{name}, imagined")
            axes.plot(error.horizon, limit, color=f"C{number}", linestyle=":", label=f"{name}, reconstructed")
    first = next(iter(errors.values()))
    for frames, style, name in ((first.last_frame, "--", "last frame seen"), (first.mean_frame, "-.", "mean frame")):
        left.plot(first.horizon, frames, color=_GREY, linestyle=style, label=name)
    right.axhline(first.reward_variance, color=_GREY, linestyle="-.", label="mean reward")
    _style_errors(left, "squared error per pixel (black to white: 1)", max(*first.last_frame, *first.mean_frame))
    _style_errors(right, "squared error of the reward", first.reward_variance)
    figure.suptitle(_plain(title), fontsize=14)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def running_mean(values: Column, window: int = 10) -> Column:
    """Return the mean over the last `window` values at each place, over fewer at the start.

    Example:
        >>> running_mean(np.array([1.0, 3.0, 5.0, 7.0]), window=2)
        array([1., 2., 4., 6.])
    """
    sums = np.cumsum(np.concatenate([np.zeros(1), values]))
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(end - window, 0)
    means: Column = (sums[end] - sums[begin]) / (end - begin)
    return means


def _plain(text: str) -> str:
    """The text, or the first of a long one; a dollar would begin a formula, which is an error where none ends."""
    short = " ".join(text.split()) if text.count("\n") > 2 else text
    return (short if len(short) <= LONGEST else f"{short[:LONGEST]} ...").replace("$", r"\$")


def _draw_returns(axes: "Axes", rows: dict[str, Column], random_return: float | None) -> None:
    steps, kind = rows["env_steps"], rows["kind"].astype(str)
    seed, train, evaluation = (
        np.isfinite(steps) & np.isfinite(rows[column]) & (kind == name)
        for name, column in (("seed", "episode_return"), ("train", "episode_return"), ("eval", "eval_mean"))
    )
    if random_return is not None:
        axes.axhline(random_return, color=_GREY, linestyle="--", label=f"random policy ({random_return:.4g})")
    if seed.any():
        axes.plot(steps[seed], rows["episode_return"][seed], ".", color=_GREY, markersize=8, label="seed episodes")
    if train.any():
        earned = rows["episode_return"][train]
        axes.plot(steps[train], earned, ".", color=_BLUE, alpha=0.35, markersize=8, label="training episodes")
        axes.plot(steps[train], running_mean(earned), color=_BLUE, linewidth=2, label="mean of the last 10")
    if evaluation.any():
        mean, spread = rows["eval_mean"][evaluation], np.nan_to_num(rows["eval_std"][evaluation])
        label = "evaluation (mean ± std)"
        axes.errorbar(
            steps[evaluation], mean, spread, color=_ORANGE, marker="o", linewidth=2, capsize=3, label=label, zorder=3
        )
    shown = np.concatenate([rows["episode_return"][seed | train], rows["eval_mean"][evaluation]])
    if len(shown) == 0:
        _say_empty(axes, "no episodes yet")
    elif shown.min() >= 0:
        axes.set_ylim(bottom=0)  # so that twice the return is twice as high
    _style(axes, "episode return")


def _draw_tasks(axes: "Axes", rows: dict[str, Column], tasks: list[str], random_return: Mapping[str, float]) -> None:
    """Draw evaluations, and the running mean of training, of each task in a colour of its own."""
    task, kind = rows["task"].astype(str), rows["kind"].astype(str)
    for number, name in enumerate(tasks):
        here = np.isfinite(rows["env_steps"]) & (task == name)
        train = here & (kind == "train") & np.isfinite(rows["episode_return"])
        evaluation = here & (kind == "eval") & np.isfinite(rows["eval_mean"])
        colour = f"C{number}"
        if name in random_return:
            axes.axhline(random_return[name], color=colour, linestyle="--", linewidth=1, alpha=0.7)
        if train.any():
            means = running_mean(rows["episode_return"][train])
            axes.plot(rows["env_steps"][train], means, color=colour, linewidth=1, alpha=0.6)
        mean, spread = rows["eval_mean"][evaluation], np.nan_to_num(rows["eval_std"][evaluation])
        steps, label = rows["env_steps"][evaluation], f"{_plain(name)}, evaluation (mean ± std)"
        axes.errorbar(steps, mean, spread, color=colour, marker="o", linewidth=2, capsize=3, label=label)
    axes.plot([], [], color=_GREY, linewidth=1, label="training, mean of the last 10")
    if random_return:
        axes.plot([], [], color=_GREY, linestyle="--", linewidth=1, label="random policy")
    _style(axes, "episode return")


def _draw_losses(
    axes: "Axes",
    rows: dict[str, Column],
    lines: dict[str, tuple[str, str]],
    label: str,
    *,
    level: float | None = None,
) -> None:
    drawn: list[Column] = []
    for column, (name, colour) in lines.items():
        here = np.isfinite(rows[column]) & np.isfinite(rows["env_steps"])
        if here.any():
            axes.plot(rows["env_steps"][here], rows[column][here], color=colour, linewidth=1.6, label=name or None)
            drawn.append(rows[column][here])
    if level is not None:
        axes.axhline(level, color=_GREEN, linestyle="--", label=f"free nats ({level:g})")
    if drawn:
        _spread_out(axes, np.concatenate(drawn))
    else:
        _say_empty(axes, "no updates yet")
    _style(axes, label)


def _spread_out(axes: "Axes", values: Column) -> None:
    """Use a logarithmic axis where the values span more than a decade, labelled with plain numbers."""
    if 0 < 10 * values.min() < values.max():
        ticker = require("matplotlib.ticker", purpose="the learning curve")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def _say_empty(axes: "Axes", text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_GREY)
    axes.set_xlim(right=1000)
    axes.set_yticks([])


def _style(axes: "Axes", label: str) -> None:
    axes.set_xlabel("environment steps")
    axes.set_ylabel(label)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(require("matplotlib.ticker", purpose="the learning curve").EngFormatter(sep=""))
    axes.grid(visible=True, color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", frameon=False, fontsize=9)


def _style_errors(axes: "Axes", label: str, worst: float) -> None:
    """Label the axes and end them at ten times the worst predictor's error; logarithmic where no error is zero."""
    axes.set_xlabel("steps imagined after the last frame seen")
    axes.set_ylabel(label)
    axes.margins(x=0.02)
    if min(float(np.min(line.get_ydata())) for line in axes.lines) > 0:
        axes.set_yscale("log")
    if worst > 0 and axes.get_ylim()[1] > 10 * worst:
        axes.set_ylim(top=10 * worst)
        for line in axes.lines:
            if float(np.min(line.get_ydata())) > 10 * worst:
                line.set_label(f"{line.get_label()} (above the picture)")
    axes.grid(visible=True, color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    # Below the axes, since lines may be anywhere in them.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False, fontsize=9)

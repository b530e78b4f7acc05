"""The objectives in plain NumPy, one row and one chain at a time: a second opinion, slow and obvious.

Written from the paper (arXiv:1811.04551, equations 3 and 7) and from planet_lib's documented conventions, not from its
code. Latent overshooting is brute force: a chain of its own from every row. States are nested lists, `states[t][b]`,
of whatever the given cell (one of `numpy_cells.py`) makes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
States = list[list[Any]]


class Window(NamedTuple):
    """T rows of B batch entries; obs [T, B, ...] floats, or a dictionary of such."""

    obs: Array | dict[str, Array]
    action: Array
    reward: Array
    is_first: Array
    terminated: Array
    mask: Array


class Heads(NamedTuple):
    """What is predicted from the features of one row."""

    obs: Callable[[Array], Array | dict[str, Array]]
    reward: Callable[[Array], float]
    goes_on: Callable[[Array], float] | None = None


class Terms(NamedTuple):
    total: float
    raw: dict[str, float]
    scaled: dict[str, float]


def squared_errors(predicted: Array | dict[str, Array], window: Window, t: int, b: int) -> dict[str, float]:
    """Half the squared error of what is seen at (t, b), summed over its numbers: one term, or one for each entry."""
    if isinstance(window.obs, dict):
        assert isinstance(predicted, dict)
        return {
            f"obs/{name}": float(((predicted[name] - seen[t, b]) ** 2).sum() / 2.0) for name, seen in window.obs.items()
        }
    return {"obs": float(((predicted - window.obs[t, b]) ** 2).sum() / 2.0)}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def obs_scale_of(name: str, obs_scale: float | Mapping[str, float]) -> float:
    return obs_scale if isinstance(obs_scale, int | float) else obs_scale[name.removeprefix("obs/")]


def elbo(
    cell: Any,
    heads: Heads,
    window: Window,
    priors: States,
    posteriors: States,
    *,
    free_nats: float = 3.0,
    obs_scale: float | Mapping[str, float] = 1.0,
    reward_scale: float = 1.0,
    kl_scale: float = 1.0,
    global_kl_scale: float = 0.0,
    continue_scale: float = 1.0,
) -> Terms:
    """Every term, a list of what each row costs; then means. KL balancing changes no value, so there is none here."""
    rows: dict[str, list[float]] = {"reward": [], "kl": [], "kl_clipped": []}
    for t, b in np.ndindex(*window.mask.shape):
        if not window.mask[t, b]:
            continue
        features = cell.features(posteriors[t][b])
        for name, error in squared_errors(heads.obs(features), window, t, b).items():
            rows.setdefault(name, []).append(error)
        if not window.is_first[t, b]:
            rows["reward"].append((heads.reward(features) - window.reward[t, b]) ** 2 / 2.0)
        nats = cell.divergence(posteriors[t][b], priors[t][b])
        rows["kl"].append(nats)
        rows["kl_clipped"].append(max(nats, free_nats))
        if global_kl_scale > 0.0:
            nats = cell.divergence_from_standard_normal(posteriors[t][b])
            rows.setdefault("global_kl", []).append(nats)
        if heads.goes_on is not None:
            logit = heads.goes_on(features)
            # -ln of the probability that what happened got: 1 / (1 + exp(-logit)) of going on.
            surprise = np.logaddexp(0.0, logit if window.terminated[t, b] else -logit)
            rows.setdefault("continue", []).append(float(surprise))
    raw = {name: mean(values) for name, values in rows.items()}
    scaled = {name: obs_scale_of(name, obs_scale) * raw[name] for name in raw if name.startswith("obs")}
    scaled |= {"reward": reward_scale * raw["reward"], "kl": kl_scale * raw["kl_clipped"]}
    if "global_kl" in raw:
        scaled["global_kl"] = global_kl_scale * raw["global_kl"]
    if "continue" in raw:
        scaled["continue"] = continue_scale * raw["continue"]
    return Terms(sum(scaled.values()), raw, scaled)


def overshooting(
    cell: Any,
    heads: Heads,
    window: Window,
    priors: States,
    posteriors: States,
    *,
    distance: int,
    noise: Array,
    free_nats: float = 3.0,
    kl_scale: float = 1.0,
    reward_scale: float = 0.0,
    obs_scale: float | Mapping[str, float] = 0.0,
    weights: Sequence[float] | None = None,
    redraw_first_step: bool = False,
    targets: States | None = None,
) -> Terms:
    """By brute force: one chain from every row, stepped until it meets a new episode, padding or the window's end.

    `noise` [distance, T, B, S] is read at [d - 1, row met, b]. The state at distance 1 is the prior of that row as it
    was drawn, unless redraw_first_step. `targets` are the posteriors as the KL sees them, if those are held fast.
    """
    targets = posteriors if targets is None else targets
    length, batch_size = window.mask.shape
    costs: dict[int, dict[str, list[float]]] = {d: {} for d in range(2, distance + 1)}
    for b in range(batch_size):
        for start in range(length):
            if not window.mask[start, b]:
                continue
            state = posteriors[start][b]
            for d in range(1, distance + 1):
                row = start + d
                if row >= length or window.is_first[row, b] or not window.mask[row, b]:
                    break
                if d == 1 and not redraw_first_step:
                    state = priors[row][b]
                else:
                    state = cell.prior(state, window.action[row, b], noise[d - 1, row, b])
                if d == 1:
                    continue
                nats = cell.divergence(targets[row][b], state)
                met = {"kl": nats, "kl_clipped": max(nats, free_nats)}
                features = cell.features(state)
                if reward_scale > 0.0:
                    met["reward"] = (heads.reward(features) - window.reward[row, b]) ** 2 / 2.0
                if not isinstance(obs_scale, int | float) or obs_scale > 0.0:
                    met |= squared_errors(heads.obs(features), window, row, b)
                for name, cost in met.items():
                    costs[d].setdefault(name, []).append(cost)
    raw: dict[str, float] = {"kl": 0.0, "kl_clipped": 0.0}
    for d in range(2, distance + 1):
        beta = 1.0 if weights is None else weights[d - 2]
        for name, values in costs[d].items():
            raw[name] = raw.get(name, 0.0) + beta * mean(values) / distance
    scaled = {"kl": kl_scale * raw["kl_clipped"]}
    if "reward" in raw:
        scaled["reward"] = reward_scale * raw["reward"]
    scaled |= {name: obs_scale_of(name, obs_scale) * raw[name] for name in raw if name.startswith("obs")}
    return Terms(sum(scaled.values()), raw, scaled)

"""The cells' equations in plain NumPy, one row at a time: a second opinion, slow and obvious.

Written from the paper (arXiv:1811.04551, section 3), from google-research/planet (models/rssm.py, models/ssm.py; its
GRU resets before the recurrent product) and from planet_lib's documented conventions, not from its code. It knows
planet_lib only by the names of the weights. Nothing is broadcast over time or batch: `t` and `b` are loops, a state is
one row, and a window's states are nested lists, `states[t][b]`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Row(NamedTuple):
    """The latent state of one batch entry at one time."""

    deter: Array
    stoch: Array
    mean: Array
    std: Array


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)  # ln(1 + exp(x))


def relu(x: Array) -> Array:
    return np.where(x > 0.0, x, 0.0)


def elu(x: Array) -> Array:
    return np.where(x > 0.0, x, np.exp(np.minimum(x, 0.0)) - 1.0)


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def gelu(x: Array) -> Array:
    return np.array([v * 0.5 * (1.0 + math.erf(v / math.sqrt(2.0))) for v in x])


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": relu,
    "elu": elu,
    "silu": silu,
    "gelu": gelu,
    "tanh": np.tanh,
}


class Weights:
    """Weights by name, which remember whether anybody asked for them."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = dict(arrays)
        self.unread = set(arrays)

    def __getitem__(self, name: str) -> Array:
        self.unread.discard(name)
        return self.arrays[name]

    def linear(self, name: str, x: Array) -> Array:
        return self[f"{name}.weight"] @ x + self[f"{name}.bias"]


class NumpyCell:
    """The three cells: "rssm", "ssm" and "rnn", with every setting."""

    def __init__(
        self,
        kind: str,
        weights: Mapping[str, Array],
        *,
        num_layers: int = 1,
        activation: str = "relu",
        min_std: float = 0.1,
        min_std_mode: str = "add",
        gru: str = "reset_after",
    ) -> None:
        self.kind, self.weights = kind, Weights(weights)
        self.num_layers, self.activation = num_layers, ACTIVATIONS[activation]
        self.min_std, self.min_std_mode, self.gru = min_std, min_std_mode, gru

    @property
    def stoch_dim(self) -> int:
        rows = len(self.weights["prior_head.out.bias"])
        return rows if self.kind == "rnn" else rows // 2

    def initial(self) -> Row:
        deter_dim = 0 if self.kind == "ssm" else self.weights["path.gru.weight_hh"].shape[1]
        nothing = np.zeros(self.stoch_dim)
        return Row(np.zeros(deter_dim), nothing, nothing, nothing)

    def layers(self, name: str, x: Array) -> Array:
        for i in range(self.num_layers):
            x = self.activation(self.weights.linear(f"{name}.layers.{i}", x))
        return x

    def advance(self, row: Row, action: Array) -> Array:
        """The GRU: r, u the reset and update gates, c the candidate; deter' = u deter + (1 - u) c."""
        x, h, size = self.layers("path", np.concatenate([row.stoch, action])), row.deter, len(row.deter)
        w_r, w_u, w_c = (self.weights["path.gru.weight_ih"][i * size : (i + 1) * size] for i in range(3))
        v_r, v_u, v_c = (self.weights["path.gru.weight_hh"][i * size : (i + 1) * size] for i in range(3))
        b_r, b_u, b_c = (self.weights["path.gru.bias_ih"][i * size : (i + 1) * size] for i in range(3))
        if self.gru == "reset_before":
            r = sigmoid(w_r @ x + v_r @ h + b_r)
            u = sigmoid(w_u @ x + v_u @ h + b_u)
            c = np.tanh(w_c @ x + v_c @ (r * h) + b_c)
        else:
            e_r, e_u, e_c = (self.weights["path.gru.bias_hh"][i * size : (i + 1) * size] for i in range(3))
            r = sigmoid(w_r @ x + b_r + v_r @ h + e_r)
            u = sigmoid(w_u @ x + b_u + v_u @ h + e_u)
            c = np.tanh(w_c @ x + b_c + r * (v_c @ h + e_c))
        return u * h + (1.0 - u) * c

    def drawn(self, head: str, deter: Array, x: Array, noise: Array) -> Row:
        out = self.weights.linear(f"{head}.out", self.layers(head, x))
        if self.kind == "rnn":
            return Row(deter, out, out, np.ones_like(out))
        mean, spread = out[: self.stoch_dim], softplus(out[self.stoch_dim :])
        std = spread + self.min_std if self.min_std_mode == "add" else np.maximum(spread, self.min_std)
        return Row(deter, mean + std * noise, mean, std)

    def prior(self, row: Row, action: Array, noise: Array) -> Row:
        if self.kind == "ssm":
            return self.drawn("prior_head", row.deter, np.concatenate([row.stoch, action]), noise)
        deter = self.advance(row, action)
        return self.drawn("prior_head", deter, deter, noise)

    def posterior(self, prior: Row, embed: Array, noise: Array) -> Row:
        known = [prior.mean, prior.std] if self.kind == "ssm" else [prior.deter]
        return self.drawn("posterior_head", prior.deter, np.concatenate([*known, embed]), noise)

    def features(self, row: Row) -> Array:
        return row.stoch if self.kind == "ssm" else np.concatenate([row.deter, row.stoch])

    def divergence(self, posterior: Row, prior: Row) -> float:
        if self.kind == "rnn":
            return float(sum((p - q) ** 2 / 2.0 for p, q in zip(posterior.mean, prior.mean, strict=True)))
        return kl(posterior, prior)

    def divergence_from_standard_normal(self, posterior: Row) -> float:
        nothing = np.zeros(self.stoch_dim)
        return self.divergence(posterior, Row(posterior.deter, nothing, nothing, np.ones(self.stoch_dim)))


def kl(left: Row, right: Row) -> float:
    """KL(left || right) in nats: the expectation under `left` of the difference of the log densities."""
    nats = 0.0
    for m, s, n, z in zip(left.mean, left.std, right.mean, right.std, strict=True):
        nats += np.log(z) - np.log(s) + (s**2 + (m - n) ** 2) / (2.0 * z**2) - 0.5
    return float(nats)


def observe(
    cell: NumpyCell,
    embed: Array,
    action: Array,
    is_first: Array,
    prior_noise: Array,
    posterior_noise: Array,
    initial: Sequence[Row] | None = None,
) -> tuple[list[list[Row]], list[list[Row]]]:
    length, batch_size = is_first.shape
    before = [cell.initial() for _ in range(batch_size)] if initial is None else list(initial)
    priors: list[list[Row]] = []
    posteriors: list[list[Row]] = []
    for t in range(length):
        priors.append([])
        posteriors.append([])
        for b in range(batch_size):
            if is_first[t, b]:
                prior = cell.prior(cell.initial(), np.zeros_like(action[t, b]), prior_noise[t, b])
            else:
                prior = cell.prior(before[b], action[t, b], prior_noise[t, b])
            priors[t].append(prior)
            posteriors[t].append(cell.posterior(prior, embed[t, b], posterior_noise[t, b]))
        before = posteriors[t]
    return priors, posteriors


def imagine(cell: NumpyCell, initial: Sequence[Row], action: Array, noise: Array) -> list[list[Row]]:
    states: list[list[Row]] = []
    before = list(initial)
    for t in range(len(action)):
        before = [cell.prior(before[b], action[t, b], noise[t, b]) for b in range(len(before))]
        states.append(before)
    return states


def mlp(weights: Mapping[str, Array], x: Array, activation: str = "relu") -> Array:
    """Linear layers `layers.0`, `layers.1`, ... with the activation between them and none at the end."""
    count = sum(name.endswith("weight") for name in weights)
    for i in range(count):
        x = weights[f"layers.{i}.weight"] @ x + weights[f"layers.{i}.bias"]
        if i < count - 1:
            x = ACTIVATIONS[activation](x)
    return x

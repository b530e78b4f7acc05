"""Latent overshooting against plain loops over start times, the drawn example, gradients, messages."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from planet_lib import (
    Batch,
    Losses,
    RewardHead,
    RNNCell,
    RSSMCell,
    SSMCell,
    State,
    WorldModel,
    latent_overshooting,
    observe,
)
from planet_lib.models.rollout import map_state

KINDS = ["rssm", "ssm", "rnn"]
T, B, A, E, S = 6, 2, 2, 4, 3
FAST = settings(max_examples=25, deadline=None)


def make(kind: str) -> WorldModel:
    torch.manual_seed(0)
    cell: RSSMCell | SSMCell | RNNCell
    if kind == "rssm":
        cell = RSSMCell(A, E, deter_dim=5, stoch_dim=S, hidden_dim=6)
    elif kind == "ssm":
        cell = SSMCell(A, E, stoch_dim=S, hidden_dim=6)
    else:
        cell = RNNCell(A, E, deter_dim=5, stoch_dim=S, hidden_dim=6)
    return WorldModel(nn.Identity(), cell, nn.Identity(), nn.Identity()).double()


class Case(NamedTuple):
    model: WorldModel
    batch: Batch
    prior: State
    posterior: State
    noise: Tensor


def case(kind: str, seed: int, *, distance: int, resets: float = 0.2, padding: float = 0.2) -> Case:
    model = make(kind)
    torch.manual_seed(seed)
    is_first = torch.rand(T, B) < resets
    mask = torch.rand(T, B) >= padding
    action = torch.randn(T, B, A, dtype=torch.float64)
    nothing = torch.zeros(T, B, dtype=torch.float64)
    batch = Batch(nothing, action, nothing, is_first, torch.zeros_like(is_first), mask)
    prior, posterior = observe(model.cell, torch.randn(T, B, E, dtype=torch.float64), action, is_first)
    return Case(model, batch, prior, posterior, torch.randn(distance, T, B, model.cell.noise_dim, dtype=torch.float64))


def brute_force(
    given_case: Case, *, distance: int, free_nats: float, weights: list[float], stop_start_gradient: bool
) -> Tensor:
    """The loss by plain loops: every start, every row, one step at a time."""
    model, batch, prior, posterior, noise = given_case
    cell, action = model.cell, batch.action
    terms: dict[int, list[Tensor]] = {d: [] for d in range(2, distance + 1)}
    for b in range(B):
        for start in range(T):
            if not batch.mask[start, b]:
                continue
            state = None
            for d in range(1, distance + 1):
                row = start + d
                if row >= T or batch.is_first[row, b] or not batch.mask[row, b]:
                    break
                if d > 1:
                    state = cell.prior(state, action[row, b][None], noise[d - 1, row, b][None])
                elif stop_start_gradient:
                    begin = State(*(field[start, b].detach()[None] for field in posterior))
                    state = cell.prior(begin, action[row, b][None], noise[0, row, b][None])
                else:
                    state = State(*(field[row, b][None] for field in prior))
                if d > 1:
                    target = State(*(field[row, b].detach()[None] for field in posterior))
                    terms[d].append(cell.divergence(target, state)[0].clamp(min=free_nats))
    total = torch.zeros((), dtype=torch.float64)
    for d, beta in zip(range(2, distance + 1), weights, strict=True):
        if terms[d]:
            total = total + beta * sum(terms[d]) / len(terms[d])
    return total / distance


@FAST
@given(
    st.sampled_from(KINDS),
    st.integers(0, 2**31),
    st.integers(1, T + 3),
    st.sampled_from([0.0, 0.5, 3.0]),
    st.booleans(),
    st.sampled_from([(0.0, 0.0), (0.25, 0.0), (0.25, 0.2), (0.0, 0.3)]),
)
def test_it_is_the_plain_loop_over_start_times(
    kind: str, seed: int, distance: int, free_nats: float, stop: bool, holes: tuple[float, float]
) -> None:
    drawn = case(kind, seed, distance=distance, resets=holes[0], padding=holes[1])
    weights = [0.5 + d for d in range(distance - 1)]
    expected = brute_force(drawn, distance=distance, free_nats=free_nats, weights=weights, stop_start_gradient=stop)
    model, batch, prior, posterior, noise = drawn
    got = latent_overshooting(
        model,
        batch,
        prior,
        posterior,
        distance=distance,
        free_nats=free_nats,
        weights=weights,
        stop_start_gradient=stop,
        noise=noise,
    ).total
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    if expected.requires_grad and got.requires_grad:
        leaves = list(model.parameters())
        pairs = (
            torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True) for loss in (got, expected)
        )
        torch.testing.assert_close(*pairs, rtol=1e-9, atol=1e-12)


def test_the_loops_reach_every_kind_of_case() -> None:
    drawn = case("ssm", 3, distance=4)
    settings_of = {"distance": 4, "free_nats": 0.0, "weights": [1.0] * 3}
    with_stop, without = (brute_force(drawn, stop_start_gradient=stop, **settings_of) for stop in (True, False))
    assert drawn.batch.is_first[1:].any()
    assert not drawn.batch.mask.all()
    assert 0 < with_stop != without > 0


class Counter(NamedTuple):
    start: Tensor
    row: Tensor


class DrawnCell(nn.Module):
    """A state is the row a chain started from and the row it has come to; one chosen target row costs one nat."""

    action_dim, feature_dim, noise_dim = 1, 1, 0

    def __init__(self, costly: int) -> None:
        super().__init__()
        self.costly = costly

    def prior(self, state: Counter, action: Tensor, noise: Tensor | None = None) -> Counter:
        return Counter(start=state.start, row=state.row + 1)

    def divergence(self, posterior: Counter, prior: Counter) -> Tensor:
        assert torch.equal(posterior.row, prior.row), "a prediction meets another row than its own"
        return (posterior.row == self.costly).double()


def targets(is_first: Tensor, mask: Tensor, *, distance: int, d: int) -> list[int]:
    """The rows that count at distance d, read off the loss: with one costly row it is 1 / (rows that count)."""
    length = len(is_first)
    row = torch.arange(length)[:, None]
    nothing = torch.zeros(length, 1, dtype=torch.float64)
    batch = Batch(nothing, nothing[..., None], nothing, is_first[:, None], is_first[:, None], mask[:, None])
    shares = []
    for costly in range(length):
        model = WorldModel(nn.Identity(), DrawnCell(costly), nn.Identity(), nn.Identity())
        loss = latent_overshooting(
            model,
            batch,
            Counter(start=row - 1, row=row),
            Counter(start=row, row=row),
            distance=distance,
            free_nats=0.0,
            weights=[float(other == d) for other in range(2, distance + 1)],
        ).total
        shares.append(loss.item() * distance)
    counted = [costly for costly, share in enumerate(shares) if share > 0]
    assert all(shares[costly] == pytest.approx(1 / len(counted)) for costly in counted)
    return counted


@pytest.mark.parametrize(("d", "expected"), [(2, "CDEFcde"), (3, "DEFde"), (4, "EFe")])
def test_the_drawn_example_of_two_episodes(d: int, expected: str) -> None:
    letters = "ABCDEFabcde"
    is_first = torch.tensor([letter in "Aa" for letter in letters])
    counted = targets(is_first, torch.ones(11, dtype=torch.bool), distance=4, d=d)
    assert "".join(letters[row] for row in counted) == expected


@pytest.mark.parametrize(("d", "expected"), [(2, "CDcd"), (3, "Dd"), (4, "")])
def test_padded_rows_are_neither_targets_nor_starts(d: int, expected: str) -> None:
    letters = "ABCD.?abcd."  # the first episode runs on at "?" after a padded row, so nothing can be predicted there
    is_first = torch.tensor([letter in "Aa" for letter in letters])
    mask = torch.tensor([letter != "." for letter in letters])
    counted = targets(is_first, mask, distance=4, d=d)
    assert "".join(letters[row] for row in counted) == expected


@pytest.mark.parametrize("d", [2, 3])
def test_a_window_that_begins_in_padding_starts_no_chain_there(d: int) -> None:
    mask = torch.tensor([False, True, True, True, True])
    assert targets(torch.zeros(5, dtype=torch.bool), mask, distance=3, d=d) == list(range(1 + d, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_distance_one_adds_exactly_nothing(kind: str) -> None:
    model, batch, prior, posterior, _ = case(kind, 0, distance=1)
    loss = latent_overshooting(model, batch, prior, posterior, distance=1, free_nats=3.0)
    for term in (loss.total, *loss.raw.values(), *loss.scaled.values()):
        assert term.item() == 0.0
        assert term.dtype == torch.float64


def test_a_distance_that_no_chain_reaches_adds_nothing_but_still_divides() -> None:
    model, batch, prior, posterior, noise = case("rssm", 1, distance=40, resets=0.0, padding=0.0)
    near, far = (
        latent_overshooting(model, batch, prior, posterior, distance=d, free_nats=0.0, noise=noise[:d])
        for d in (T - 1, 40)
    )
    torch.testing.assert_close(far.total * 40, near.total * (T - 1))
    assert near.total > 0


@pytest.mark.parametrize("stop", [False, True])
def test_a_window_of_one_row_adds_nothing(stop: bool) -> None:
    model, batch, prior, posterior, _ = case("rssm", 1, distance=3)
    first = (map_state(lambda field: field[:1], states) for states in (batch, prior, posterior))
    assert latent_overshooting(model, *first, distance=3, stop_start_gradient=stop).total.item() == 0.0


def test_free_nats_count_per_row_and_distance() -> None:
    model, batch, prior, posterior, noise = case("ssm", 2, distance=3, resets=0.0, padding=0.0)
    loss = latent_overshooting(model, batch, prior, posterior, distance=3, free_nats=1e6, noise=noise).total
    assert loss.item() == pytest.approx(2 * 1e6 / 3)
    grads = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in grads)


def test_a_weight_of_zero_drops_its_distance() -> None:
    model, batch, prior, posterior, noise = case("rssm", 4, distance=3, resets=0.0, padding=0.0)

    def loss(*weights: float) -> float:
        return latent_overshooting(
            model, batch, prior, posterior, distance=3, free_nats=0.0, weights=weights, noise=noise
        ).total.item()

    assert loss(2.0, 5.0) == pytest.approx(2 * loss(1.0, 0.0) + 5 * loss(0.0, 1.0))
    default = latent_overshooting(model, batch, prior, posterior, distance=3, free_nats=0.0, noise=noise)
    assert loss(1.0, 1.0) == pytest.approx(default.total.item())


def leaf_case(kind: str) -> tuple[WorldModel, Batch, State, State, Tensor]:
    """Posteriors as leaves, and the priors one step ahead of them, as `observe` makes them."""
    model, batch, _, posterior, noise = case(kind, 5, distance=3, resets=0.0, padding=0.0)
    posterior = map_state(lambda field: field.detach().requires_grad_(), posterior)
    start = map_state(lambda field: field[:-1], posterior)
    ahead = model.cell.prior(start, batch.action[1:], noise[0, 1:])
    prior = map_state(lambda field: torch.cat([torch.zeros_like(field[:1]), field]), ahead)
    return model, batch, prior, posterior, noise


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [False, True])
def test_start_states_keep_their_gradient_unless_it_is_stopped(kind: str, stop: bool) -> None:
    model, batch, prior, posterior, noise = leaf_case(kind)
    loss = latent_overshooting(
        model, batch, prior, posterior, distance=3, free_nats=0.0, stop_start_gradient=stop, noise=noise
    ).total
    grads = State(*torch.autograd.grad(loss, list(posterior), materialize_grads=True, retain_graph=True))
    starts = grads.stoch[: T - 2].abs().sum(-1)
    assert (starts == 0).all() if stop else (starts > 0).all()
    for field in grads:
        assert torch.equal(field[-2:], torch.zeros_like(field[-2:])), "these rows are targets only"
    for field in (grads.mean, grads.std):
        assert torch.equal(field, torch.zeros_like(field)), "targets are read by mean and std: no gradient"
    head = torch.autograd.grad(loss, list(model.cell.prior_head.parameters()))
    assert all(grad.abs().sum() > 0 for grad in head)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_reaches_the_targets(kind: str) -> None:
    model, batch, prior, posterior, noise = leaf_case(kind)
    detached = map_state(Tensor.detach, prior)
    loss = latent_overshooting(model, batch, detached, posterior, distance=3, free_nats=0.0, noise=noise).total
    assert all(grad is None for grad in torch.autograd.grad(loss, list(posterior), allow_unused=True))


@pytest.mark.parametrize("kind", KINDS)
def test_stopping_the_gradient_leaves_the_value(kind: str) -> None:
    model, batch, prior, posterior, noise = leaf_case(kind)
    kept, stopped = (
        latent_overshooting(
            model, batch, prior, posterior, distance=3, free_nats=0.0, stop_start_gradient=stop, noise=noise
        )
        for stop in (False, True)
    )
    torch.testing.assert_close(kept, stopped)


def test_what_stands_in_padded_rows_never_matters_not_even_to_the_gradient() -> None:
    model, batch, prior, posterior, noise = case("rssm", 6, distance=4)
    padded = ~batch.mask
    assert padded[1:-1].any()

    def run(batch: Batch, prior: State, posterior: State, noise: Tensor) -> tuple[Tensor, ...]:
        loss = latent_overshooting(model, batch, prior, posterior, distance=4, free_nats=0.1, noise=noise).total
        leaves = list(model.cell.parameters())
        return loss, *torch.autograd.grad(loss, leaves, materialize_grads=True, retain_graph=True)

    def spoil(field: Tensor) -> Tensor:
        return field.masked_fill(padded.reshape(T, B, *[1] * (field.ndim - 2)), 1e3)

    spoiled = batch._replace(action=spoil(batch.action), is_first=batch.is_first ^ padded)
    noise_spoiled = torch.stack([spoil(rows) for rows in noise])
    expected = run(batch, prior, posterior, noise)
    got = run(spoiled, map_state(spoil, prior), map_state(spoil, posterior), noise_spoiled)
    torch.testing.assert_close(got, expected)
    assert expected[0] > 0


@pytest.mark.parametrize("kind", ["rssm", "ssm"])
def test_without_noise_the_global_seed_decides(kind: str) -> None:
    model, batch, prior, posterior, _ = case(kind, 7, distance=3, resets=0.0, padding=0.0)

    def run(seed: int) -> float:
        torch.manual_seed(seed)
        return latent_overshooting(model, batch, prior, posterior, distance=3, free_nats=0.0).total.item()

    assert run(1) == run(1) != run(2)


@pytest.mark.parametrize(("kind", "stop"), [("rssm", False), ("rssm", True), ("ssm", False), ("rnn", True)])
def test_it_compiles_whole_and_gives_the_same(kind: str, stop: bool) -> None:
    model, batch, _, _, noise = case(kind, 8, distance=3)
    embed = torch.randn(T, B, E, dtype=torch.float64)

    def run() -> Tensor:
        states = observe(
            model.cell, embed, batch.action, batch.is_first, prior_noise=noise[0], posterior_noise=noise[1]
        )
        return latent_overshooting(
            model, batch, *states, distance=3, free_nats=0.5, stop_start_gradient=stop, noise=noise
        ).total

    torch._dynamo.reset()
    got, expected = torch.compile(run, fullgraph=True, backend="eager")(), run()
    torch.testing.assert_close(got, expected)
    leaves = list(model.parameters())
    grads = [torch.autograd.grad(loss, leaves, materialize_grads=True) for loss in (got, expected)]
    torch.testing.assert_close(*grads)


def test_wrong_input_is_named() -> None:
    model, batch, prior, posterior, noise = case("rssm", 0, distance=3)

    def run(**change: object) -> Losses:
        arguments = {"batch": batch, "prior": prior, "posterior": posterior, "distance": 3, **change}
        return latent_overshooting(model, **arguments)

    short = map_state(lambda field: field[1:], prior)
    cases: list[tuple[dict[str, object], str]] = [
        ({"distance": 0}, "distance must be a whole number of at least 1, got 0"),
        ({"free_nats": -0.5}, "free_nats must be at least 0, got -0.5"),
        ({"free_nats": float("nan")}, "free_nats must be at least 0, got nan"),
        ({"weights": [1.0]}, "weights must be 2 numbers, for distances 2 to 3, got 1"),
        (
            {"noise": noise[1:]},
            r"noise must be \[D, T, B, S\] with D=3, T=6, B=2, S=3, got \[2, 6, 2, 3\]",
        ),
        (
            {"batch": batch._replace(action=batch.action[1:])},
            r"batch.action must be \[T, B, A\] with T=6, B=2 \(from batch.mask\), got \[5, 2, 2\]",
        ),
        (
            {"batch": batch._replace(is_first=batch.is_first[1:])},
            r"batch.is_first must be \[T, B\] with T=6, B=2 \(from batch.mask\), got \[5, 2\]",
        ),
        ({"batch": batch._replace(mask=batch.mask[0])}, r"batch.mask must be \[T, B\], got \[2\]"),
        ({"prior": short}, r"prior must have fields \[6, 2, \.\.\.\] \(from batch.mask\), got one of \[5, 2, 5\]"),
        ({"posterior": short}, r"posterior must have fields \[6, 2, \.\.\.\] \(from batch.mask\), got one of"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            run(**change)


def test_flags_that_are_not_bool_and_a_divergence_of_another_shape_are_named() -> None:
    model, batch, prior, posterior, _ = case("ssm", 0, distance=3)
    for name in ("mask", "is_first"):
        wrong = batch._replace(**{name: getattr(batch, name).byte()})
        with pytest.raises(TypeError, match=rf"batch.{name} must be bool, got torch.uint8; convert it with"):
            latent_overshooting(model, wrong, prior, posterior, distance=3)
    model.cell.divergence = lambda posterior, prior: posterior.mean.sum()
    message = r"the cell's divergence must be \[T, B\] with T=4, B=2 \(from batch.mask\), got \[\]"
    with pytest.raises(ValueError, match=message):
        latent_overshooting(model, batch, prior, posterior, distance=3)


class Sum(NamedTuple):
    value: Tensor


class AddingCell(nn.Module):
    """A state is a number, to which each action is added."""

    action_dim, feature_dim, noise_dim = 1, 1, 0

    def prior(self, state: Sum, action: Tensor, noise: Tensor | None = None) -> Sum:
        return Sum(state.value + action)

    def features(self, state: Sum) -> Tensor:
        return state.value

    def divergence(self, posterior: Sum, prior: Sum) -> Tensor:
        return 0.5 * (posterior.value - prior.value).square().sum(-1)


class OfFeatures(nn.Module):
    """Applies a function to the features."""

    def __init__(self, function: Callable[[Tensor], Tensor | dict[str, Tensor]]) -> None:
        super().__init__()
        self.function = function

    def forward(self, features: Tensor) -> Tensor | dict[str, Tensor]:
        return self.function(features)


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64).reshape(-1, 1, 1)


def adding(
    decoder: Callable[[Tensor], Tensor | dict[str, Tensor]] = lambda features: 2 * features, *, first: int | None = None
) -> tuple[WorldModel, Batch, Sum, Sum]:
    """Four rows. The chains say 2.5 and 5 for rows 2 and 3 at distance 2, and 4.5 for row 3 at distance 3."""
    model = WorldModel(nn.Identity(), AddingCell(), OfFeatures(decoder), OfFeatures(lambda features: features[..., 0]))
    action, seen = column(0, 0.5, 1, 2), column(1, 2, 4, 7)
    is_first = torch.arange(4)[:, None] == (-1 if first is None else first)
    reward = column(9, 9, 2, 3)[..., 0]
    batch = Batch(seen, action, reward, is_first, torch.zeros_like(is_first), torch.ones_like(is_first))
    prior = Sum(torch.cat([column(0), seen[:-1] + action[1:]]))
    return model, batch, prior, Sum(seen)


def test_rewards_and_observations_of_open_loop_states_by_hand() -> None:
    losses = latent_overshooting(
        *adding(),
        distance=3,
        obs=column(0, 0, 4, 8),
        free_nats=2.0,
        kl_scale=0.5,
        reward_scale=10.0,
        obs_scale=0.1,
        weights=[1.0, 4.0],
    )
    kl = [(1.5**2 + 2**2) / 4, 2.5**2 / 2]
    clipped = [(2 + 2) / 2, 2.5**2 / 2]
    reward = [(0.5**2 + 2**2) / 4, 1.5**2 / 2]
    obs = [(1**2 + 2**2) / 4, 1**2 / 2]
    expected = {
        name: (near + 4 * far) / 3
        for name, (near, far) in {"kl": kl, "kl_clipped": clipped, "reward": reward, "obs": obs}.items()
    }
    assert {name: term.item() for name, term in losses.raw.items()} == pytest.approx(expected)
    scaled = {"kl": 0.5 * expected["kl_clipped"], "reward": 10 * expected["reward"], "obs": 0.1 * expected["obs"]}
    assert {name: term.item() for name, term in losses.scaled.items()} == pytest.approx(scaled)
    assert losses.total.item() == pytest.approx(sum(scaled.values()))


def test_no_reward_is_predicted_across_an_episodes_start() -> None:
    model, batch, prior, posterior = adding(first=3)
    batch = batch._replace(reward=batch.reward.masked_fill(batch.is_first, float("nan")))
    terms = {"obs": column(0, 0, 4, 1e9), "obs_scale": 1.0, "reward_scale": 1.0}
    losses = latent_overshooting(model, batch, prior, posterior, distance=3, free_nats=0.0, **terms)
    expected = {"kl": 1.5**2 / 6, "kl_clipped": 1.5**2 / 6, "reward": 0.5**2 / 6, "obs": 1 / 6}
    assert {name: term.item() for name, term in losses.raw.items()} == pytest.approx(expected)


def test_terms_without_a_scale_are_left_out_and_a_kl_without_one_is_a_figure() -> None:
    plain = latent_overshooting(*adding(), distance=3, obs=column(0, 0, 4, 8))
    assert [*plain.raw] == ["kl", "kl_clipped"]
    figure = latent_overshooting(*adding(), distance=3, kl_scale=0.0, reward_scale=1.0)
    assert figure.raw["kl"] == plain.raw["kl"] > 0
    assert figure.total == figure.raw["reward"] > 0


def test_each_entry_of_a_dictionary_has_its_own_term_and_one_without_a_scale_has_none() -> None:
    obs = {"double": column(0, 0, 4, 8), "triple": column(0, 0, 7, 14)}

    def decode(features: Tensor) -> dict[str, Tensor]:
        return {"double": 2 * features, "triple": 3 * features}

    double = ((1**2 + 2**2) / 4 + 1**2 / 2) / 3
    triple = ((0.5**2 + 1**2) / 4 + 0.5**2 / 2) / 3
    both = latent_overshooting(*adding(decode), distance=3, obs=obs, obs_scale=2.0)
    assert both.raw["obs/double"].item() == pytest.approx(double)
    assert both.raw["obs/triple"].item() == pytest.approx(triple)
    assert both.scaled["obs/triple"].item() == pytest.approx(2 * triple)
    one = latent_overshooting(*adding(decode), distance=3, obs=obs, obs_scale={"double": 0.0, "triple": 3.0})
    assert {*one.raw} == {"kl", "kl_clipped", "obs/triple"}
    assert one.scaled["obs/triple"].item() == pytest.approx(3 * triple)


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_rewards_and_observations_train_the_heads_and_the_states_before_them(chunk_size: int | None) -> None:
    model, batch, prior, posterior = adding()
    start = prior.value.requires_grad_()
    terms = {"obs": column(0, 0, 4, 8), "obs_scale": 1.0, "reward_scale": 1.0, "kl_scale": 0.0}
    loss = latent_overshooting(model, batch, prior, posterior, distance=3, chunk_size=chunk_size, **terms).total
    (grad,) = torch.autograd.grad(loss, [start])
    # Row 1 leads to 2.5 (error 0.5, decoded 1) and 4.5 (1.5 and 1), row 2 to 5 (2 and 2); decoding doubles the slope.
    by_hand = [0, ((0.5 + 2 * 1) / 2 + (1.5 + 2 * 1)) / 3, ((2 + 2 * 2) / 2) / 3, 0]
    assert grad.flatten().tolist() == pytest.approx(by_hand)


def test_wrong_settings_of_the_other_terms_are_named() -> None:
    case_of = adding()
    cases: list[tuple[dict[str, object], str]] = [
        ({"chunk_size": 0}, "chunk_size must be a whole number of at least 1, got 0"),
        ({"reward_scale": -1.0}, "reward_scale must be finite and at least 0, got -1.0"),
        ({"kl_scale": -1.0}, "kl_scale must be finite and at least 0, got -1.0"),
        ({"obs_scale": {"a": -1.0}}, r"obs_scale\['a'\] must be finite and at least 0, got -1.0"),
        ({"obs_scale": 1.0}, "obs must be given where obs_scale is greater than 0: the floats that the encoder saw"),
        ({"obs_scale": 1.0, "obs": column(1, 2, 3)}, r"obs must have fields \[4, 1, ...\] .*got one of \[3, 1, 1\]"),
        ({"obs_scale": {"a": 1.0}, "obs": column(1, 2, 3, 4)}, "obs_scale must be a number, or name every entry"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            latent_overshooting(*case_of, distance=3, **change)
    with pytest.raises(TypeError, match=r"obs must be the floats that the encoder saw, got torch.uint8"):
        latent_overshooting(*case_of, distance=3, obs=column(0, 0, 4, 8).byte(), obs_scale=1.0)


@pytest.mark.parametrize("cell_class", [RSSMCell, SSMCell, RNNCell])
def test_a_nan_action_at_the_first_row_of_an_episode_counts_as_zero_in_the_gradient_too(cell_class: type) -> None:
    torch.manual_seed(0)
    cell = cell_class(action_dim=2, embed_dim=3, stoch_dim=2, hidden_dim=4)
    model = WorldModel(nn.Identity(), cell, nn.Identity(), RewardHead(cell.feature_dim, hidden_dim=4))
    flags = torch.zeros(6, 2, dtype=torch.bool)
    is_first = flags.clone()
    is_first[3, 0] = True
    action = torch.rand(6, 2, 2)
    action[3, 0] = float("nan")
    batch = Batch(torch.rand(6, 2, 3), action, torch.rand(6, 2), is_first, flags, ~flags)
    prior, posterior = observe(cell, batch.obs, batch.action, batch.is_first)
    losses = latent_overshooting(model, batch, prior, posterior, distance=4, free_nats=0.0, reward_scale=1.0)
    gradients = torch.autograd.grad(losses.total, list(cell.parameters()), materialize_grads=True)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_a_reward_head_of_another_shape_is_named() -> None:
    cell = RNNCell(action_dim=2, embed_dim=3, stoch_dim=2, hidden_dim=4)
    model = WorldModel(nn.Identity(), cell, nn.Identity(), nn.Linear(cell.feature_dim, 1))
    flags = torch.zeros(4, 1, dtype=torch.bool)
    batch = Batch(torch.rand(4, 1, 3), torch.rand(4, 1, 2), torch.rand(4, 1), flags, flags, ~flags)
    states = observe(cell, batch.obs, batch.action, batch.is_first)
    with pytest.raises(ValueError, match=r"the reward head's output must be \[T, B\] .*got \[2, 1, 1\]"):
        latent_overshooting(model, batch, *states, distance=2, reward_scale=1.0)


def test_a_distance_far_beyond_the_window_costs_nothing_and_is_divided_by() -> None:
    model, batch, prior, posterior, _ = case("rnn", 0, distance=T)
    near = latent_overshooting(model, batch, prior, posterior, distance=T)
    far = latent_overshooting(model, batch, prior, posterior, distance=2**31 - 1)
    torch.testing.assert_close(far.total * (2**31 - 1), near.total * T)


def test_arguments_of_another_kind_are_named() -> None:
    model, batch, prior, posterior, noise = case("ssm", 0, distance=3)
    cases: list[tuple[dict[str, object], type[Exception], str]] = [
        ({"model": None}, TypeError, "model must be a WorldModel, got NoneType without cell, decoder"),
        ({"batch": tuple(batch)}, TypeError, "batch must be a planet_lib.Batch, got tuple"),
        ({"batch": batch._replace(reward=batch.mask)}, TypeError, "batch.reward must be floating, got torch.bool"),
        ({"batch": batch._replace(action=batch.action.float())}, TypeError, r"batch.action must be torch.float64 \(as"),
        ({"prior": tuple(prior)}, TypeError, "prior must be the cell's State, got tuple"),
        ({"posterior": posterior._replace(std=None)}, TypeError, "posterior.std must be a tensor, got NoneType"),
        ({"prior": prior._replace(std=prior.std[..., :1])}, ValueError, r"prior.std must be \[6, 2, .*got \[6, 2, 1\]"),
        ({"weights": "ab"}, TypeError, "weights must be a list of 2 numbers, got 'ab'"),
        ({"stop_start_gradient": "no"}, TypeError, "stop_start_gradient must be True or False, got 'no'"),
        ({"noise": noise.to("meta")}, ValueError, "noise must be on cpu .as batch.mask., got a tensor on meta"),
        ({"distance": True}, ValueError, "distance must be a whole number of at least 1, got True"),
        ({"free_nats": "3"}, ValueError, "free_nats must be at least 0, got '3'"),
        ({"free_nats": 1e40}, ValueError, r"free_nats must be at most 1e\+30, got 1e\+40"),
    ]
    arguments = {"model": model, "batch": batch, "prior": prior, "posterior": posterior, "distance": 3}
    for change, kind, message in cases:
        with pytest.raises(kind, match=message):
            latent_overshooting(**(arguments | change))

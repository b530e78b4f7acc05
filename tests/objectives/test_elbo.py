"""The ELBO: numbers by hand, what must not count, messages."""

import math

import pytest
import torch
from torch import Tensor, nn

from planet_lib import (
    Batch,
    ContinueHead,
    Decoder,
    Losses,
    RewardHead,
    RSSMCell,
    SSMCell,
    State,
    VectorEncoder,
    WorldModel,
    elbo_loss,
    observe,
)
from planet_lib.objectives._terms import masked_mean


class FirstFeature(nn.Module):
    """A reward head that predicts the first feature."""

    def forward(self, features: Tensor) -> Tensor:
        return features[..., 0]


def by_hand() -> tuple[WorldModel, Batch, Tensor, State, State]:
    """Two rows whose every term is worked out in the test below; features are the samples, decoded as they are."""
    model = WorldModel(nn.Identity(), SSMCell(1, 2, stoch_dim=2), nn.Identity(), FirstFeature())
    one, none = torch.ones(2, 1, 2), torch.zeros(2, 1, 0)
    stoch = torch.tensor([[[1.0, 2.0]], [[0.0, -1.0]]])
    posterior = State(none, stoch, mean=torch.tensor([[[1.0, 0.0]], [[2.0, 2.0]]]), std=one)
    prior = State(none, stoch + 100, mean=torch.zeros(2, 1, 2), std=one)
    obs = torch.tensor([[[0.0, 0.0]], [[0.0, 1.0]]])
    is_first = torch.tensor([[True], [False]])
    batch = Batch(
        obs=obs,
        action=torch.zeros(2, 1, 1),
        reward=torch.tensor([[50.0], [3.0]]),
        is_first=is_first,
        terminated=torch.zeros_like(is_first),
        mask=torch.ones_like(is_first),
    )
    return model, batch, obs, prior, posterior


def test_every_term_by_hand() -> None:
    losses = elbo_loss(*by_hand(), free_nats=3.0)
    assert losses.raw["obs"].item() == ((1 + 4) / 2 + (0 + 4) / 2) / 2
    assert losses.raw["reward"].item() == (0 - 3) ** 2 / 2, "the reward of row 0, which is first, is left out"
    assert losses.raw["kl"].item() == ((1 + 0) / 2 + (4 + 4) / 2) / 2
    assert losses.raw["kl_clipped"].item() == (3 + 4) / 2, "free nats count row by row, before the mean"
    assert losses.total.item() == 2.25 + 4.5 + 3.5
    assert [*losses.raw] == ["obs", "reward", "kl", "kl_clipped"]
    assert {name: term.item() for name, term in losses.scaled.items()} == {"obs": 2.25, "reward": 4.5, "kl": 3.5}
    assert all(term.shape == () for term in (losses.total, *losses.raw.values(), *losses.scaled.values()))


def test_scales_weigh_the_total_and_nothing_else() -> None:
    plain = elbo_loss(*by_hand(), free_nats=3.0)
    scaled = elbo_loss(*by_hand(), free_nats=3.0, obs_scale=2.0, reward_scale=10.0, kl_scale=0.5)
    assert scaled.total.item() == 2 * 2.25 + 10 * 4.5 + 0.5 * 3.5
    assert scaled.raw == plain.raw
    assert {name: term.item() for name, term in scaled.scaled.items()} == {"obs": 4.5, "reward": 45.0, "kl": 1.75}


def test_without_free_nats_the_clipped_kl_is_the_kl() -> None:
    losses = elbo_loss(*by_hand(), free_nats=0.0)
    assert losses.raw["kl_clipped"].item() == losses.raw["kl"].item() == 2.25


def numbers(losses: Losses) -> list[float]:
    """The total, then the unscaled terms."""
    return [term.item() for term in (losses.total, *losses.raw.values())]


def test_padded_rows_do_not_count() -> None:
    model, batch, obs, prior, posterior = by_hand()
    first_only = batch._replace(mask=torch.tensor([[True], [False]]))
    losses = elbo_loss(model, first_only, obs, prior, posterior, free_nats=3.0)
    assert numbers(losses) == [5.5, 2.5, 0.0, 0.5, 3.0]
    second_only = batch._replace(mask=torch.tensor([[False], [True]]))
    losses = elbo_loss(model, second_only, obs, prior, posterior, free_nats=3.0)
    assert numbers(losses) == [10.5, 2.0, 4.5, 4.0, 4.0]
    nothing = batch._replace(mask=torch.tensor([[False], [False]]))
    losses = elbo_loss(model, nothing, obs, prior, posterior, free_nats=3.0)
    assert numbers(losses) == [0.0] * 5


def real(seed: int = 0) -> tuple[WorldModel, Batch, Tensor, Tensor]:
    """A small model, a batch of padded windows, and the noise to replay it with."""
    torch.manual_seed(seed)
    length, batch_size = 6, 3
    encoder, cell = VectorEncoder(4, embed_dim=8), RSSMCell(2, 8, deter_dim=6, stoch_dim=3, hidden_dim=7)
    model = WorldModel(encoder, cell, Decoder(9, (4,), hidden_dim=8), RewardHead(9, hidden_dim=8)).double()
    is_first = torch.zeros(length, batch_size, dtype=torch.bool)
    is_first[0] = True
    is_first[3, 1] = True
    mask = torch.ones_like(is_first)
    mask[4:, 0] = False
    mask[2:, 2] = False

    def draw(*sizes: int) -> Tensor:
        return torch.randn(length, batch_size, *sizes, dtype=torch.float64)

    batch = Batch(draw(4), draw(2), draw(), is_first, torch.zeros_like(is_first), mask)
    return model, batch, draw(3), draw(3)


def run(model: WorldModel, batch: Batch, prior_noise: Tensor, posterior_noise: Tensor, **settings: float) -> Losses:
    prior, posterior = observe(
        model.cell,
        model.encoder(batch.obs),
        batch.action,
        batch.is_first,
        prior_noise=prior_noise,
        posterior_noise=posterior_noise,
    )
    return elbo_loss(model, batch, batch.obs, prior, posterior, **settings)


def gradients(model: WorldModel, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True))


@torch.no_grad()
def test_a_window_is_worth_the_mean_of_its_valid_rows() -> None:
    model, batch, *noise = real()
    losses = run(model, batch, *noise, free_nats=1.0)
    prior, posterior = observe(
        model.cell,
        model.encoder(batch.obs),
        batch.action,
        batch.is_first,
        prior_noise=noise[0],
        posterior_noise=noise[1],
    )
    obs, reward, kl, clipped = [], [], [], []
    for t in range(6):
        for b in range(3):
            if not batch.mask[t, b]:
                continue
            features = torch.cat([posterior.deter[t, b], posterior.stoch[t, b]])
            obs.append(0.5 * float((model.decoder(features) - batch.obs[t, b]).square().sum()))
            if not batch.is_first[t, b]:
                reward.append(0.5 * float((model.reward_head(features) - batch.reward[t, b]) ** 2))
            p, q = (torch.distributions.Normal(state.mean[t, b], state.std[t, b]) for state in (posterior, prior))
            kl.append(float(torch.distributions.kl_divergence(p, q).sum()))
            clipped.append(max(kl[-1], 1.0))
    expected = [sum(terms) / len(terms) for terms in (obs, reward, kl, clipped)]
    assert [term.item() for term in losses.raw.values()] == pytest.approx(expected)
    assert losses.total.item() == pytest.approx(expected[0] + expected[1] + expected[3])


def test_what_stands_in_padded_rows_never_matters_not_even_to_the_gradient() -> None:
    model, batch, *noise = real()
    losses = run(model, batch, *noise)
    padded = ~batch.mask
    garbage = batch._replace(
        obs=batch.obs.masked_fill(padded[..., None], 1e6),
        action=batch.action.masked_fill(padded[..., None], -1e6),
        reward=batch.reward.masked_fill(padded, 1e30),
        is_first=batch.is_first ^ padded,
    )
    other = run(model, garbage, *noise)
    torch.testing.assert_close(other, losses)
    torch.testing.assert_close(gradients(model, other.total), gradients(model, losses.total))


def test_even_nan_in_padded_rows_leaves_the_value() -> None:
    model, batch, *noise = real()
    losses = run(model, batch, *noise)
    nan = batch._replace(
        obs=batch.obs.masked_fill(~batch.mask[..., None], float("nan")),
        reward=batch.reward.masked_fill(~batch.mask, float("nan")),
    )
    torch.testing.assert_close(run(model, nan, *noise), losses)


def test_a_reward_at_an_episodes_start_never_matters() -> None:
    model, batch, *noise = real()
    losses = run(model, batch, *noise)
    moved = batch._replace(reward=batch.reward.masked_fill(batch.is_first, 1e9))
    assert run(model, moved, *noise) == losses


def test_below_the_free_nats_the_kl_has_no_gradient_and_above_it_has() -> None:
    model, batch, *noise = real()
    kl = run(model, batch, *noise).raw["kl"].item()
    below = run(model, batch, *noise, free_nats=100 * kl)
    assert below.raw["kl_clipped"].item() == pytest.approx(100 * kl)
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in gradients(model, below.raw["kl_clipped"]))
    above = run(model, batch, *noise, free_nats=0.0)
    prior_head = dict(zip(dict(model.named_parameters()), gradients(model, above.raw["kl_clipped"]), strict=True))
    assert prior_head["cell.prior_head.out.weight"].abs().sum() > 0
    assert prior_head["cell.posterior_head.out.weight"].abs().sum() > 0


def test_every_parameter_is_trained() -> None:
    model, batch, *noise = real()
    total = run(model, batch, *noise, free_nats=0.0).total
    for (name, _), grad in zip(model.named_parameters(), gradients(model, total), strict=True):
        assert grad.abs().sum() > 0, name


def test_it_compiles_whole_and_gives_the_same() -> None:
    model, batch, *noise = real()
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    got = compiled(model, batch, *noise, free_nats=1.0, reward_scale=10.0)
    expected = run(model, batch, *noise, free_nats=1.0, reward_scale=10.0)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradients(model, got.total), gradients(model, expected.total))


def test_the_masked_mean_of_nothing_is_zero() -> None:
    nan = torch.full((3,), float("nan"))
    assert masked_mean(nan, torch.zeros(3, dtype=torch.bool)).item() == 0.0
    assert masked_mean(torch.tensor([1.0, 5.0, 9.0]), torch.tensor([True, False, True])).item() == 5.0


class OneColumn(nn.Module):
    """A reward head that forgot to drop its last axis."""

    def forward(self, features: Tensor) -> Tensor:
        return features[..., :1]


def test_wrong_input_is_named() -> None:
    model, batch, obs, prior, posterior = by_hand()
    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=f"free_nats must be at least 0, got {bad}"):
            elbo_loss(model, batch, obs, prior, posterior, free_nats=bad)
    with pytest.raises(ValueError, match=r"obs must be \[2, 1, 2\] \(what the decoder predicts\), got \[2, 1, 3\]"):
        elbo_loss(model, batch, torch.zeros(2, 1, 3), prior, posterior)
    for name in ("reward", "is_first"):
        wrong = batch._replace(**{name: getattr(batch, name)[..., None]})
        message = rf"batch.{name} must be \[T, B\] with T=2, B=1 \(from batch.mask\), got \[2, 1, 1\]"
        with pytest.raises(ValueError, match=message):
            elbo_loss(model, wrong, obs, prior, posterior)
    with pytest.raises(ValueError, match=r"batch.mask must be \[T, B\], got \[2\]"):
        elbo_loss(model, batch._replace(mask=batch.mask[:, 0]), obs, prior, posterior)
    for name in ("prior", "posterior"):
        states = {"prior": prior, "posterior": posterior}
        states[name] = State(*(field[:1] for field in states[name]))
        message = rf"{name} must have fields \[2, 1, \.\.\.\] \(from batch.mask\), got one of \[1, 1, 0\]"
        with pytest.raises(ValueError, match=message):
            elbo_loss(model, batch, obs, **states)
    model.reward_head = OneColumn()
    with pytest.raises(ValueError, match=r"the reward head's output must be \[T, B\] with T=2, B=1 .*got \[2, 1, 1\]"):
        elbo_loss(model, batch, obs, prior, posterior)


@pytest.mark.parametrize("where", ["is_first", "padded"])
def test_nan_where_no_reward_exists_spoils_neither_value_nor_gradient(where: str) -> None:
    model, batch, *noise = real()
    losses = run(model, batch, *noise)
    nowhere = batch.is_first if where == "is_first" else ~batch.mask
    other = run(model, batch._replace(reward=batch.reward.masked_fill(nowhere, float("nan"))), *noise)
    torch.testing.assert_close(other, losses)
    torch.testing.assert_close(gradients(model, other.total), gradients(model, losses.total))


class WrongDivergence(SSMCell):
    """A cell whose divergence is not one number per row."""

    def divergence(self, posterior: State, prior: State) -> Tensor:
        return super().divergence(posterior, prior).mean()


def test_a_divergence_that_is_not_one_number_per_row_is_named() -> None:
    model, batch, obs, prior, posterior = by_hand()
    model.cell = WrongDivergence(1, 2, stoch_dim=2)
    message = r"the cell's divergence must be \[T, B\] with T=2, B=1 \(from batch.mask\), got \[\]"
    with pytest.raises(ValueError, match=message):
        elbo_loss(model, batch, obs, prior, posterior)


def test_pixels_that_are_still_bytes_and_flags_that_are_not_bool_are_named() -> None:
    model, batch, obs, prior, posterior = by_hand()
    with pytest.raises(TypeError, match=r"obs must be the floats that the encoder saw, got torch.uint8; .*dequantise"):
        elbo_loss(model, batch, obs.to(torch.uint8), prior, posterior)
    for name in ("mask", "is_first"):
        wrong = batch._replace(**{name: getattr(batch, name).byte()})
        with pytest.raises(TypeError, match=rf"batch.{name} must be bool, got torch.uint8; convert it with"):
            elbo_loss(model, wrong, obs, prior, posterior)


class LastFeature(nn.Module):
    """A continue head whose logit is the last feature."""

    def forward(self, features: Tensor) -> Tensor:
        return features[..., -1]


def with_continue_head() -> tuple[WorldModel, Batch, Tensor, State, State]:
    """The logits are 2 and -1; the episode ends with the second row."""
    model, batch, *others = by_hand()
    model.continue_head = LastFeature()
    return model, batch._replace(terminated=torch.tensor([[False], [True]])), *others


def test_the_continue_heads_term_by_hand() -> None:
    goes_on, ends = math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1))  # -ln sigmoid(2), -ln(1 - sigmoid(-1))
    plain = elbo_loss(*by_hand())
    losses = elbo_loss(*with_continue_head(), continue_scale=3.0)
    assert losses.raw["continue"].item() == pytest.approx((goes_on + ends) / 2)
    assert losses.scaled["continue"].item() == pytest.approx(3 * (goes_on + ends) / 2)
    assert losses.total.item() == pytest.approx(plain.total.item() + 3 * (goes_on + ends) / 2)
    assert {name: term for name, term in losses.raw.items() if name != "continue"} == plain.raw
    assert elbo_loss(*with_continue_head()).scaled["continue"] == losses.raw["continue"]


def test_the_continue_heads_term_leaves_padded_rows_out_and_counts_first_ones() -> None:
    model, batch, *others = with_continue_head()
    for row, expected in ((0, math.log(1 + math.exp(-2))), (1, math.log(1 + math.exp(-1)))):
        mask = torch.zeros_like(batch.mask)
        mask[row] = True
        losses = elbo_loss(model, batch._replace(mask=mask), *others)
        assert losses.raw["continue"].item() == pytest.approx(expected)
    nothing = batch._replace(mask=torch.zeros_like(batch.mask))
    assert elbo_loss(model, nothing, *others).raw["continue"].item() == 0.0


def test_a_continue_head_is_trained_and_trains_the_states() -> None:
    model, batch, *noise = real()
    model.continue_head = ContinueHead(9, hidden_dim=8).double()
    batch = batch._replace(terminated=batch.mask & (torch.rand(batch.mask.shape) < 0.3))
    loss = run(model, batch, *noise).raw["continue"]
    for (name, _), grad in zip(model.named_parameters(), gradients(model, loss), strict=True):
        read_by_others = name.startswith(("decoder", "reward_head", "cell.prior_head"))
        assert (grad.abs().sum() == 0) if read_by_others else (grad.abs().sum() > 0), name


def test_what_a_continue_head_needs_is_named() -> None:
    model, batch, *others = with_continue_head()
    with pytest.raises(TypeError, match=r"batch.terminated must be bool, got torch.uint8; convert it with"):
        elbo_loss(model, batch._replace(terminated=batch.terminated.byte()), *others)
    with pytest.raises(ValueError, match=r"batch.terminated must be \[T, B\] with T=2, B=1 .*, got \[2\]"):
        elbo_loss(model, batch._replace(terminated=batch.terminated[:, 0]), *others)
    model.continue_head = OneColumn()
    with pytest.raises(
        ValueError, match=r"the continue head's output must be \[T, B\] with T=2, B=1 .*, got \[2, 1, 1\]"
    ):
        elbo_loss(model, batch, *others)


@pytest.mark.parametrize("balance", [0.0, 0.3, 0.8, 1.0])
def test_balancing_leaves_the_kls_value_and_shares_out_its_gradient_by_hand(balance: float) -> None:
    model, batch, obs, prior, posterior = by_hand()
    q, p = posterior.mean.requires_grad_(), prior.mean.requires_grad_()
    losses = elbo_loss(model, batch, obs, prior, posterior, free_nats=0.0, kl_balance=balance)
    plain = elbo_loss(*by_hand(), free_nats=0.0)
    torch.testing.assert_close(losses.raw, plain.raw)
    to_posterior, to_prior = torch.autograd.grad(losses.raw["kl"], [q, p])
    distance = (q - p) / 2  # of unit variance; the mean over two rows
    torch.testing.assert_close(to_posterior, (1 - balance) * distance)
    torch.testing.assert_close(to_prior, -balance * distance)


def test_the_global_divergence_by_hand_has_no_free_nats() -> None:
    model, batch, obs, prior, posterior = by_hand()
    far = prior._replace(mean=prior.mean + 7)
    posterior = posterior._replace(std=posterior.std * 2)
    losses = elbo_loss(model, batch, obs, far, posterior, free_nats=3.0, global_kl_scale=0.1)
    spread = (4 - 1) / 2 - math.log(2)
    expected = ((1 + 0) / 2 + (4 + 4) / 2) / 2 + 2 * spread
    assert losses.raw["global_kl"].item() == pytest.approx(expected)
    assert losses.scaled["global_kl"].item() == pytest.approx(0.1 * expected)
    without = elbo_loss(model, batch, obs, far, posterior, free_nats=3.0)
    assert "global_kl" not in {*without.raw, *without.scaled}
    assert losses.total.item() == pytest.approx(without.total.item() + 0.1 * expected)


class Bare:
    """A cell with what every use needs and no more."""

    action_dim, feature_dim, noise_dim = 1, 2, 2

    def prior(self, state: State, action: Tensor, noise: Tensor | None = None) -> State:
        return state

    def features(self, state: State) -> Tensor:
        return state.stoch

    def divergence(self, posterior: State, prior: State) -> Tensor:
        return (posterior.mean - prior.mean).square().sum(-1) / 2


def test_a_cell_without_a_global_prior_is_named_where_one_is_needed() -> None:
    _, batch, obs, prior, posterior = by_hand()
    model = WorldModel(nn.Identity(), Bare(), nn.Identity(), FirstFeature())
    assert elbo_loss(model, batch, obs, prior, posterior).raw["kl"].item() == 2.25
    message = r"global_kl_scale needs a cell with a method global_prior\(state\), got Bare without one"
    with pytest.raises(TypeError, match=message):
        elbo_loss(model, batch, obs, prior, posterior, global_kl_scale=0.1)


class WholeAndFirst(nn.Module):
    """A decoder of two entries: the features as they are, and the first of them."""

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"whole": features, "first": features[..., :1]}


def several() -> tuple[WorldModel, Batch, dict[str, Tensor], State, State]:
    """Features [1, 2] and [0, -1]; half squared errors of whole: 2.5 and 2, of first: 4.5 and 0."""
    model, batch, obs, prior, posterior = by_hand()
    model.decoder = WholeAndFirst()
    return model, batch, {"first": torch.tensor([[[4.0]], [[0.0]]]), "whole": obs}, prior, posterior


def test_every_entry_of_a_dictionary_has_its_own_term_and_scale() -> None:
    losses = elbo_loss(*several(), obs_scale={"whole": 0.5, "first": 2.0})
    assert {name: losses.raw[name].item() for name in losses.raw if name.startswith("obs")} == {
        "obs/whole": 2.25,
        "obs/first": 2.25,
    }
    assert losses.scaled["obs/whole"].item() == 0.5 * 2.25
    assert losses.scaled["obs/first"].item() == 2.0 * 2.25
    assert losses.total.item() == 2.5 * 2.25 + 4.5 + 3.5
    for_all = elbo_loss(*several(), obs_scale=3.0)
    assert [for_all.scaled[f"obs/{name}"].item() for name in ("whole", "first")] == [3 * 2.25] * 2
    model, batch, *others = several()
    row = elbo_loss(model, batch._replace(mask=torch.tensor([[True], [False]])), *others)
    assert [row.raw[f"obs/{name}"].item() for name in ("whole", "first")] == [2.5, 4.5]


def test_entries_that_do_not_fit_are_named() -> None:
    model, batch, obs, prior, posterior = several()
    with pytest.raises(ValueError, match=r"obs_scale must be a number, or name every entry .*got \['obs/whole'\]"):
        elbo_loss(model, batch, obs, prior, posterior, obs_scale={"whole": 1.0})
    with pytest.raises(
        ValueError, match=r"obs_scale must be a number, or name every entry of the observation, \['obs'\]"
    ):
        elbo_loss(*by_hand(), obs_scale={"whole": 1.0})
    with pytest.raises(
        ValueError, match=r"obs/first must be \[2, 1, 1\] \(what the decoder predicts\), got \[2, 1, 2\]"
    ):
        elbo_loss(model, batch, {**obs, "first": obs["whole"]}, prior, posterior)
    for wrong in ({"whole": obs["whole"]}, obs["whole"]):
        with pytest.raises(ValueError, match=r"obs must have the entries obs/whole, obs/first .*, got \['obs"):
            elbo_loss(model, batch, wrong, prior, posterior)
    with pytest.raises(TypeError, match=r"obs/first must be the floats that the encoder saw, got torch.uint8"):
        elbo_loss(model, batch, {**obs, "first": obs["first"].byte()}, prior, posterior)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_a_kl_balance_out_of_range_is_named(bad: float) -> None:
    with pytest.raises(ValueError, match=f"kl_balance must be between 0 and 1, or None for the plain KL, got {bad}"):
        elbo_loss(*by_hand(), kl_balance=bad)


def test_terms_that_are_not_finite_are_named() -> None:
    model, batch, obs, prior, posterior = several()
    assert elbo_loss(model, batch, obs, prior, posterior).non_finite() == []
    nan, inf = float("nan"), float("inf")
    bad_obs = {**obs, "first": obs["first"] + inf}
    assert elbo_loss(model, batch, bad_obs, prior, posterior).non_finite() == ["obs/first"]
    bad_reward = batch._replace(reward=batch.reward * nan)
    assert elbo_loss(model, bad_reward, bad_obs, prior, posterior).non_finite() == ["obs/first", "reward"]
    bad_prior = prior._replace(mean=prior.mean + nan)
    assert elbo_loss(model, batch, obs, bad_prior, posterior).non_finite() == ["kl", "kl_clipped"]
    scaled_away = elbo_loss(model, batch, obs, prior, posterior, reward_scale=1e39)
    assert scaled_away.non_finite() == ["reward (scaled)"]

"""The ELBO: numbers by hand, what must not count, messages."""

import pytest
import torch
from torch import Tensor, nn

from planet_lib import (
    Batch,
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
from planet_lib.objectives.elbo import masked_mean


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
    assert losses.obs.item() == ((1 + 4) / 2 + (0 + 4) / 2) / 2
    assert losses.reward.item() == (0 - 3) ** 2 / 2, "the reward of row 0, which is first, is left out"
    assert losses.kl.item() == ((1 + 0) / 2 + (4 + 4) / 2) / 2
    assert losses.kl_clipped.item() == (3 + 4) / 2, "free nats count row by row, before the mean"
    assert losses.total.item() == 2.25 + 4.5 + 3.5
    assert all(term.shape == () for term in losses)


def test_scales_weigh_the_total_and_nothing_else() -> None:
    plain = elbo_loss(*by_hand(), free_nats=3.0)
    scaled = elbo_loss(*by_hand(), free_nats=3.0, obs_scale=2.0, reward_scale=10.0, kl_scale=0.5)
    assert scaled.total.item() == 2 * 2.25 + 10 * 4.5 + 0.5 * 3.5
    assert scaled[1:] == plain[1:]


def test_without_free_nats_the_clipped_kl_is_the_kl() -> None:
    losses = elbo_loss(*by_hand(), free_nats=0.0)
    assert losses.kl_clipped.item() == losses.kl.item() == 2.25


def test_padded_rows_do_not_count() -> None:
    model, batch, obs, prior, posterior = by_hand()
    first_only = batch._replace(mask=torch.tensor([[True], [False]]))
    losses = elbo_loss(model, first_only, obs, prior, posterior, free_nats=3.0)
    assert [term.item() for term in losses] == [5.5, 2.5, 0.0, 0.5, 3.0]
    second_only = batch._replace(mask=torch.tensor([[False], [True]]))
    losses = elbo_loss(model, second_only, obs, prior, posterior, free_nats=3.0)
    assert [term.item() for term in losses] == [10.5, 2.0, 4.5, 4.0, 4.0]
    nothing = batch._replace(mask=torch.tensor([[False], [False]]))
    losses = elbo_loss(model, nothing, obs, prior, posterior, free_nats=3.0)
    assert [term.item() for term in losses] == [0.0] * 5


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
    assert [term.item() for term in losses[1:]] == pytest.approx(expected)
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
    kl = run(model, batch, *noise).kl.item()
    below = run(model, batch, *noise, free_nats=100 * kl)
    assert below.kl_clipped.item() == pytest.approx(100 * kl)
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in gradients(model, below.kl_clipped))
    above = run(model, batch, *noise, free_nats=0.0)
    prior_head = dict(zip(dict(model.named_parameters()), gradients(model, above.kl_clipped), strict=True))
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

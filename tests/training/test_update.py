"""One update: it learns, it clips, and it leaves the weights alone when a number is bad."""

import copy

import pytest
import torch
from torch import nn

from planet_lib import Batch, Decoder, RewardHead, RNNCell, RSSMCell, SSMCell, VectorEncoder, WorldModel
from planet_lib.training import update
from planet_lib.training.presets import PRESETS, build_model

CELLS = {"rssm": RSSMCell, "ssm": SSMCell, "rnn": RNNCell}


def make_model(cell_class: type[nn.Module] = RSSMCell) -> WorldModel:
    torch.manual_seed(0)
    encoder = VectorEncoder(3, embed_dim=8)
    cell = cell_class(action_dim=2, embed_dim=8, stoch_dim=4, hidden_dim=16)
    return WorldModel(encoder, cell, Decoder(cell.feature_dim, (3,), hidden_dim=16), RewardHead(cell.feature_dim))


def make_batch(**changes: torch.Tensor) -> Batch:
    generator = torch.Generator().manual_seed(1)
    flags = torch.zeros(6, 4, dtype=torch.bool)
    batch = Batch(
        obs=torch.randn(6, 4, 3, generator=generator),
        action=torch.rand(6, 4, 2, generator=generator),
        reward=torch.randn(6, 4, generator=generator),
        is_first=flags,
        terminated=flags,
        mask=~flags,
    )
    return batch._replace(**changes)


@pytest.mark.parametrize("cell_class", CELLS.values(), ids=CELLS)
def test_fifty_updates_on_one_batch_halve_the_loss(cell_class):
    batch = make_batch()
    model, batch = make_model(cell_class), batch._replace(obs=batch.obs.sign(), reward=batch.obs[..., 0].sign())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    results = [update(model, optimizer, batch, free_nats=0.0, kl_scale=0.01, reward_scale=10.0) for _ in range(50)]
    assert results[-1].losses.total < 0.5 * results[0].losses.total
    assert results[-1].losses.obs < 0.8 * results[0].losses.obs
    assert results[-1].losses.reward < 0.5 * results[0].losses.reward


def test_a_step_of_sgd_moves_the_weights_by_the_gradient_scaled_to_the_clip():
    model, batch = make_model(), make_batch()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    result = update(model, torch.optim.SGD(model.parameters(), lr=1.0), batch, grad_clip=0.1)
    moved = torch.cat([(new - old).flatten() for new, old in zip(model.parameters(), before, strict=True)]).norm()
    assert result.grad_norm > 0.1
    torch.testing.assert_close(moved, torch.tensor(0.1), rtol=1e-4, atol=0.0)


@pytest.mark.filterwarnings("ignore:Mean of empty")
def test_a_nan_in_the_batch_is_named_and_leaves_weights_and_optimizer_untouched():
    model, batch = make_model(), make_batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    update(model, optimizer, batch)
    weights, moments = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    reward = batch.reward.clone()
    reward[3, 2] = float("nan")
    with pytest.raises(
        FloatingPointError, match=r"gradient must be finite, got norm nan \(not finite: total, reward\)"
    ):
        update(model, optimizer, batch._replace(reward=reward))
    torch.testing.assert_close(model.state_dict(), weights, rtol=0.0, atol=0.0)
    torch.testing.assert_close(optimizer.state_dict(), moments, rtol=0.0, atol=0.0)


def test_overshooting_is_added_from_distance_two_on():
    model, batch = make_model(), make_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    assert update(model, optimizer, batch, overshooting_distance=1).overshooting == 0.0
    far = update(model, optimizer, batch, overshooting_distance=5, free_nats=0.01)
    assert far.overshooting > 0.01


def test_pixels_become_the_floats_that_encoder_and_loss_both_see():
    torch.manual_seed(0)
    model = build_model(PRESETS["cpu"], "rssm", (3, 16, 16), 2)
    flags = torch.zeros(2, 2, dtype=torch.bool)
    frames = torch.full((2, 2, 3, 16, 16), 255, dtype=torch.uint8)
    batch = make_batch(
        obs=frames, action=torch.zeros(2, 2, 2), reward=torch.zeros(2, 2), is_first=flags, terminated=flags, mask=~flags
    )
    seen = []
    model.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.zero_()
    result = update(model, torch.optim.SGD(model.parameters(), lr=0.0), batch)
    # White is the highest of 32 levels, [31/32, 1) - 1/2; the decoder says 0 everywhere.
    assert seen[0].min() >= 31 / 32 - 0.5
    assert seen[0].max() < 0.5
    torch.testing.assert_close(result.losses.obs, 0.5 * seen[0].square().sum() / 4)

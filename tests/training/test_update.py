"""One update: it learns, it clips, and it leaves the weights alone when a number is bad."""

import copy
import dataclasses
import inspect
import sys

import pytest
import torch
from torch import nn

from planet_lib import (
    Batch,
    ContinueHead,
    Decoder,
    DictDecoder,
    DictEncoder,
    Losses,
    NonFiniteError,
    RewardHead,
    RNNCell,
    RSSMCell,
    SSMCell,
    VectorEncoder,
    WorldModel,
    elbo_loss,
    latent_overshooting,
    observe,
)
from planet_lib.training import Objective, UpdateResult, update, warm_up
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
    torch.manual_seed(12)  # the noise: some draws keep the sample's information hidden for longer
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    objective = Objective(free_nats=0.0, kl_scale=0.01, reward_scale=10.0)
    results = [update(model, optimizer, batch, objective) for _ in range(50)]
    assert results[-1].losses.total < 0.5 * results[0].losses.total
    assert results[-1].losses.raw["obs"] < 0.8 * results[0].losses.raw["obs"]
    assert results[-1].losses.raw["reward"] < 0.5 * results[0].losses.raw["reward"]


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
    message = (
        r"gradient must be finite, got nan and norm nan \(not finite: reward, batch.reward at step 3 of window 2\)$"
    )
    with pytest.raises(NonFiniteError, match=message):
        update(model, optimizer, batch._replace(reward=reward))
    torch.testing.assert_close(model.state_dict(), weights, rtol=0.0, atol=0.0)
    torch.testing.assert_close(optimizer.state_dict(), moments, rtol=0.0, atol=0.0)


def test_overshooting_is_added_from_distance_two_on():
    model, batch = make_model(), make_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    assert update(model, optimizer, batch, Objective(overshooting_distance=1)).overshooting is None
    far = update(model, optimizer, batch, Objective(overshooting_distance=5, free_nats=0.01))
    assert far.overshooting.total > 0.01


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
    torch.testing.assert_close(result.losses.raw["obs"], 0.5 * seen[0].square().sum() / 4)


# What `Objective` calls the settings of `latent_overshooting`; those of `elbo_loss` have the same names.
OVERSHOOTING = {
    "overshooting_distance": "distance",
    "free_nats": "free_nats",
    "overshooting_scale": "kl_scale",
    "overshooting_reward_scale": "reward_scale",
    "overshooting_obs_scale": "obs_scale",
    "overshooting_chunk": "chunk_size",
}
SHARED = {name for name in OVERSHOOTING if name.startswith("overshooting")}
CHOSEN = Objective(
    free_nats=0.5,
    obs_scale=0.7,
    reward_scale=11.0,
    kl_scale=0.9,
    kl_balance=0.6,
    global_kl_scale=0.05,
    continue_scale=2.0,
    overshooting_distance=3,
    overshooting_scale=0.4,
    overshooting_reward_scale=5.0,
    overshooting_obs_scale=0.3,
    overshooting_chunk=3,
)


def test_every_setting_of_the_objective_reaches_its_term(monkeypatch):
    calls = {}

    def spy(name, function):
        def wrapped(*args, **kwargs):
            calls[name] = kwargs
            return function(*args, **kwargs)

        return wrapped

    module = sys.modules["planet_lib.training.update"]  # the function of this name hides it
    for name, function in (("elbo_loss", elbo_loss), ("latent_overshooting", latent_overshooting)):
        monkeypatch.setattr(module, name, spy(name, function))
    model, batch = make_model(), make_batch()
    update(model, torch.optim.SGD(model.parameters(), lr=0.0), batch, CHOSEN)
    chosen = dataclasses.asdict(CHOSEN)
    assert all(chosen[field.name] != field.default for field in dataclasses.fields(Objective))
    assert calls["elbo_loss"] == {name: value for name, value in chosen.items() if name not in SHARED}
    given = calls["latent_overshooting"]
    assert torch.equal(given.pop("obs"), batch.obs)
    assert given == {OVERSHOOTING[name]: value for name, value in chosen.items() if name in OVERSHOOTING}


def test_the_default_objective_is_what_the_losses_default_to():
    default = Objective()
    for function, names in (
        (elbo_loss, {name: name for name in dataclasses.asdict(default) if name not in SHARED}),
        (latent_overshooting, {name: of for name, of in OVERSHOOTING.items() if name != "overshooting_distance"}),
    ):
        parameters = inspect.signature(function).parameters
        for name, of in names.items():
            assert getattr(default, name) == parameters[of].default, name
    assert default.overshooting_distance == 1


def test_an_objective_is_frozen_and_takes_names_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Objective().free_nats = 1.0
    with pytest.raises(TypeError, match="positional argument"):
        Objective(3.0)


def test_no_objective_is_the_default_one():
    once, again = [
        update(model, torch.optim.SGD(model.parameters(), lr=0.0), make_batch(), *objective)
        for objective in ((), (Objective(),))
        for model in [make_model()]
    ]
    torch.testing.assert_close(once, again, rtol=0.0, atol=0.0)


def test_a_step_follows_the_gradient_of_elbo_and_overshooting_together():
    model, batch = make_model(RNNCell), make_batch()  # nothing is drawn
    before = [parameter.detach().clone() for parameter in model.parameters()]
    twin = copy.deepcopy(model)
    states = observe(twin.cell, twin.encoder(batch.obs), batch.action, batch.is_first)
    elbo = elbo_loss(twin, batch, batch.obs, *states, free_nats=0.0)
    far = latent_overshooting(twin, batch, *states, distance=3, free_nats=0.0, reward_scale=2.0)
    expected = torch.autograd.grad(elbo.total + far.total, list(twin.parameters()))
    objective = Objective(free_nats=0.0, overshooting_distance=3, overshooting_reward_scale=2.0)
    result = update(model, torch.optim.SGD(model.parameters(), lr=1.0), batch, objective)
    for parameter, old, grad in zip(model.parameters(), before, expected, strict=True):
        torch.testing.assert_close(old - parameter, grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.losses, elbo.detach())
    torch.testing.assert_close(result.overshooting, far.detach())
    assert not any(term.requires_grad for term in (result.losses.total, *result.losses.raw.values(), result.grad_norm))


class RootOfZero(nn.Module):
    """A reward head whose value is finite and whose gradient is not: the root of a weight that is zero."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, features):
        return features[..., 0] + self.weight.sqrt()


def refused(model, batch, objective, message):
    """The update fails with this message and leaves everything as it is."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(FloatingPointError, match=message):
        update(model, optimizer, batch, objective)
    torch.testing.assert_close(model.state_dict(), weights, rtol=0.0, atol=0.0)
    assert optimizer.state_dict()["state"] == {}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_where_only_the_gradient_is_not_finite_its_parameters_are_named():
    model = make_model()
    model.reward_head = RootOfZero()
    message = r"norm (inf|nan) \(not finite: the gradient of reward_head.weight\)$"
    refused(model, make_batch(), Objective(), message)


def test_a_term_that_only_its_scale_makes_infinite_is_named_so():
    refused(make_model(), make_batch(), Objective(reward_scale=1e39), r"\(not finite: reward \(scaled\)\)$")


def test_a_term_of_overshooting_is_named_as_such():
    objective = Objective(free_nats=0.0, overshooting_distance=3, overshooting_scale=1e39)
    refused(make_model(), make_batch(), objective, r"\(not finite: overshooting kl \(scaled\)\)$")


def test_finite_gradients_whose_norm_is_not_are_refused_with_a_reason():
    message = r"norm inf \(not finite: the sum of the gradient's squares, which are too large\)$"
    refused(make_model(), make_batch(), Objective(reward_scale=1e30), message)


def test_a_nan_in_one_entry_of_a_dictionary_is_named_by_its_name():
    model, batch = several()
    batch.obs["joints"][2, 1] = float("nan")  # seen by the encoder too, so that every later term is spoilt
    names = "obs/frames, obs/joints, reward, kl, kl_clipped, continue"
    place = r"batch.obs\['joints'\] at step 2 of window 1"
    refused(model, batch, Objective(), rf"\(not finite: {names}, {place}\)$")
    model.encoder = OneEntry(model.encoder, "frames")
    refused(model, batch, Objective(), rf"\(not finite: obs/joints, {place}\)$")


class OneEntry(nn.Module):
    """Sees one entry of a dictionary, and zeros in place of the others."""

    def __init__(self, encoder, name):
        super().__init__()
        self.encoder, self.name = encoder, name

    def forward(self, obs):
        return self.encoder({n: value if n == self.name else torch.zeros_like(value) for n, value in obs.items()})


def several():
    """A model that sees frames (bytes, here in a row) and joints, of episodes that end."""
    torch.manual_seed(0)
    encoder = DictEncoder({"frames": VectorEncoder(4, embed_dim=5), "joints": VectorEncoder(3, embed_dim=5)})
    cell = RSSMCell(action_dim=2, embed_dim=10, deter_dim=8, stoch_dim=4, hidden_dim=16)
    decoder = DictDecoder({"frames": Decoder(12, (4,), hidden_dim=16), "joints": Decoder(12, (3,), hidden_dim=16)})
    model = WorldModel(encoder, cell, decoder, RewardHead(12, hidden_dim=16), ContinueHead(12, hidden_dim=16))
    batch = make_batch()
    terminated = torch.zeros_like(batch.mask)
    terminated[-1] = True
    frames = torch.randint(0, 256, (6, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    return model, batch._replace(obs={"frames": frames, "joints": batch.obs}, terminated=terminated)


def test_a_dictionary_of_bytes_and_floats_is_learned_with_the_ends_of_episodes():
    model, batch = several()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    objective = Objective(free_nats=0.0, kl_scale=0.01, obs_scale={"frames": 0.1, "joints": 1.0})
    torch.manual_seed(1)
    first, *_, last = [update(model, optimizer, batch, objective) for _ in range(60)]
    # A sixth of the rows ends: whoever knows nothing but that pays the entropy, 0.45 nats.
    assert last.losses.raw["continue"] < 0.2
    assert first.losses.raw["continue"] > 0.4
    assert last.losses.raw["obs/joints"] < 0.8 * first.losses.raw["obs/joints"]


def test_the_metrics_are_the_unscaled_terms_of_both_parts_and_what_was_minimised():
    model, batch = several()
    scales = {"frames": 0.5, "joints": 2.0}
    objective = dataclasses.replace(CHOSEN, obs_scale=scales, overshooting_obs_scale=scales)
    result = update(model, torch.optim.SGD(model.parameters(), lr=0.0), batch, objective)
    raw, far, metrics = result.losses.raw, result.overshooting.raw, result.metrics()
    expected = {
        "loss_total": result.losses.total + result.overshooting.total,
        "loss_obs": raw["obs/frames"] + raw["obs/joints"],
        "loss_reward": raw["reward"],
        "loss_continue": raw["continue"],
        "kl": raw["kl"],
        "kl_clipped": raw["kl_clipped"],
        "global_kl": raw["global_kl"],
        "overshooting_kl": far["kl"],
        "overshooting_reward": far["reward"],
        "overshooting_obs": far["obs/frames"] + far["obs/joints"],
        "grad_norm": result.grad_norm,
    }
    torch.testing.assert_close(metrics, expected, rtol=0.0, atol=0.0)
    assert all(value.shape == () and value > 0 for value in metrics.values())


def test_the_metrics_of_a_plain_objective_name_nothing_that_does_not_exist():
    one = torch.ones(())
    raw = {"obs": one, "reward": 2 * one, "kl": 3 * one, "kl_clipped": 4 * one}
    result = UpdateResult(Losses(total=5 * one, raw=raw, scaled={}), None, 6 * one)
    expected = {"loss_total": 5, "loss_obs": 1, "loss_reward": 2, "kl": 3, "kl_clipped": 4, "grad_norm": 6}
    assert {name: int(value) for name, value in result.metrics().items()} == expected


def test_the_rate_warms_up_linearly_and_then_stays_for_every_group():
    weights = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weight]} for weight in weights], lr=7.0)
    for updates, expected in ((0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (4, 1.0), (10**6, 1.0)):
        warm_up(optimizer, 2e-3, updates, warmup_updates=4)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2e-3 * expected] * 2)


def test_no_warm_up_is_the_full_rate_from_the_first_update():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=7.0)
    for warmup_updates in (0, 1):
        warm_up(optimizer, 2e-3, 0, warmup_updates)
        assert optimizer.param_groups[0]["lr"] == 2e-3


class Constant(nn.Module):
    """A reward head that predicts 0 whatever it sees, so that its loss has no gradient."""

    def forward(self, features):
        return features[..., 0].detach() * 0


def test_an_infinite_loss_is_refused_even_where_its_gradient_is_finite():
    model = make_model()
    model.reward_head = Constant()
    batch = make_batch()
    batch = batch._replace(reward=batch.reward * 0 + 1e30)  # its square is more than a float32 holds
    refused(model, batch, Objective(), r"got inf and norm [0-9.]+ \(not finite: reward\)$")


@pytest.mark.parametrize("clip", [float("nan"), 0.0, -1.0])
def test_a_clip_that_would_spoil_the_weights_is_refused_before_anything_changes(clip: float):
    model = make_model()
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"grad_clip must be greater than 0, got {clip}"):
        update(model, torch.optim.Adam(model.parameters()), make_batch(), grad_clip=clip)
    torch.testing.assert_close(model.state_dict(), weights, rtol=0.0, atol=0.0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_settings_that_no_loss_could_mean_are_named_when_the_objective_is_made():
    cases = {
        "kl_scale must be finite and at least 0, got -1.0": {"kl_scale": -1.0},
        "continue_scale must be finite and at least 0, got nan": {"continue_scale": float("nan")},
        r"obs_scale\['camera'\] must be finite and at least 0, got -2.0": {"obs_scale": {"camera": -2.0}},
        "overshooting_distance must be a whole number of at least 1, got -3": {"overshooting_distance": -3},
        "overshooting_chunk must be a whole number of at least 1, got 1.5": {"overshooting_chunk": 1.5},
    }
    for message, settings in cases.items():
        with pytest.raises(ValueError, match=message):
            Objective(**settings)


def test_the_norm_is_that_of_one_update_though_a_part_of_the_model_is_not_optimised():
    model = make_model(RNNCell)
    optimizer = torch.optim.SGD(model.cell.parameters(), lr=0.0)  # the rest keeps its gradients, unless cleared
    first, second = (update(model, optimizer, make_batch()).grad_norm for _ in range(2))
    torch.testing.assert_close(first, second)


def test_a_batch_in_float32_is_brought_to_the_type_of_the_weights():
    model = make_model().double()
    result = update(model, torch.optim.SGD(model.parameters(), lr=1e-3), make_batch())
    assert result.losses.total.dtype == torch.float64


def test_autocast_to_another_type_is_refused():
    model = make_model()
    with pytest.raises(ValueError, match=r"autocast must be torch.bfloat16 or None, got torch.int8"):
        update(model, torch.optim.SGD(model.parameters(), lr=1e-3), make_batch(), autocast=torch.int8)


class Normalised(nn.Module):
    """An encoder with running means, which change in the forward pass."""

    embed_dim = 8

    def __init__(self):
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(5), nn.Linear(5, 8)

    def forward(self, obs):
        return self.layer(self.norm(obs.flatten(0, 1))).unflatten(0, obs.shape[:2])


def test_an_update_that_is_refused_leaves_running_means_as_they_were():
    batch = make_batch()
    width = batch.obs.shape[-1]
    encoder = Normalised()
    encoder.norm, encoder.layer = nn.BatchNorm1d(width), nn.Linear(width, 8)
    cell = RSSMCell(action_dim=batch.action.shape[-1], embed_dim=8)
    model = WorldModel(encoder, cell, Decoder(cell.feature_dim, (width,)), RewardHead(cell.feature_dim))
    update(model, torch.optim.Adam(model.parameters()), batch)
    before = copy.deepcopy(dict(model.named_buffers()))
    obs = batch.obs.clone()
    obs[0, 0, 0] = float("nan")
    refused(model, batch._replace(obs=obs), Objective(), r"batch.obs at step 0 of window 0")
    torch.testing.assert_close(dict(model.named_buffers()), before, rtol=0.0, atol=0.0)
    assert float(before["encoder.norm.running_mean"].abs().sum()) > 0

"""Updates whose products are made in bfloat16: what stays in float32, and how close the result is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from planet_lib import (
    Batch,
    ContinueHead,
    ConvEncoder,
    Decoder,
    DictDecoder,
    DictEncoder,
    LatentDynamics,
    Losses,
    PatchDecoder,
    PatchEncoder,
    RewardHead,
    RNNCell,
    RSSMCell,
    SSMCell,
    VectorEncoder,
    WorldModel,
    elbo_loss,
    imagine,
    latent_overshooting,
    observe,
)
from planet_lib.data.pixels import prepare
from planet_lib.models import step
from planet_lib.training import Objective, update

DEVICES = [
    pytest.param("cpu", id="cpu"),
    pytest.param(
        "cuda",
        id="cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]
on_devices = pytest.mark.parametrize("device", DEVICES)
CELLS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "rssm": (RSSMCell, {"deter_dim": 16}),
    "rssm reset before": (RSSMCell, {"deter_dim": 16, "gru": "reset_before", "num_layers": 2, "activation": "elu"}),
    "ssm": (SSMCell, {}),
    "rnn": (RNNCell, {"deter_dim": 16}),
    "rnn reset before": (RNNCell, {"deter_dim": 16, "gru": "reset_before"}),
}
SEEN = {"conv": None, "patch": 1, "both": 2}  # what is seen, and the size of overshooting's chunks
every_case = pytest.mark.parametrize(
    ("kind", "seen", "chunk"), [(kind, seen, chunk) for kind in CELLS for seen, chunk in SEEN.items()]
)
T, B, A, SIZE = 6, 3, 2, 16
IMAGE = (3, SIZE, SIZE)


def make_model(kind: str, seen: str) -> WorldModel:
    torch.manual_seed(0)
    make_cell, settings = CELLS[kind]
    encoder: nn.Module
    decoder: nn.Module
    camera = PatchEncoder(IMAGE, patch_dim=8, embed_dim=24) if seen == "patch" else ConvEncoder(IMAGE, depth=4)
    encoder = camera
    if seen == "both":
        encoder = DictEncoder({"camera": camera, "joints": VectorEncoder(5, embed_dim=8)})
    cell = make_cell(A, encoder.embed_dim, stoch_dim=6, hidden_dim=16, **settings)
    size = cell.feature_dim
    decoder = Decoder(size, IMAGE, depth=4)
    if seen == "patch":
        decoder = PatchDecoder(size, IMAGE, patch_dim=8, hidden_dim=24, draw_dim=16)
    if seen == "both":
        decoder = DictDecoder({"camera": decoder, "joints": Decoder(size, (5,), hidden_dim=16)})
    heads = (head(size, hidden_dim=16) for head in (RewardHead, ContinueHead))
    return WorldModel(encoder, cell, decoder, *heads)


def make_batch(seen: str, *, easy: bool = False) -> Batch:
    """Random windows; the easy ones show a bright picture that never changes."""
    random = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (T, B, *IMAGE), dtype=torch.uint8, generator=random)
    frames = torch.full_like(frames, 240) if easy else frames
    joints = torch.randn(T, B, 5, generator=random)
    is_first, terminated = (torch.zeros(T, B, dtype=torch.bool) for _ in range(2))
    is_first[0], is_first[4, 1], terminated[3, 1] = True, True, True
    mask = torch.ones_like(is_first)
    mask[5:, 2] = False
    return Batch(
        obs={"camera": frames, "joints": joints} if seen == "both" else frames,
        action=torch.rand(T, B, A, generator=random) * 2 - 1,
        reward=torch.randn(T, B, generator=random),
        is_first=is_first,
        terminated=terminated,
        mask=mask,
    )


def objective(chunk: int | None) -> Objective:
    """Every term there is."""
    return Objective(
        free_nats=0.0,
        kl_balance=0.8,
        global_kl_scale=0.1,
        overshooting_distance=4,
        overshooting_reward_scale=1.0,
        overshooting_obs_scale=0.1,
        overshooting_chunk=chunk,
    )


class Outcome(NamedTuple):
    """What one update computed: all terms by name, and the gradient."""

    terms: dict[str, Tensor]
    gradient: dict[str, Tensor]


def all_terms(losses: Losses, overshooting: Losses | None) -> dict[str, Tensor]:
    terms = {"total": losses.total, **losses.raw, **{f"{name} scaled": term for name, term in losses.scaled.items()}}
    if overshooting is not None:
        terms |= {f"overshooting {name}": term for name, term in all_terms(overshooting, None).items()}
    return terms


def run(kind: str, seen: str, chunk: int | None, dtype: torch.dtype | None, device: str = "cpu") -> Outcome:
    """One update of learning rate 0 with the noise of seed 2."""
    model, batch = make_model(kind, seen).to(device), make_batch(seen)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    torch.manual_seed(2)
    result = update(model, optimizer, batch, objective(chunk), grad_clip=1e9, autocast=dtype)
    gradient = {name: parameter.grad for name, parameter in model.named_parameters()}
    return Outcome(all_terms(result.losses, result.overshooting), gradient)


@contextmanager
def recorded_products(model: nn.Module) -> Iterator[set[torch.dtype]]:
    """The types in which linear layers and convolutions answer."""
    seen: set[torch.dtype] = set()
    layers = [part for part in model.modules() if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
    hooks = [layer.register_forward_hook(lambda _layer, _inputs, output: seen.add(output.dtype)) for layer in layers]
    yield seen
    for hook in hooks:
        hook.remove()


@on_devices
@every_case
def test_terms_weights_and_gradients_stay_in_float32(kind: str, seen: str, chunk: int | None, device: str) -> None:
    model, batch = make_model(kind, seen).to(device), make_batch(seen)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with recorded_products(model) as products:
        result = update(model, optimizer, batch, objective(chunk), autocast=torch.bfloat16)
    assert products == {torch.bfloat16}, "or this test shows nothing"
    for name, term in {**all_terms(result.losses, result.overshooting), "norm": result.grad_norm}.items():
        assert term.dtype == torch.float32, name
        assert term.isfinite(), name
    assert {"continue", "global_kl", "overshooting reward", "overshooting kl_clipped"} <= {
        *all_terms(result.losses, result.overshooting)
    }
    for name, parameter in model.named_parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32, name
        assert parameter.grad.abs().sum() > 0, name
    assert not torch.is_autocast_enabled(device)


@on_devices
@pytest.mark.parametrize("kind", CELLS)
def test_latent_states_and_divergences_stay_in_float32(kind: str, device: str) -> None:
    model, batch = make_model(kind, "both").to(device), make_batch("both").to(device)
    cell, obs = model.cell, prepare(batch.obs)
    with torch.autocast(device, dtype=torch.bfloat16):
        embed = model.encoder(obs)
        assert embed.dtype == torch.bfloat16
        filtered = observe(cell, embed, batch.action, batch.is_first)
        first = step(cell, cell.initial(B), batch.action[0], embed[0], batch.is_first[0])
        start = first[1]
        imagined = imagine(cell, start, batch.action)
        for state in (*filtered, *first, imagined, cell.global_prior(start)):
            for name, field in state._asdict().items():
                assert field.dtype == torch.float32, name
        assert cell.divergence(*filtered).dtype == torch.float32
        assert cell.features(start).dtype == torch.float32
        returns = LatentDynamics(model).rollout(start, torch.zeros(4, B, 7, A, device=device))
        assert returns.dtype == torch.float32
        losses = elbo_loss(model, batch, obs, *filtered)
        far = latent_overshooting(model, batch, *filtered, distance=3, obs=obs, reward_scale=1.0, obs_scale=1.0)
    assert {term.dtype for term in all_terms(losses, far).values()} == {torch.float32}


@on_devices
@pytest.mark.parametrize("kind", [kind for kind in CELLS if kind != "ssm"])
def test_a_memory_that_changes_slowly_is_not_lost_to_rounding(kind: str, device: str) -> None:
    """An update gate of 0.9975 is 1 in bfloat16, and a step of 0.0025 towards the candidate nothing."""
    cell = make_model(kind, "conv").cell.to(device)
    unit = cell.path.gru
    with torch.no_grad():
        unit.bias_ih[unit.deter_dim : 2 * unit.deter_dim] = 6.0
    start = cell.initial(B)._replace(deter=torch.ones(B, unit.deter_dim, device=device))
    action = torch.ones(200, 1, 1, device=device) * make_batch("conv").action[1].to(device)
    noise = torch.zeros(200, B, cell.noise_dim, device=device)
    with torch.no_grad():
        expected = imagine(cell, start, action, noise=noise).deter
        with torch.autocast(device, dtype=torch.bfloat16):
            got = imagine(cell, start, action, noise=noise).deter
    assert (expected[-1] - start.deter).abs().mean() > 0.1, "the memory does change"
    assert (got - expected).abs().max() < 0.02


@pytest.mark.parametrize("kind", CELLS)
def test_scanning_is_stepping_in_bfloat16_too(kind: str) -> None:
    """Up to its rounding: the products are split up differently."""
    model, batch = make_model(kind, "conv"), make_batch("conv")
    cell, noise = model.cell, torch.randn(2, T, B, model.cell.noise_dim, generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        embed = model.encoder(prepare(batch.obs))
        prior, posterior = observe(
            cell, embed, batch.action, batch.is_first, prior_noise=noise[0], posterior_noise=noise[1]
        )
        state = cell.initial(B)
        for t in range(T):
            given = (cell, state, batch.action[t], embed[t], batch.is_first[t])
            before, state = step(*given, prior_noise=noise[0, t], posterior_noise=noise[1, t])
            for got, expected in zip((*prior, *posterior), (*before, *state), strict=True):
                torch.testing.assert_close(got[t], expected, rtol=0.02, atol=0.02)


@on_devices
@every_case
def test_terms_and_the_gradients_direction_are_those_of_float32(
    kind: str, seen: str, chunk: int | None, device: str
) -> None:
    """Terms within 1% (0.3% measured on a CPU); cosines above 0.999 for the whole gradient, 0.99 for each part's."""
    wide, narrow = (run(kind, seen, chunk, dtype, device) for dtype in (None, torch.bfloat16))
    for name, term in wide.terms.items():
        assert narrow.terms[name].item() == pytest.approx(term.item(), rel=0.01), name
    whole = [torch.cat([grad.flatten() for grad in outcome.gradient.values()]) for outcome in (wide, narrow)]
    assert torch.nn.functional.cosine_similarity(*whole, dim=0) > 0.999
    assert narrow.terms != wide.terms
    for part in ("encoder", "cell", "decoder", "reward_head", "continue_head"):
        grads = [
            torch.cat([grad.flatten() for name, grad in outcome.gradient.items() if name.startswith(part)])
            for outcome in (wide, narrow)
        ]
        assert torch.nn.functional.cosine_similarity(*grads, dim=0) > 0.99, part


@on_devices
@pytest.mark.parametrize(("kind", "seen"), [("rssm", "conv"), ("ssm", "patch"), ("rnn reset before", "both")])
def test_many_updates_learn_as_much_as_in_float32(kind: str, seen: str, device: str) -> None:
    left = []
    for dtype in (None, torch.bfloat16):
        model, batch = make_model(kind, seen).to(device), make_batch(seen, easy=True)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        torch.manual_seed(2)
        totals = [
            update(model, optimizer, batch, objective(None), autocast=dtype).losses.total.item() for _ in range(40)
        ]
        left.append(totals[-1] / totals[0])
    assert left[1] < 0.2
    assert left[1] == pytest.approx(left[0], abs=0.02)


@on_devices
def test_a_nan_is_refused_by_its_name(device: str) -> None:
    model, batch = make_model("rssm", "conv").to(device), make_batch("conv")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    reward = batch.reward.clone()
    reward[2, 0] = float("nan")
    with pytest.raises(
        FloatingPointError, match=r"got nan and norm nan \(not finite: reward, batch.reward at step 2 of window 0\)$"
    ):
        update(model, optimizer, batch._replace(reward=reward), autocast=torch.bfloat16)
    torch.testing.assert_close(model.state_dict(), before, rtol=0.0, atol=0.0)
    assert not torch.is_autocast_enabled(device)


def test_without_autocast_nothing_is_rounded() -> None:
    model, batch = make_model("rssm", "conv"), make_batch("conv")
    with recorded_products(model) as products:
        update(model, torch.optim.SGD(model.parameters(), lr=0.0), batch, objective(None))
    assert products == {torch.float32}

"""Agreement with the numbers of an independent port (Kaixhin/PlaNet), see tests/golden/README.md."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from planet_lib import ConvEncoder, Decoder, RewardHead, RSSMCell, State, WorldModel, elbo_loss, imagine, observe
from planet_lib.models import step
from planet_lib.models.kaixhin import rename_kaixhin
from planet_lib.models.rollout import map_state
from planet_lib.types import Batch

GOLDEN = Path(__file__).parents[1] / "golden"


def load(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def weights(golden: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}


def build(golden: Mapping[str, Tensor]) -> tuple[RSSMCell, RewardHead]:
    cell = RSSMCell(action_dim=2, embed_dim=7, deter_dim=6, stoch_dim=4, hidden_dim=5).double()
    cell.load_state_dict(rename_kaixhin("transition_model", weights(golden, "cell.")))
    head = RewardHead(cell.feature_dim, hidden_dim=5).double()
    head.load_state_dict(rename_kaixhin("reward_model", weights(golden, "reward.")))
    return cell, head


def observe_by_stepping(cell: RSSMCell, golden: Mapping[str, Tensor], is_first: Tensor) -> tuple[State, State]:
    length, batch_size = is_first.shape
    state = cell.initial(batch_size)
    priors, posteriors = [], []
    for t in range(length):
        prior, state = step(
            cell,
            state,
            golden["action"][t],
            golden["embed"][t],
            is_first[t],
            prior_noise=golden["prior_noise"][t],
            posterior_noise=golden["posterior_noise"][t],
        )
        priors.append(prior)
        posteriors.append(state)
    return map_state(lambda *rows: torch.stack(rows), *priors), map_state(lambda *rows: torch.stack(rows), *posteriors)


def close(got: Tensor, expected: Tensor, *, atol: float = 1e-12) -> None:
    torch.testing.assert_close(got, expected, rtol=0.0, atol=atol)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load("rssm_observe")


@pytest.mark.parametrize("way", ["scan", "step"])
def test_filtering_agrees_with_the_port(golden: dict[str, Tensor], way: str) -> None:
    cell, head = build(golden)
    is_first = torch.zeros(golden["kl"].shape, dtype=torch.bool)
    if way == "scan":
        prior, posterior = observe(
            cell,
            golden["embed"],
            golden["action"],
            is_first,
            prior_noise=golden["prior_noise"],
            posterior_noise=golden["posterior_noise"],
        )
    else:
        prior, posterior = observe_by_stepping(cell, golden, is_first)
    for name, state in (("prior", prior), ("posterior", posterior)):
        close(state.deter, golden["deter"])
        for field in ("mean", "std", "stoch"):
            close(getattr(state, field), golden[f"{name}_{field}"])
    close(cell.divergence(posterior, prior), golden["kl"])
    close(head(cell.features(posterior)), golden["reward"])


@pytest.mark.parametrize("free_nats", [1.0, 3.0])
def test_the_kl_with_free_nats_agrees_with_the_port(golden: dict[str, Tensor], free_nats: float) -> None:
    cell, head = build(golden)
    model = WorldModel(torch.nn.Identity(), cell, Decoder(cell.feature_dim, (3,)).double(), head)
    none = torch.zeros(golden["kl"].shape, dtype=torch.bool)
    prior, posterior = observe(
        cell,
        golden["embed"],
        golden["action"],
        none,
        prior_noise=golden["prior_noise"],
        posterior_noise=golden["posterior_noise"],
    )
    obs = torch.zeros(*none.shape, 3, dtype=torch.float64)
    batch = Batch(obs=obs, action=golden["action"], reward=golden["reward"], is_first=none, terminated=none, mask=~none)
    losses = elbo_loss(model, batch, obs, prior, posterior, free_nats=free_nats)
    close(losses.raw["kl_clipped"], golden[f"kl_free_nats_{free_nats:.0f}_mean"])
    close(losses.raw["kl"], golden["kl"].mean())
    assert losses.raw["reward"] < 1e-24


@pytest.mark.parametrize("way", ["imagine", "step"])
def test_imagining_agrees_with_the_port(golden: dict[str, Tensor], way: str) -> None:
    cell, head = build(golden)
    expected = load("rssm_imagine")
    fields = [golden["deter"], golden["posterior_stoch"], golden["posterior_mean"], golden["posterior_std"]]
    start = State(*(field[-1] for field in fields))
    if way == "imagine":
        states = imagine(cell, start, expected["action"], noise=expected["noise"])
    else:
        rows = []
        state = start
        for action, noise in zip(expected["action"], expected["noise"], strict=True):
            state = cell.prior(state, action, noise)
            rows.append(state)
        states = map_state(lambda *steps: torch.stack(steps), *rows)
    for field in State._fields:
        close(getattr(states, field), expected[field])
    close(head(cell.features(states)), expected["reward"])


def test_the_convolutions_agree_with_the_port() -> None:
    with np.load(GOLDEN / "conv.npz") as file:
        golden = dict(file)
    random = np.random.RandomState(int(golden["seed"]))

    def draw(listing: np.ndarray) -> dict[str, Tensor]:
        made = {}
        for line in listing:
            name, shape = re.fullmatch(r"(\S+) \((.*)\)", str(line)).groups()
            sizes = [int(size) for size in shape.split(",") if size]
            made[name] = torch.from_numpy((random.randn(*sizes) * 0.05).astype(np.float32))
        return made

    encoder, decoder = ConvEncoder((3, 64, 64)), Decoder(230, (3, 64, 64))
    encoder.load_state_dict(rename_kaixhin("encoder", draw(golden["encoder_params"])))
    decoder.load_state_dict(rename_kaixhin("observation_model", draw(golden["decoder_params"])))
    images = torch.from_numpy((random.rand(2, 3, 64, 64) - 0.5).astype(np.float32))
    belief = torch.from_numpy(random.randn(2, 200).astype(np.float32))
    state = torch.from_numpy(random.randn(2, 30).astype(np.float32))
    with torch.no_grad():
        embed, decoded = encoder(images), decoder(torch.cat([belief, state], -1))

    def near(got: Tensor, name: str) -> None:
        close(got, torch.from_numpy(golden[name]), atol=1e-5)

    near(embed, "embed")
    near(decoded.mean((2, 3)), "image_mean")
    near(decoded.std((2, 3)), "image_std")
    near(decoded[:, :, :8, :8], "image_corner")
    near(decoded[:, :, 28:36, 28:36], "image_centre")

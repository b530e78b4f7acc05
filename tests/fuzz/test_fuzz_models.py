"""Encoders, decoders, heads, the world model and what goes with them, fuzzed; cells are in `test_fuzz_cells`."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fuzzing import Entry, fuzz
from torch import nn

from planet_lib import models
from planet_lib.models.kaixhin import rename_kaixhin

torch.manual_seed(0)
FEATURES, IMAGE, VECTOR = 7, (3, 8, 10), 4
SIZES = {"hidden_dim": 5}
PARTS = {
    "ConvEncoder": models.ConvEncoder(IMAGE, depth=2, embed_dim=6),
    "PatchEncoder": models.PatchEncoder(IMAGE, patch=2, patch_dim=3, embed_dim=6),
    "VectorEncoder": models.VectorEncoder(VECTOR, embed_dim=6),
    "Decoder": models.Decoder(FEATURES, IMAGE, depth=2, seed_dim=4),
    "PatchDecoder": models.PatchDecoder(FEATURES, IMAGE, patch=2, patch_dim=3, hidden_dim=5, draw_dim=4),
    "RewardHead": models.RewardHead(FEATURES, hidden_dim=5),
    "ContinueHead": models.ContinueHead(FEATURES, hidden_dim=5),
}
PARTS["DictEncoder"] = models.DictEncoder({"camera": PARTS["ConvEncoder"], "joints": PARTS["VectorEncoder"]})
PARTS["DictDecoder"] = models.DictDecoder({"camera": PARTS["Decoder"], "joints": models.Decoder(FEATURES, (VECTOR,))})
CELL = models.RSSMCell(2, 6, deter_dim=4, stoch_dim=3, hidden_dim=5)
HEAD = models.RewardHead(FEATURES)


def untouched(_):
    """The weights of all parts, and torch's random numbers, which an error must leave alone."""
    versions = tuple(value._version for part in PARTS.values() for value in part.parameters())
    return versions, torch.get_rng_state().numpy().tobytes()


def same(one, other):
    torch.testing.assert_close(one, other, equal_nan=True, rtol=1e-4, atol=1e-5)


def encodes(lead_and_obs):
    """Whether an encoder that was made takes what it says that it does, and its sizes are ints."""

    def check(given, encoder):
        embed = encoder(lead_and_obs(encoder))
        assert type(encoder.embed_dim) is int
        assert embed.shape == (2, 3, encoder.embed_dim)

    return check


def images(encoder):
    assert all(type(size) is int for size in encoder.image_shape)
    return torch.zeros(2, 3, *encoder.image_shape)


def decodes(given, decoder):
    assert type(decoder.feature_dim) is int
    assert all(type(size) is int for size in decoder.obs_shape)
    assert decoder(torch.zeros(2, 3, decoder.feature_dim)).shape == (2, 3, *decoder.obs_shape)


def rewards(given, head):
    assert head(torch.zeros(2, 3, head.feature_dim)).shape == (2, 3)


def plainly(part, argument):
    """Whether the answer is the one to the same numbers, in plain tensors of their own."""

    def plain(value):
        return value.detach().clone().contiguous() if isinstance(value, torch.Tensor) else value

    def check(given, got):
        value = given[argument]
        value = {name: plain(item) for name, item in value.items()} if isinstance(value, dict) else plain(value)
        same(got, part(value))
        tensor = next(iter(got.values())) if isinstance(got, dict) else got
        assert len(tensor) == len(next(iter(value.values())) if isinstance(value, dict) else value)

    return check


def made(name, valid, check, **more):
    return Entry(f"models.{name}", getattr(models, name), valid, check, **more)


def called(name, argument, value, **more):
    part = PARTS[name]
    valid = {argument: value}
    return Entry(f"models.{name}.forward", part, valid.copy, plainly(part, argument), state=untouched, **more)


def joins(given, encoder):
    obs = {name: torch.zeros(2, *getattr(part, "image_shape", (VECTOR,))) for name, part in given["encoders"].items()}
    assert encoder(obs).shape == (2, encoder.embed_dim)


def splits(given, decoder):
    predicted = decoder(torch.zeros(2, decoder.feature_dim))
    assert {name: mean.shape[1:] for name, mean in predicted.items()} == {
        name: part.obs_shape for name, part in given["decoders"].items()
    }


class Loose(nn.Module):
    """A part with sizes that are none."""

    def __init__(self, **sizes):
        super().__init__()
        vars(self).update(sizes)

    def __repr__(self):
        return f"Loose({', '.join(f'{name}={size!r}' for name, size in vars(self).items() if 'dim' in name)})"


WRONG_SIZES = ("6", 6.5, None, -1, True, torch.ones(2), np.ones(2), 10**30)
WRONG_PARTS = [Loose(embed_dim=size, feature_dim=size) for size in WRONG_SIZES]
WRONG_CELLS = [
    models.RSSMCell,
    models.RSSMCell(2, 7),
    SimpleNamespace(action_dim=2, feature_dim=7, noise_dim=3),
    *(SimpleNamespace(action_dim=2, feature_dim=size, noise_dim=3, prior=print) for size in WRONG_SIZES),
    SimpleNamespace(action_dim=2, feature_dim=7, noise_dim=3, prior=None),
    *(SimpleNamespace(action_dim=2, feature_dim=7, noise_dim=3, prior=print, embed_dim=size) for size in ("6", 2.5)),
]


def has_parts(given, model):
    named = {name: getattr(model, name) for name in given}
    assert all(named[name] is part for name, part in given.items())
    assert model.cell.action_dim >= 1


def is_glorot(given, nothing):
    assert nothing is None
    for layer in given["module"].modules():
        if isinstance(layer, nn.Linear):
            bound = (6 / sum(layer.weight.shape)) ** 0.5
            assert layer.weight.is_meta or float(layer.weight.detach().abs().max()) <= bound * 2**0.5


def weights_of(given):
    module = given["module"]
    values = list(module.parameters()) if isinstance(module, nn.Module) else []
    return [value._version for value in values], torch.get_rng_state().numpy().tobytes()


def whole_numbers():
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int64), requires_grad=False)
    return nn.Sequential(nn.Linear(2, 2), layer)


def renames(given, renamed):
    assert sorted(id(value) for value in renamed.values()) == sorted(id(value) for value in given["weights"].values())
    assert all(name.startswith("layers.") for name in renamed)


IMAGES, VECTORS = torch.rand(2, 3, *IMAGE) - 0.5, torch.randn(2, 3, VECTOR)
ENTRIES = [
    made("ConvEncoder", lambda: {"image_shape": IMAGE, "depth": 2, "embed_dim": 6}, encodes(images)),
    made(
        "PatchEncoder",
        lambda: {"image_shape": IMAGE, "patch": 2, "patch_dim": 3, "embed_dim": 6},
        encodes(images),
    ),
    made(
        "VectorEncoder",
        lambda: {"obs_dim": VECTOR, "embed_dim": 6, "num_layers": 2},
        encodes(lambda encoder: torch.zeros(2, 3, encoder.obs_dim)),
    ),
    made(
        "DictEncoder",
        lambda: {"encoders": {"camera": PARTS["ConvEncoder"], "joints": PARTS["VectorEncoder"]}},
        joins,
        also={"encoders": [{"one": part} for part in WRONG_PARTS] + [{"keys": HEAD}, {"": HEAD}, {"a.b": HEAD}]},
    ),
    made(
        "Decoder",
        lambda: {"feature_dim": FEATURES, "obs_shape": IMAGE, "depth": 2, "seed_dim": 4, "num_layers": 2, **SIZES},
        decodes,
        also={"obs_shape": [(5,), [5], (0,), (2.0,), (True,), ("5",), (3, 5, 64), (1, 2), np.array([3, 8, 8])]},
    ),
    made(
        "PatchDecoder",
        lambda: {
            "feature_dim": FEATURES,
            "image_shape": IMAGE,
            "patch": 2,
            "patch_dim": 3,
            "hidden_dim": 5,
            "draw_dim": 4,
        },
        decodes,
    ),
    made(
        "DictDecoder",
        lambda: {"decoders": dict(PARTS["DictDecoder"].decoders)},
        splits,
        also={"decoders": [{"one": part} for part in WRONG_PARTS] + [{"a": HEAD, "b": models.RewardHead(3)}]},
    ),
    *(
        made(name, lambda: {"feature_dim": FEATURES, "hidden_dim": 5, "num_hidden": 2, "activation": "elu"}, rewards)
        for name in ("RewardHead", "ContinueHead")
    ),
    called("ConvEncoder", "images", IMAGES),
    called("PatchEncoder", "images", IMAGES),
    called("VectorEncoder", "obs", VECTORS),
    called("DictEncoder", "obs", {"camera": IMAGES, "joints": VECTORS}),
    *(
        called(name, "features", torch.randn(2, 3, FEATURES))
        for name in ("Decoder", "PatchDecoder", "DictDecoder", "RewardHead", "ContinueHead")
    ),
    made(
        "WorldModel",
        lambda: {
            "encoder": PARTS["ConvEncoder"],
            "cell": CELL,
            "decoder": PARTS["Decoder"],
            "reward_head": PARTS["RewardHead"],
            "continue_head": PARTS["ContinueHead"],
        },
        has_parts,
        also={
            "cell": WRONG_CELLS,
            "encoder": WRONG_PARTS,
            **{name: [*WRONG_PARTS, models.RewardHead(3)] for name in ("decoder", "reward_head", "continue_head")},
        },
        known_as={"cell": ("cell.embed_dim", "cell.feature_dim")},
    ),
    made(
        "init_glorot_",
        lambda: {"module": models.WorldModel(PARTS["VectorEncoder"], CELL, models.Decoder(7, (4,)), HEAD)},
        is_glorot,
        state=weights_of,
        also={
            "module": [
                nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)),
                whole_numbers(),
                nn.Linear(2, 2, dtype=torch.complex64),
                nn.Linear(2, 2, device="meta"),
                nn.Linear(2, 2, bias=False, dtype=torch.float16),
            ]
        },
    ),
    Entry(
        "models.kaixhin.rename_kaixhin",
        rename_kaixhin,
        lambda: {"part": "reward_model", "weights": {"fc1.weight": torch.ones(2), "fc3.bias": torch.ones(1)}},
        renames,
        also={"part": ["encoder", "actor"], "weights": [{3: 4}, {"fc7.bias": 1}, {None: 1}]},
    ),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_answers_rightly_or_names_what_is_wrong(entry):
    fuzz(entry)

"""The entries of planet_lib.data that turn one value into another, and those of planet_lib.types, fuzzed."""

import numpy as np
import pytest
import torch
from fuzzing import Entry, fuzz

from planet_lib.data import dequantise, prepare, random_policy, shapes_of, to_uint8
from planet_lib.types import Batch, Episode, Losses

LEFT_OUT = {
    "NonFiniteError": "an exception",
    "data.Environment": "a protocol: run_episode's entry brings hostile environments",
    "data.VectorEnvironment": "a protocol: run_episodes' entry brings hostile ones",
    "data.Policy": "a protocol: both entries bring hostile policies",
    "types.Array": "an alias for annotations",
    "types.Observation": "an alias for annotations",
    "types.State": "a NamedTuple without checks or methods",
    "types.Episode": "a NamedTuple without checks or methods: replay and files check it",
    "types.Plan": "a NamedTuple without checks or methods",
}
OTHER_DTYPES = (
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.bool,
    torch.complex64,
    "float32",
    float,
)


def pixels(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def check_levels(obs, image, bits, noise):
    """Each image is its level and noise in it; without given noise, exactly inside where the type is wide enough."""
    if obs.is_meta:
        assert image.is_meta
        assert image.shape == obs.shape
        return
    levels = (obs >> (8 - int(bits))).double()
    if noise is not None:
        wanted = (levels + noise.detach().double()) / 2 ** int(bits) - 0.5
        wanted = wanted.float().to(image.dtype) if image.dtype != torch.float64 else wanted
        torch.testing.assert_close(image.detach(), wanted, rtol=1e-2, atol=1e-2, equal_nan=True)
    elif image.dtype in (torch.float32, torch.float64):
        assert torch.equal(torch.floor((image.double() + 0.5) * 2 ** int(bits)), levels)
    else:
        torch.testing.assert_close(image.double(), levels / 2 ** int(bits) - 0.5, atol=2.0 ** -int(bits) + 1e-2, rtol=0)


def check_dequantised(given, image):
    assert given["out"] is None or image is given["out"]
    assert image.dtype == given["dtype"]
    check_levels(given["obs"], image, given["bits"], given["noise"])


def check_prepared(given, answer):
    obs, noise = given["obs"], given["noise"]
    if not isinstance(obs, dict):
        obs, answer, noise = {"": obs}, {"": answer}, {"": noise}
    assert list(answer) == list(obs)
    for name, value in obs.items():
        if value.is_floating_point():
            assert answer[name] is value
        else:
            assert answer[name].dtype == given["dtype"]
            check_levels(value, answer[name], given["bits"], None if noise is None else noise.get(name))


def check_bytes(given, answer):
    image = given["image"].detach()
    assert answer.dtype == torch.uint8
    assert answer.shape == image.shape
    assert answer.device == image.device
    if not image.is_meta:
        scaled = ((image.double() + 0.5) * 256).nan_to_num(nan=0.0).clamp(0, 255.5).floor()
        assert (answer.double() - scaled).abs().max().nan_to_num() <= 1 if answer.numel() else True


def check_policy(given, policy):
    size = int(given["action_dim"])
    if size > 10_000:
        return
    action, state = policy(torch.zeros(3, 5), torch.ones(3, dtype=torch.bool), "kept")
    assert action.shape == (3, size)
    assert action.dtype == torch.float32
    assert state == "kept"
    if given["one_hot"]:
        assert action.sum(1).eq(1).all()
        assert action.max(1).values.eq(1).all()
    else:
        assert action.ge(-1).all()
        assert action.lt(1).all()


def episode(length=4):
    rows = np.arange(length)
    return Episode(
        obs={"camera": np.zeros((length, 1, 3, 5), np.uint8), "joints": np.ones((length, 2), np.float32)},
        action=(rows[:, None] / 10).astype(np.float32),
        reward=rows.astype(np.float32),
        is_first=rows == 0,
        terminated=np.zeros(length, np.bool_),
        truncated=rows == length - 1,
    )


def check_shapes(given, answer):
    obs, action_dim = given["episode"].obs, given["episode"].action.shape[1]
    wanted = {name: value.shape[1:] for name, value in obs.items()} if isinstance(obs, dict) else obs.shape[1:]
    assert answer == (wanted, action_dim)


def batch():
    flags = torch.zeros(3, 2, dtype=torch.bool)
    obs = {"camera": pixels(3, 2, 1, 4, 4), "joints": torch.rand(3, 2, 2)}
    return Batch(obs, torch.rand(3, 2, 1), torch.rand(3, 2), is_first=flags, terminated=flags, mask=~flags)


def check_moved(given, moved):
    device = torch.device(given["device"])
    fields = [*moved.obs.values(), *moved[1:]]
    assert all(field.device.type == device.type for field in fields)
    assert [field.dtype for field in fields] == [
        field.dtype for field in [*given["batch"].obs.values(), *given["batch"][1:]]
    ]
    assert device.type != "cpu" or all(
        torch.equal(field, old)
        for field, old in zip(fields, [*given["batch"].obs.values(), *given["batch"][1:]], strict=True)
    )


def losses():
    return {
        "total": torch.tensor(3.0),
        "raw": {"obs": torch.tensor(1.0), "kl": torch.tensor(2.0)},
        "scaled": {"kl": torch.tensor(2.0)},
    }


def check_bad_terms(given, found):
    """Terms whose number is finite are not named, others are, once; a scaled one only where the raw one is finite."""
    bad = [name for name, value in given["raw"].items() if not torch.isfinite(value)]
    bad_scaled = [name for name, value in given["scaled"].items() if not torch.isfinite(value)]
    assert sorted(map(str, found)) == sorted([*map(str, bad), *(f"{n} (scaled)" for n in bad_scaled if n not in bad)])


def check_detached(given, answer):
    assert all(not value.requires_grad for value in (answer.total, *answer.raw.values(), *answer.scaled.values()))
    assert list(answer.raw) == list(given["raw"])


ENTRIES = [
    Entry(
        "data.dequantise",
        dequantise,
        lambda: {
            "obs": pixels(2, 3, 4, 4),
            "bits": 5,
            "noise": torch.rand(2, 3, 4, 4),
            "dtype": torch.float32,
            "out": torch.empty(2, 3, 4, 4),
        },
        check_dequantised,
        state=lambda given: torch.get_rng_state().sum().item(),
        also={
            "dtype": OTHER_DTYPES,
            "bits": (8, 1, 9),
            "obs": (pixels(6, 50, 1, 1, 1),),
            "out": (None,),
            "noise": (None,),
        },
    ),
    Entry(
        "data.dequantise",
        lambda **given: dequantise(**given, noise=None, out=None),
        lambda: {"obs": pixels(20, 30, 1, 2, 2), "bits": 5, "dtype": torch.float32},
        lambda given, image: check_dequantised({**given, "noise": None, "out": None}, image),
        state=lambda given: torch.get_rng_state().sum().item(),
        also={"dtype": OTHER_DTYPES, "bits": (8, 1, 9)},
    ),
    Entry(
        "data.prepare",
        prepare,
        lambda: {
            "obs": {"camera": pixels(2, 3, 1, 4, 4), "joints": torch.rand(2, 3, 2)},
            "bits": 5,
            "noise": {"camera": torch.rand(2, 3, 1, 4, 4)},
            "dtype": torch.float32,
        },
        check_prepared,
        state=lambda given: torch.get_rng_state().sum().item(),
        also={"dtype": OTHER_DTYPES, "obs": (pixels(2, 3), torch.rand(2), {"a": {"b": pixels(2)}}), "noise": (None,)},
    ),
    Entry("data.to_uint8", to_uint8, lambda: {"image": torch.rand(2, 3, 4, 4) - 0.5}, check_bytes),
    Entry(
        "data.random_policy",
        random_policy,
        lambda: {"action_dim": 2, "generator": np.random.default_rng(0), "one_hot": False},
        check_policy,
        also={"generator": (torch.Generator(), np.random.RandomState(0), np.random.PCG64(0)), "one_hot": (True, "no")},
    ),
    Entry("data.shapes_of", shapes_of, lambda: {"episode": episode()}, check_shapes),
    Entry(
        "types.Batch.to",
        lambda batch, device: batch.to(device),
        lambda: {"batch": batch(), "device": "cpu"},
        check_moved,
        keep=["batch"],
        also={"device": ("meta", "cuda", "cuda:99", "cpu:7", torch.device("meta"), 0, "xpu")},
    ),
    Entry("types.Losses.non_finite", lambda **given: Losses(**given).non_finite(), losses, check_bad_terms),
    Entry("types.Losses.detach", lambda **given: Losses(**given).detach(), losses, check_detached),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_answers_rightly_or_names_what_is_wrong(entry):
    fuzz(entry)

"""Bytes to floats and back: exact levels, uniform noise, and the inverse."""

from functools import reduce
from itertools import combinations
from operator import xor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from planet_lib.data import dequantise, prepare, to_uint8
from planet_lib.data import pixels as pixels_module

pixels = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=5, max_side=5)).map(torch.from_numpy)
every_byte = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)


@pytest.fixture(scope="module")
def small_pieces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels_module, "_PIXELS_AT_ONCE", 200)
        yield


def replay_seed(seed, call):
    """What a call returns when torch's generator starts from a seed."""
    torch.manual_seed(seed)
    return call()


def levels(image, bits):
    return ((image.double() + 0.5) * 2**bits).floor()


def test_levels_by_hand():
    obs = torch.tensor([0, 7, 8, 128, 255], dtype=torch.uint8)
    half = torch.full((5,), 0.5)
    expected = torch.tensor([0.5, 0.5, 1.5, 16.5, 31.5]) / 32 - 0.5
    torch.testing.assert_close(dequantise(obs, noise=half), expected, rtol=0, atol=0)


def test_eight_bits_by_hand():
    obs = torch.tensor([0, 1, 255], dtype=torch.uint8)
    image = dequantise(obs, bits=8, noise=torch.tensor([0.0, 0.5, 0.25]), dtype=torch.float64)
    expected = torch.tensor([-0.5, 1.5 / 256 - 0.5, 255.25 / 256 - 0.5], dtype=torch.float64)
    torch.testing.assert_close(image, expected, rtol=0, atol=0)


@given(obs=pixels, bits=st.integers(1, 8), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_drawn_noise_stays_in_range_and_in_the_level_of_its_pixel(obs, bits, dtype):
    kept = obs.clone()
    image = dequantise(obs, bits=bits, dtype=dtype)
    assert image.dtype == dtype
    assert image.shape == obs.shape
    assert ((image >= -0.5) & (image < 0.5)).all()
    assert torch.equal(levels(image, bits), torch.floor(obs.double() / 2 ** (8 - bits)))
    assert torch.equal(obs, kept)


@given(obs=pixels, bits=st.integers(1, 8), data=st.data())
def test_given_noise_is_the_equation(obs, bits, data):
    noise = data.draw(hnp.arrays(np.float64, tuple(obs.shape), elements=st.floats(0, 0.999)).map(torch.from_numpy))
    expected = (torch.floor(obs.double() / 2 ** (8 - bits)) + noise) / 2**bits - 0.5
    torch.testing.assert_close(dequantise(obs, bits=bits, noise=noise, dtype=torch.float64), expected)
    torch.testing.assert_close(dequantise(obs, bits=bits, noise=noise), expected.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 5, 8])
def test_drawn_noise_is_uniform_within_the_level(bits):
    torch.manual_seed(0)
    obs = every_byte.expand(1000, 1, 16, 16)
    noise = (dequantise(obs, bits=bits, dtype=torch.float64) + 0.5) * 2**bits % 1
    assert torch.equal(noise * 256 % 1, torch.full_like(noise, 0.5))  # the centres of 256 equal parts
    counts = torch.histc(noise, bins=256, min=0, max=1)
    expected = noise.numel() / 256
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert 170 < chi_square < 360  # 255 degrees of freedom: about 255 +- 23
    assert noise.mean().item() == pytest.approx(0.5, abs=0.003)
    assert noise.var().item() == pytest.approx(1 / 12, abs=0.001)


def test_noise_of_neighbours_is_uncorrelated():
    torch.manual_seed(1)
    noise = dequantise(torch.zeros(80000, dtype=torch.uint8)).double()
    for lag in (1, 2, 4, 7, 8, 16):
        pair = torch.stack([noise[:-lag], noise[lag:]])
        assert abs(torch.corrcoef(pair)[0, 1].item()) < 0.015  # four standard errors


def test_the_seed_replays_the_noise_and_two_calls_differ():
    obs = every_byte.expand(3, 3, 16, 16)
    torch.manual_seed(7)
    first, second = dequantise(obs), dequantise(obs)
    torch.manual_seed(7)
    assert torch.equal(first, dequantise(obs))
    assert not torch.equal(first, second)


def test_a_strided_view_gives_the_same_image_as_its_copy():
    obs = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    torch.manual_seed(2)
    image = dequantise(obs)
    torch.manual_seed(2)
    assert torch.equal(image, dequantise(obs.contiguous()))


def test_no_pixels_give_no_image():
    assert dequantise(torch.zeros(0, 3, 4, 4, dtype=torch.uint8)).shape == (0, 3, 4, 4)


grid = st.tuples(st.integers(18, 24), st.integers(18, 40), st.integers(1, 3), st.integers(1, 9))


@pytest.mark.usefixtures("small_pieces")
@settings(max_examples=20)
@given(shape=grid, bits=st.integers(1, 8), dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_many_frames_get_the_same_images_in_pieces_and_whole(shape, bits, dtype):
    obs = torch.randint(0, 256, shape, dtype=torch.uint8)
    assert pixels_module._is_grid(obs)
    by_t, by_b, by_both = replay_seed(5, lambda: pixels_module._noise_tables(obs))
    noise = torch.stack(
        [torch.stack([by_t[t] ^ by_b[b] ^ by_both[t + b] for b in range(shape[1])]) for t in range(shape[0])]
    ).view(shape)
    expected = ((obs >> (8 - bits)).double() + (noise.double() + 0.5) / 256) / 2**bits - 0.5
    out = torch.full(shape, 9, dtype=dtype)
    image = replay_seed(5, lambda: dequantise(obs, bits=bits, dtype=dtype, out=out))
    assert image is out
    assert torch.equal(image, expected.to(torch.float32).to(dtype) if dtype == torch.bfloat16 else expected.to(dtype))
    strided = obs.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(replay_seed(5, lambda: dequantise(strided, bits=bits, dtype=dtype)), image)


def test_no_five_rows_of_a_grid_share_noise_that_cancels():
    size = 4
    places = [(t, b) for t in range(size) for b in range(size)]
    rows = [1 << t | 1 << (size + b) | 1 << (2 * size + t + b) for t, b in places]
    for count in range(1, 6):
        assert all(reduce(xor, chosen) for chosen in combinations(rows, count))
    assert not all(reduce(xor, chosen) for chosen in combinations(rows, 6))  # six can: the statement is sharp


def test_the_noise_of_many_frames_is_uniform_and_fresh_in_every_row():
    torch.manual_seed(0)
    first, second = (dequantise(torch.zeros(40, 40, 3, 8, 8, dtype=torch.uint8)).double() for _ in range(2))
    noise = ((first + 0.5) * 32 % 1).flatten(2)
    counts = torch.histc(noise, bins=256, min=0, max=1)
    chi_square = ((counts - noise.numel() / 256) ** 2 / (noise.numel() / 256)).sum()
    assert 170 < chi_square < 360  # 255 degrees of freedom: about 255 +- 23
    rows = noise.reshape(1600, -1)
    assert len(rows.unique(dim=0)) == 1600
    correlation = torch.corrcoef(rows).fill_diagonal_(0)
    assert correlation.abs().max() < 0.45  # 192 values a row: six standard errors
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (
            torch.zeros(1, 16, 16, dtype=torch.float64),
            r"out must be torch.float32 \[1, 16, 16\], .* got a torch.float64",
        ),
        (torch.zeros(16, 16), r"out must be .* got a torch.float32 tensor, \[16, 16\] on cpu"),
        (torch.zeros(1, 16, 32)[..., ::2], "out must be .* contiguous on cpu"),
        (np.zeros((1, 16, 16), np.float32), "out must be .* got ndarray, none"),
    ],
)
def test_an_out_that_does_not_fit_is_refused(out, message):
    with pytest.raises(ValueError, match=message):
        dequantise(every_byte, out=out)


@pytest.mark.parametrize("noise", [None, torch.full((1, 16, 16), 0.25)])
def test_a_result_is_written_where_it_is_wanted(noise):
    out = torch.empty(1, 16, 16, dtype=torch.float16)
    image = replay_seed(3, lambda: dequantise(every_byte, noise=noise, dtype=torch.float16, out=out))
    assert image is out
    assert torch.equal(out, replay_seed(3, lambda: dequantise(every_byte, noise=noise, dtype=torch.float16)))


@pytest.mark.parametrize("given_noise", [False, True])
@pytest.mark.parametrize("obs", [every_byte, every_byte.expand(20, 30, 1, 16, 16)], ids=["few", "many"])
def test_dequantise_compiles_as_one_graph(obs, given_noise):
    torch.compiler.reset()
    compiled = torch.compile(dequantise, fullgraph=True, backend="eager")
    noise = torch.rand(obs.shape) if given_noise else None
    expected = replay_seed(3, lambda: dequantise(obs, noise=noise))
    assert torch.equal(replay_seed(3, lambda: compiled(obs, noise=noise)), expected)
    out = torch.empty(obs.shape)
    assert torch.equal(replay_seed(3, lambda: compiled(obs, noise=noise, out=out)), expected)
    assert torch.equal(out, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_dequantise_on_a_gpu_never_waits_for_it():
    obs = every_byte.expand(4, 3, 16, 16).cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        image = dequantise(obs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert image.device == obs.device
    assert torch.equal(levels(image, 5).cpu(), (obs >> 3).double().cpu())


@given(obs=pixels)
def test_eight_bits_there_and_back_is_the_identity(obs):
    assert torch.equal(to_uint8(dequantise(obs, bits=8)), obs)


@given(obs=pixels, bits=st.integers(1, 8))
def test_there_and_back_keeps_the_leading_bits(obs, bits):
    assert torch.equal(to_uint8(dequantise(obs, bits=bits)) >> (8 - bits), obs >> (8 - bits))


@given(obs=pixels, dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
def test_there_and_back_without_noise_is_the_quantised_image_in_every_type(obs, dtype):
    image = dequantise(obs, noise=torch.zeros(obs.shape), dtype=dtype)
    assert image.dtype == dtype
    assert torch.equal(to_uint8(image), (obs >> 3) << 3)


def test_to_uint8_clips_and_shows_nan_as_black():
    image = torch.tensor([-9.0, -0.5, -0.499, 0.0, 0.498, 0.5, 9.0, float("nan"), float("inf"), -float("inf")])
    assert to_uint8(image.requires_grad_()).tolist() == [0, 0, 0, 128, 255, 255, 255, 0, 255, 0]
    assert image[0].item() == -9


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"obs": torch.zeros(1, 2, 2)},
            TypeError,
            "obs must be a uint8 tensor of pixels, got a torch.float32 tensor; pass",
        ),
        ({"obs": np.zeros((1, 2, 2), np.uint8)}, TypeError, "obs must be a uint8 tensor of pixels, got ndarray"),
        ({"bits": 0}, ValueError, "bits must be between 1 and 8, got 0"),
        ({"bits": 9}, ValueError, "bits must be between 1 and 8, got 9"),
        ({"dtype": torch.uint8}, TypeError, "dtype must be a floating type, got torch.uint8"),
        ({"noise": torch.zeros(16, 16)}, ValueError, r"the shape of obs, \[1, 16, 16\], got \[16, 16\]"),
        (
            {"noise": torch.zeros(1, 16, 16).long()},
            TypeError,
            "noise must be a floating tensor .* got a torch.int64 tensor",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        dequantise(**{"obs": every_byte, **arguments})


def test_to_uint8_refuses_what_is_bytes_already():
    with pytest.raises(TypeError, match=r"image must be a floating tensor .* got a torch.uint8 tensor"):
        to_uint8(every_byte)


def test_prepare_dequantises_bytes_and_lets_floats_pass_as_they_are():
    noise, vector = torch.rand(1, 16, 16), torch.tensor([3.0, -9.0], dtype=torch.float64)
    image = prepare(every_byte, bits=3, noise=noise, dtype=torch.float64)
    assert torch.equal(image, dequantise(every_byte, bits=3, noise=noise, dtype=torch.float64))
    assert prepare(vector) is vector
    half = vector.half()
    assert prepare(half, dtype=torch.float64) is half


def test_prepare_goes_through_a_dictionary_entry_by_entry_and_leaves_it_alone():
    obs = {"joints": torch.tensor([2.0]), "camera": every_byte, "wrist": every_byte[:, :2]}
    noise = {"wrist": torch.rand(1, 2, 16), "camera": torch.rand(1, 16, 16)}
    floats = prepare(obs, bits=4, noise=noise)
    assert list(floats) == ["joints", "camera", "wrist"]
    assert floats["joints"] is obs["joints"]
    for name in ("camera", "wrist"):
        assert torch.equal(floats[name], dequantise(obs[name], bits=4, noise=noise[name]))
    assert floats is not obs
    assert obs["camera"] is every_byte


def test_prepare_draws_other_noise_for_each_entry_and_call():
    torch.manual_seed(0)
    obs = {"left": every_byte, "right": every_byte}
    once, again = prepare(obs), prepare(obs)
    assert not torch.equal(once["left"], once["right"])
    assert not torch.equal(once["left"], again["left"])
    assert torch.equal(levels(once["left"], 5), levels(again["right"], 5))


def test_noise_for_floats_is_not_used():
    obs = {"camera": every_byte, "joints": torch.ones(2)}
    noise = {"camera": torch.zeros(1, 16, 16), "joints": torch.rand(2)}
    assert prepare(obs, noise=noise)["joints"].tolist() == [1, 1]


def test_prepare_never_reads_a_value_and_so_never_waits_for_the_device():
    obs = {"camera": every_byte.to("meta"), "joints": torch.ones(2, device="meta")}  # where reading one is an error
    floats = prepare(obs, noise={"camera": torch.zeros(1, 16, 16, device="meta")})
    assert (floats["camera"].device.type, floats["camera"].dtype) == ("meta", torch.float32)
    assert prepare(obs)["camera"].shape == (1, 16, 16)


def test_prepare_compiles_as_one_graph():
    obs = {"camera": every_byte, "joints": torch.ones(2)}
    noise = {"camera": torch.rand(1, 16, 16)}
    compiled = torch.compile(prepare, fullgraph=True, backend="eager")
    for name, value in compiled(obs, noise=noise).items():
        assert torch.equal(value, prepare(obs, noise=noise)[name])


@pytest.mark.parametrize(
    ("obs", "noise", "error", "message"),
    [
        ({}, None, ValueError, "obs must have at least one entry, got an empty dictionary"),
        (np.zeros(2), None, TypeError, "obs must be a uint8 or float tensor, got ndarray"),
        (torch.zeros(2).long(), None, TypeError, r"obs must be uint8 \(images\) or float \(vectors\), got torch.int64"),
        ({"a": torch.zeros(2) > 0}, None, TypeError, r"obs\['a'\] must be uint8 .* got torch.bool"),
        ({"a": {"b": 1}}, None, TypeError, r"obs\['a'\] must be a uint8 or float tensor, got dict; flatten nested"),
        (
            every_byte,
            {"a": every_byte},
            TypeError,
            "noise must be a tensor or None, as obs is no dictionary, got a dict",
        ),
        ({"a": every_byte}, torch.zeros(1), TypeError, "noise must be a dictionary .* got a torch.float32 tensor"),
        (
            {"a": every_byte},
            {},
            ValueError,
            r"noise must have the entries \['a'\], those of obs that are uint8, got \[\]",
        ),
        ({"a": torch.zeros(1)}, {"b": torch.zeros(1)}, ValueError, r"noise must have the entries \[\], .* got \['b'\]"),
    ],
)
def test_what_prepare_cannot_take_is_named_with_its_entry(obs, noise, error, message):
    with pytest.raises(error, match=message):
        prepare(obs, noise=noise)

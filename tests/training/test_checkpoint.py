import errno
import os
import pickle
import zipfile
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from planet_lib.models import load_kaixhin_checkpoint
from planet_lib.training import RunDirectory, checkpoint, read_metrics
from planet_lib.training.checkpoint import (
    check_compatible,
    load_checkpoint,
    previous_checkpoint,
    rng_state,
    save_checkpoint,
    set_rng_state,
)


class Pair(NamedTuple):
    a: int
    b: int


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (open, (str(self.place), "w"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pt"


def test_a_checkpoint_gives_back_weights_optimiser_and_numbers_exactly(path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimiser.step()
    payload = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "env_steps": 2**40,
        "best": -float("inf"),
        "settings": {"image_shape": (3, 64, 64), "names": ["a", None, True]},
    }
    save_checkpoint(path, payload)
    back = load_checkpoint(path)
    assert {k: back[k] for k in ("env_steps", "best", "settings")} == {
        k: payload[k] for k in ("env_steps", "best", "settings")
    }
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    other.load_state_dict(back["model"])
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    fresh = torch.optim.Adam(other.parameters())
    fresh.load_state_dict(back["optimiser"])
    assert torch.equal(fresh.state_dict()["state"][0]["exp_avg"], optimiser.state_dict()["state"][0]["exp_avg"])


def test_the_checkpoint_before_stays_beside_the_new_one(path):
    for step in (1, 2, 3):
        save_checkpoint(path, {"step": step})
    assert load_checkpoint(path) == {"step": 3}
    assert load_checkpoint(previous_checkpoint(path)) == {"step": 2}
    assert sorted(os.listdir(path.parent)) == ["checkpoint-previous.pt", "checkpoint.pt"]


def test_without_hard_links_the_checkpoint_before_is_copied(path, monkeypatch):
    def no_links(*args):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    for step in (1, 2, 3):
        save_checkpoint(path, {"step": step})
    assert load_checkpoint(path) == {"step": 3}
    assert load_checkpoint(previous_checkpoint(path)) == {"step": 2}


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("call", [1, 2])
def test_a_full_disk_at_any_moment_leaves_the_old_checkpoint_and_no_litter(path, monkeypatch, failing, call):
    save_checkpoint(path, {"step": 1})
    save_checkpoint(path, {"step": 2})
    real, calls = getattr(os, failing), []

    def full_disk(*args):
        calls.append(args)
        if len(calls) >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full_disk)
        # The directory's own flush may fail silently: the file is in its place by then.
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(path, {"step": 3})
    assert load_checkpoint(path) == {"step": 2}
    assert load_checkpoint(previous_checkpoint(path))["step"] in (1, 2)
    assert sorted(os.listdir(path.parent)) == ["checkpoint-previous.pt", "checkpoint.pt"]


def test_a_disk_that_fills_while_writing_leaves_the_old_checkpoint(path, monkeypatch):
    save_checkpoint(path, {"step": 1})
    write = type(path).write_bytes

    def half(self, data):
        write(self, bytes(data[: len(data) // 2]))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "write_bytes", half)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path) == {"step": 1}
    assert os.listdir(path.parent) == ["checkpoint.pt"]


def test_a_file_with_code_in_it_is_refused_and_the_code_not_run(path, tmp_path):
    torch.save({"format": "planet_lib checkpoint", "version": 1, "payload": {"x": Bomb(tmp_path / "ran")}}, path)
    with pytest.raises(ValueError, match="holds more than plain data and is not loaded: start a new run"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(ValueError, match="is damaged or unreadable"):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_a_truncated_file_is_one_clear_line_at_any_length(path):
    save_checkpoint(path, {"weights": torch.arange(1000.0)})
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(
            ValueError, match=r"checkpoint\.pt is damaged or unreadable \(.*\): start a new run"
        ) as info:
            load_checkpoint(path)
        assert "\n" not in str(info.value)


def test_a_flipped_bit_in_the_weights_is_found(path):
    save_checkpoint(path, {"weights": torch.arange(1000.0)})
    content = bytearray(path.read_bytes())
    place = content.index(torch.tensor(500.0).numpy().tobytes() + torch.tensor(501.0).numpy().tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged or unreadable"):
        load_checkpoint(path)


def test_a_damaged_or_absent_file_names_the_one_before_it(path):
    save_checkpoint(path, {"step": 1})
    save_checkpoint(path, {"step": 2})
    path.write_bytes(b"torn")
    with pytest.raises(ValueError, match=r": copy checkpoint-previous\.pt over it to go on from the one before$"):
        load_checkpoint(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"does not exist: copy checkpoint-previous\.pt over it"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [{"model": 1}, [1, 2], {"format": "another", "version": 1, "payload": {}}])
def test_a_file_of_another_program_is_refused(path, content):
    torch.save(content, path)
    with pytest.raises(ValueError, match="was not written by planet_lib"):
        load_checkpoint(path)


def test_a_newer_version_asks_for_an_update(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_VERSION", 2)
        save_checkpoint(path, {})
    with pytest.raises(ValueError, match="has format version 2, this planet_lib reads up to 1: update planet_lib"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Pair(1, 2), r"payload\['x'\]\[0\] must be .*, got Pair: save its _asdict\(\)"),
        (np.zeros(2), r"payload\['x'\]\[0\] must be .*, got ndarray: save torch.from_numpy"),
        (np.float64(1), r"payload\['x'\]\[0\] must be .*, got float64: save its item\(\)"),
        (torch.float32, r"payload\['x'\]\[0\] must be .*, got dtype: save its state as plain values"),
        ({(1, 2): 3}, r"keys of payload\['x'\]\[0\] must be strings or integers, got \(1, 2\) \(tuple\)"),
    ],
)
def test_what_could_not_be_loaded_again_is_refused_before_writing(path, value, message):
    save_checkpoint(path, {"step": 1})
    with pytest.raises(TypeError, match=message):
        save_checkpoint(path, {"x": [value]})
    assert load_checkpoint(path) == {"step": 1}
    assert os.listdir(path.parent) == ["checkpoint.pt"]


def test_a_payload_must_be_a_dict(path):
    with pytest.raises(TypeError, match="payload must be a dict, got list"):
        save_checkpoint(path, [1])


def test_random_states_survive_a_checkpoint_and_repeat_their_numbers(path):
    replay, planner = np.random.default_rng(3), torch.Generator().manual_seed(4)

    def draw():
        return torch.rand(3).tolist(), replay.random(3).tolist(), torch.rand(3, generator=planner).tolist()

    draw()
    save_checkpoint(path, {"rng": rng_state(replay=replay, planner=planner)})
    expected = draw()
    assert draw() != expected
    set_rng_state(load_checkpoint(path)["rng"], replay=replay, planner=planner)
    assert draw() == expected


def test_a_missing_random_state_is_refused_before_any_is_set():
    saved = rng_state()
    torch.rand(1)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="state must hold replay, got torch, cuda"):
        set_rng_state(saved, replay=np.random.default_rng(0))
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="generators must not be named 'torch'"):
        rng_state(torch=torch.Generator())


def test_every_difference_is_listed_in_one_line():
    saved = {"env": "dmc:cartpole-balance", "cell": "rssm", "shape": (3, 64, 64), "seed": 1}
    wanted = {"env": "dmc:walker-walk", "cell": "ssm", "shape": [3, 64, 64], "seed": 2, "obs": "pixels"}
    message = (
        r"^checkpoint was made with env='dmc:cartpole-balance', got env='dmc:walker-walk'; "
        r"cell='rssm', got cell='ssm'; no obs, got obs='pixels': ask for the same settings, or start a new run$"
    )
    with pytest.raises(ValueError, match=message):
        check_compatible(saved, wanted, ["env", "cell", "shape", "obs"])
    check_compatible(saved, wanted, ["shape"])
    check_compatible(saved, wanted, [])


def test_a_whole_checkpoint_without_what_the_program_needs_is_named(path):
    save_checkpoint(path, {"model": {}, "env_steps": 5})
    assert load_checkpoint(path, required=["model"]) == {"model": {}, "env_steps": 5}
    with pytest.raises(ValueError, match="is of another program, it lacks settings, done: start a new run"):
        load_checkpoint(path, required=["settings", "model", "done"])


def test_whatever_is_damaged_a_checkpoint_is_equal_or_refused_in_one_line(path):
    state = {"model": nn.Linear(3, 2).state_dict(), "done": {"episodes": 3, "seed_returns": [1.5, 2.5]}}
    save_checkpoint(path, state)
    whole, random, messages = path.read_bytes(), np.random.default_rng(0), []
    for trial in range(150):
        content = bytearray(whole[: random.integers(len(whole))] if trial % 3 == 0 else whole)
        if trial % 3:
            content[random.integers(len(content))] ^= 1 << random.integers(8)
        path.write_bytes(content)
        try:
            loaded = load_checkpoint(path)
        except ValueError as error:
            messages.append(str(error))
        else:  # padding and timestamps mean nothing
            assert loaded["done"] == state["done"]
            torch.testing.assert_close(loaded["model"], dict(state["model"]), rtol=0.0, atol=0.0)
    assert len(messages) > 75
    assert not any("\n" in message for message in messages)


def test_a_small_file_that_would_unfold_to_a_large_one_is_refused(path, tmp_path):
    save_checkpoint(path, {"weights": torch.zeros(1_000_000)})
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for member in archive.infolist():
            target.writestr(member.filename, archive.read(member))
    assert packed.stat().st_size < 20_000
    with pytest.raises(ValueError, match=r"packed.pt is damaged or unreadable \(got 4[0-9]{6} bytes packed into"):
        load_checkpoint(packed)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize(
    "load",
    [
        load_checkpoint,
        read_metrics,
        lambda pipe: RunDirectory.open(pipe.parent),
        load_kaixhin_checkpoint,
    ],
    ids=["checkpoint", "metrics", "run", "kaixhin"],
)
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path, load):
    pipe = tmp_path / "settings.json"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match="neither file nor directory"):
        load(pipe)


@pytest.mark.parametrize("kind", [np.random.MT19937, np.random.Philox, np.random.SFC64, np.random.PCG64DXSM])
def test_generators_of_every_kind_of_numpy_go_on(path, kind):
    generator = np.random.Generator(kind(3))
    generator.random(5)
    save_checkpoint(path, rng_state(own=generator))
    expected = generator.random(7)
    other = np.random.Generator(kind(4))
    set_rng_state(load_checkpoint(path), own=other)
    np.testing.assert_array_equal(other.random(7), expected)

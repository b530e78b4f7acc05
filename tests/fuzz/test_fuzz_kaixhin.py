"""Checkpoints of another implementation: files that are damaged, foreign or hostile."""

import atexit
import collections
import functools
import gzip
import io
import json
import pickle
import struct
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import CASES, Entry, fuzz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planet_lib.models import Decoder, RewardHead, RSSMCell, VectorEncoder, WorldModel, load_kaixhin_checkpoint
from planet_lib.models.kaixhin import _NAMES

PLACE = tempfile.TemporaryDirectory()
atexit.register(PLACE.cleanup)  # in time: what is left to the collector warns
MODEL = {"obs_dim": 3, "embed_dim": 2, "action_dim": 1, "deter_dim": 2, "stoch_dim": 1, "hidden_dim": 2}


@functools.cache
def parts():
    """The smallest checkpoint of the port: a model of ours, under its names."""
    torch.manual_seed(0)
    sizes = {name: MODEL[name] for name in ("action_dim", "embed_dim", "deter_dim", "stoch_dim", "hidden_dim")}
    cell, encoder = RSSMCell(**sizes), VectorEncoder(3, embed_dim=2)
    model = WorldModel(encoder, cell, Decoder(3, (3,), hidden_dim=2), RewardHead(3, hidden_dim=2))
    modules = (model.cell, model.reward_head, model.encoder, model.decoder)
    saved = {}
    for (part, names), module in zip(_NAMES.items(), modules, strict=True):
        back = {ours: theirs for theirs, ours in names.items() if "conv" not in theirs and theirs != "fc"}
        weights = {}
        for name, value in module.state_dict().items():
            layer, _, kind = name.rpartition(".")
            weights[f"{back[layer]}.{kind}"] = value
        saved[part] = weights
    return saved | {"optimiser": {"state": {}, "param_groups": [{"lr": 1e-3}]}}


@functools.cache
def right_bytes(as_zip):
    buffer = io.BytesIO()
    torch.save(parts(), buffer, _use_new_zipfile_serialization=as_zip)
    return buffer.getvalue()


def written(content):
    path = Path(PLACE.name) / "models.pth"
    path.write_bytes(content)
    return path


def read(content):
    """The model of a file, or None where it is refused as it should be: by its name, without a warning."""
    path = written(content)
    try:
        return load_kaixhin_checkpoint(path)
    except ValueError as error:
        text = str(error)
    assert "path must be a checkpoint of Kaixhin/PlaNet" in text
    assert str(path) in text
    return None


def is_model(model):
    """Whether a model has the sizes of the right one: a damaged file may hold other numbers, not other shapes."""
    assert model.cell.feature_dim == 3
    embed = model.encoder(torch.zeros(2, 3))
    posterior = model.cell.posterior(model.cell.prior(model.cell.initial(2), torch.zeros(2, 1)), embed)
    features = model.cell.features(posterior)
    assert (model.decoder(features).shape, model.reward_head(features).shape) == ((2, 3), (2,))


def is_loaded(given, model):
    is_model(model)
    assert torch.equal(model.cell.path.gru.weight_hh, parts()["transition_model"]["rnn.weight_hh"])


def entry_path():
    return {"path": str(written(right_bytes(True)))}


ENTRIES = [
    Entry(
        "models.load_kaixhin_checkpoint",
        load_kaixhin_checkpoint,
        entry_path,
        is_loaded,
        also={"path": [PLACE.name, Path(PLACE.name) / "none.pth", Path(PLACE.name, "models.pth"), 0, 2, b"models.pth"]},
        errors=(OSError,),
        slow=3,
    )
]


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_answers_rightly_or_names_what_is_wrong(entry):
    fuzz(entry)


@st.composite
def damaged(draw):
    """A right file with some bytes cut off, flipped, overwritten, repeated or left out."""
    content = bytearray(right_bytes(draw(st.booleans())))
    way = draw(st.sampled_from(["cut", "flip", "flip", "write", "repeat", "drop", "swap"]))
    place = draw(st.integers(0, len(content) - 1))
    if way == "cut":
        return bytes(content[:place])
    if way == "flip":
        for _ in range(draw(st.integers(1, 4))):
            content[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
    elif way == "write":
        content[place : place + 8] = draw(st.binary(min_size=1, max_size=8))
    elif way == "repeat":
        content[place:place] = content[place : place + draw(st.integers(1, 64))]
    elif way == "drop":
        del content[place : place + draw(st.integers(1, 64))]
    else:
        other = draw(st.integers(0, len(content) - 1))
        content[place], content[other] = content[other], content[place]
    return bytes(content)


def many(**strategies):
    """Run a test on as many cases as an entry gets, four times over: there are many bytes."""
    checks = settings(
        max_examples=4 * CASES, derandomize=CASES <= 25, suppress_health_check=list(HealthCheck), deadline=5000
    )
    return lambda test: checks(given(**strategies)(test))


@many(content=damaged())
def test_a_damaged_file_is_refused_or_holds_a_model(content):
    model = read(content)
    if model is not None:
        is_model(model)


@many(content=st.binary(max_size=300))
def test_a_file_of_any_bytes_is_refused(content):
    assert read(content) is None


@many(content=st.binary(max_size=300))
def test_any_bytes_as_the_pickle_in_an_archive_are_refused(content):
    assert read(archive(content)) is None


def archive(pickled=None, content=None, **more):
    """A file such as torch.save writes, with another pickle in it where one is given."""
    buffer, content = io.BytesIO(), right_bytes(True) if content is None else content
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            is_other = pickled is not None and name.endswith("data.pkl")
            new.writestr(name, pickled if is_other else old.read(name), **more)
    return buffer.getvalue()


class Calls:
    """What runs a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile_things(sentinel):
    touch = f"open({str(sentinel)!r}, 'w').close()"
    return [
        Calls(exec, touch),
        Calls(eval, touch),
        Calls(open, str(sentinel), "w"),
        Calls(Path.touch, Path(sentinel)),
        Calls(np.save, str(sentinel), 1),
        Calls(torch.save, 1, str(sentinel)),
        Calls(torch.nn.Linear, 1, 1),
        Calls(collections.OrderedDict, [("transition_model", Calls(exec, touch))]),
        torch.nn.Linear(1, 1),
        np.zeros(3),
    ]


@pytest.mark.parametrize("way", ["plain pickle", "in an archive", "torch.save", "old torch.save"])
@pytest.mark.parametrize("number", range(len(hostile_things("x"))))
def test_no_file_runs_code(tmp_path, number, way):
    sentinel = tmp_path / "ran"
    thing = hostile_things(sentinel)[number]
    for holder in (thing, parts() | {"optimiser": thing}, dict.fromkeys(parts(), thing)):
        if way == "plain pickle":
            content = pickle.dumps(holder)
        elif way == "in an archive":
            content = archive(pickle.dumps(holder, protocol=2))
        else:
            buffer = io.BytesIO()
            torch.save(holder, buffer, _use_new_zipfile_serialization=way == "torch.save")
            content = buffer.getvalue()
        assert read(content) is None
        assert not sentinel.exists()
        assert not list(tmp_path.iterdir())


def saved(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


def with_weight(value, part="transition_model", name="fc_state_prior.weight"):
    return saved(parts() | {part: parts()[part] | {name: value}})


WIDE = torch.zeros(1).expand(2**40)
FOREIGN = {
    "nothing": b"",
    "text": b"weights\n" * 50,
    "json": json.dumps({"transition_model": {}}).encode(),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "gzip": gzip.compress(right_bytes(True)),
    "an empty archive": b"PK\x05\x06" + bytes(18),
    "zeros": bytes(5000),
    "safetensors": struct.pack("<Q", 2**60) + b'{"a":{}}',
    "a number": saved(3),
    "a list": saved([parts()]),
    "a tensor": saved(torch.zeros(3)),
    "parts that are lists": saved({part: [1] for part in parts()}),
    "parts without weights": saved({part: {} for part in parts()}),
    "names that are numbers": saved({part: {1: torch.zeros(1)} for part in parts()}),
    "weights that are numbers": saved({part: dict.fromkeys(weights, 1.0) for part, weights in parts().items()}),
    "a weight of huge size": with_weight(WIDE.view(2**20, 2**20)),
    "a weight of huge hidden size": with_weight(WIDE.view(2**39, 2), name="fc_embed_belief_prior.weight"),
    "a scalar": with_weight(torch.zeros(())),
    "an odd number of rows": with_weight(torch.zeros(3, 2)),
    "no rows": with_weight(torch.zeros(0, 2)),
    "whole numbers": with_weight(torch.zeros(2, 2, dtype=torch.int64)),
    "complex numbers": with_weight(torch.zeros(2, 2, dtype=torch.complex64)),
    "a sparse weight": with_weight(torch.zeros(2, 2).to_sparse()),
    "a weight without numbers": with_weight(torch.zeros(2, 2, device="meta")),
    "one weight more": with_weight(torch.zeros(2, 2), name="fc9.weight"),
    "a weight of no layer": with_weight(torch.zeros(2, 2), name=""),
    "pixels without an image": with_weight(torch.zeros(2, 2), part="encoder", name="conv1.weight"),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_is_refused(content):
    assert read(content) is None


def test_an_archive_that_unfolds_to_more_than_it_holds_is_refused_before_it_does(monkeypatch):
    content = saved(parts() | {"optimiser": torch.zeros(2**20)})
    packed = archive(content=content, compress_type=zipfile.ZIP_DEFLATED)
    assert len(packed) < len(content) / 100
    assert read(content) is not None
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unfolded"))
    assert read(packed) is None

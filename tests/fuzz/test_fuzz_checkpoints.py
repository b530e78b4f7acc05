"""Checkpoints, fuzzed: what is saved comes back, whoever saved it, or one line says why not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from empty_place import contents, emptied, empty_place, put  # noqa: F401 -- the fixture is used by itself
from fuzzing import Entry, fuzz
from torch import nn

from planet_lib.training import RunState, load_checkpoint, save_checkpoint
from planet_lib.training.checkpoint import previous_checkpoint


def payload():
    return {"model": nn.Linear(2, 1).state_dict(), "done": {"episodes": 3}, "sizes": [1, (2.5, "x", None, True, b"y")]}


def comes_back(given, answer):
    path = given["path"]
    assert json.dumps(_plain(load_checkpoint(path))) == json.dumps(_plain(given["payload"]))


def _plain(value):
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), value.shape, str(value.detach().to_dense().tolist() if not value.is_meta else "meta")]
    if isinstance(value, dict):
        return [[str(key), _plain(item)] for key, item in value.items()]
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else repr(value)


def checkpoint():
    save_checkpoint("checkpoint.pt", payload())
    return {"path": "checkpoint.pt", "required": ("model", "done")}


def loaded(content):
    put("checkpoint.pt", content)
    return load_checkpoint("checkpoint.pt")


def saved_bytes():
    save_checkpoint("checkpoint.pt", payload())
    return Path("checkpoint.pt").read_bytes()


def made_state():
    model = nn.Linear(2, 1)
    return RunState(model=model, optimizer=torch.optim.Adam(model.parameters()), noise=np.random.default_rng(0)), model


def state_entry():
    state, model = made_state()
    state.save("state.pt", episodes=3)
    return {"state": state, "model": model, "saved": load_checkpoint("state.pt")}


ENTRIES = [
    Entry(
        "training.save_checkpoint",
        save_checkpoint,
        lambda: {"path": "checkpoint.pt", "payload": payload()},
        comes_back,
        state=contents,
        also={
            "payload": [
                *({"a": torch.ones(2).to_sparse()}, {"a": torch.ones(1, device="meta")}, {"a": np.ones(1)}, {"a": {1}}),
                *({1: 2}, {"a": {1: 2}}, {"a": {(1,): 2}}, {"a": "\ud800"}),
            ]
        },
        errors=(OSError,),
    ),
    Entry(
        "training.load_checkpoint",
        load_checkpoint,
        checkpoint,
        lambda given, answer: set(given["required"]) <= set(answer) or pytest.fail("not all that was required"),
        state=contents,
        also={"required": ["model", ["more"], [1], {"done"}, [[]]]},
        known_as={"path": ("checkpoint",), "required": ("lacks",)},
        errors=(OSError,),
    ),
    Entry(
        "training.load_checkpoint of a damaged file",
        loaded,
        lambda: {"content": saved_bytes()},
        lambda given, answer: answer["done"] == {"episodes": 3} or pytest.fail("another payload"),
        known_as={"content": ("checkpoint",)},
    ),
    Entry(
        "training.checkpoint.previous_checkpoint",
        previous_checkpoint,
        lambda: {"path": "run/checkpoint.pt"},
        lambda given, answer: "-previous" in answer.name or pytest.fail(str(answer)),
    ),
    Entry(
        "training.RunState",
        lambda part: RunState(part=part),
        lambda: {"part": nn.Linear(2, 1)},
        lambda given, answer: (
            answer.save("state.pt")
            or "part" in load_checkpoint("state.pt")
            or "part" in load_checkpoint("state.pt")["rng"]
        ),
        also={"part": [np.random.default_rng(0), torch.Generator(), nn.Linear, torch.optim.Adam, np.random]},
    ),
    Entry(
        "training.RunState.save",
        lambda path, plain: made_state()[0].save(path, extra=plain),
        lambda: {"path": "state.pt", "plain": {"episodes": 3}},
        lambda given, answer: (
            json.dumps(_plain(load_checkpoint(given["path"])["extra"])) == json.dumps(_plain(given["plain"]))
        ),
        state=contents,
        known_as={"plain": ("extra",)},
        errors=(OSError,),
    ),
    Entry(
        "training.RunState.restore",
        lambda state, saved, model: state.restore(saved),
        state_entry,
        lambda given, answer: (
            np.array_equal(given["model"].weight.tolist(), given["saved"]["model"]["weight"].tolist(), equal_nan=True)
            or pytest.fail("other weights")
        ),
        state=lambda given: given["model"].weight.tolist(),
        keep=("state", "model"),
    ),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_answers_rightly_or_names_what_is_wrong(entry):
    fuzz(emptied(entry))


def test_what_a_checkpoint_must_hold_may_lie_within_another_entry():
    save_checkpoint("checkpoint.pt", {"settings": {"env": "x"}, "model": {"layers.0": 1}})
    assert load_checkpoint("checkpoint.pt", required=["settings.env", "model"])["settings"] == {"env": "x"}
    with pytest.raises(ValueError, match=r"is of another program, it lacks settings\.obs, model\.env: start a new run"):
        load_checkpoint("checkpoint.pt", required=["settings.obs", "model.env", "settings"])

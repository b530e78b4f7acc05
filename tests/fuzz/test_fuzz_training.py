"""What a training loop calls at every turn, fuzzed: updates, settings, weights from elsewhere, random generators."""

import copy
import math

import numpy as np
import pytest
import torch
from fuzzing import Entry, finite, fuzz
from torch import nn

from planet_lib import Batch, Decoder, NonFiniteError, RewardHead, RSSMCell, VectorEncoder, WorldModel
from planet_lib.training import (
    Objective,
    SkipNonFinite,
    check_compatible,
    check_extras,
    check_renderer,
    check_settings,
    choose_device,
    ending_in_one_line,
    rng_state,
    set_rng_state,
    transfer_weights,
    update,
    warm_up,
)
from planet_lib.training.presets import PRESETS


def make_model():
    torch.manual_seed(0)
    sizes = {"deter_dim": 4, "stoch_dim": 3, "hidden_dim": 5}
    cell = RSSMCell(action_dim=2, embed_dim=4, **sizes)
    head = RewardHead(cell.feature_dim, hidden_dim=5)
    return WorldModel(VectorEncoder(3, embed_dim=4), cell, Decoder(cell.feature_dim, (3,), hidden_dim=5), head)


def make_batch():
    flags = torch.zeros(4, 2, dtype=torch.bool)
    return Batch(
        obs=torch.randn(4, 2, 3),
        action=torch.rand(4, 2, 2),
        reward=torch.randn(4, 2),
        is_first=flags,
        terminated=flags.clone(),
        mask=~flags,
    )


def end_with(program):
    with pytest.raises(SystemExit) as ended, ending_in_one_line(program):
        raise ValueError("a\n  mistake")
    return ended.value.code


def make_update():
    model = make_model()
    return {
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters(), lr=1e-3),
        "batch": make_batch(),
        "objective": Objective(free_nats=0.0, overshooting_distance=2),
        "grad_clip": 100.0,
        "autocast": None,
    }


def weights(given):
    """All numbers of the model and of what the optimizer steps, and whether one has moved."""
    found = []
    if isinstance(given.get("model"), nn.Module):
        found += [value.double().sum().item() for value in given["model"].state_dict().values()]
    if isinstance(given.get("optimizer"), torch.optim.Optimizer):
        groups = given["optimizer"].param_groups
        found += [value.double().sum().item() for group in groups for value in group["params"]]
        found += [len(given["optimizer"].state), *(group["lr"] for group in groups)]
    return found


def updated(given, answer):
    assert finite(answer.losses.total)
    assert finite(answer.grad_norm)
    assert finite(list(given["model"].state_dict().values()))
    assert answer.grad_norm > 0


def warmed(given, answer):
    expected = given["learning_rate"] * min(1.0, (given["updates"] + 1) / max(given["warmup_updates"], 1))
    assert given["optimizer"].param_groups[0]["lr"] == pytest.approx(expected)


def objective_holds(given, answer):
    """What the objective says is what was said, and it can be trained for."""
    for name, value in given.items():
        assert getattr(answer, name) == value
    assert answer.kl_balance is None or 0 <= answer.kl_balance <= 1


def transferred(given, answer):
    own = given["model"].state_dict()
    assert answer
    for name in answer:
        assert torch.allclose(own[name], given["weights"][name].to(own[name].dtype), atol=0, rtol=0, equal_nan=True)
        assert name.partition(".")[0] not in given["fresh"]


GENERATOR = np.random.default_rng(0)


def rng_digest(given):
    """The states of all generators."""
    return torch.get_rng_state().sum().item(), repr(GENERATOR.bit_generator.state)


def rng_restored(given, answer):
    assert torch.equal(torch.get_rng_state(), torch.as_tensor(given["state"]["torch"]).flatten())


def leave_out(skip, what):
    with skip.leaving_out(what):
        raise NonFiniteError("reward must be finite, got nan")


SCALES = [name for name in Objective.__dataclass_fields__ if name.endswith("_scale")]
ENTRIES = [
    Entry(
        "training.update",
        update,
        make_update,
        updated,
        state=weights,
        also={
            "autocast": [torch.bfloat16, torch.float16, torch.float32, "bfloat16"],
            "model": [make_model, torch.optim.Adam, WorldModel],
            "optimizer": [
                torch.optim.Adam,
                make_model(),
                torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0),
            ],
            "batch": [
                tuple(make_batch()),
                make_batch()._asdict(),
                make_batch()._replace(obs={"obs": torch.zeros(4, 2, 3)}),
            ],
            "objective": [None, {"free_nats": 1.0}, Objective],
        },
        known_as={"batch": ("obs", "action", "embed", *Batch._fields)},
    ),
    Entry(
        "training.Objective",
        Objective,
        lambda: {item: getattr(Objective(), item) for item in Objective.__dataclass_fields__} | {"kl_balance": 0.8},
        objective_holds,
        also={
            name: [{"obs": 1.0, "camera": 0.5}, {"obs": -1.0}, {"obs": "x"}, {0: 1.0}, {}, math.inf] for name in SCALES
        }
        | {"kl_balance": [None, 0, 1, 1.5], "overshooting_chunk": [None, 2], "overshooting_distance": [np.int64(2)]},
    ),
    Entry(
        "training.warm_up",
        warm_up,
        lambda: {
            "optimizer": torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=7.0),
            "learning_rate": 1e-3,
            "updates": 4,
            "warmup_updates": 10,
        },
        warmed,
        state=lambda given: weights({"optimizer": given["optimizer"]}),
    ),
    Entry(
        "training.transfer_weights",
        transfer_weights,
        lambda: {"model": make_model(), "weights": make_model().state_dict(), "fresh": ("reward_head",)},
        transferred,
        state=weights,
        also={"fresh": ["reward_head", ["cell"], {"encoder"}, ["continue_head"], ("nothing",), [1], "x"]},
    ),
    Entry(
        "training.check_settings",
        check_settings,
        lambda: {"settings": {**PRESETS["cpu"].settings(), "seed": 1, "stop_at": None, "max_skipped": 3}},
        lambda given, answer: given["settings"].get("batch_size", 1) >= 1 or pytest.fail("a batch of none"),
        # A message names the setting, and what a mapping of them must be.
        known_as={"settings": ("must be",)},
    ),
    Entry(
        "training.check_renderer",
        check_renderer,
        lambda: {"trained": {"dmc:walker-walk": "rays"}, "here": "rays", "task": "dmc:walker-walk", "told": ()},
        lambda given, answer: answer is None or pytest.fail("an answer"),
        also={"trained": ["rays", "gl-tuned", {}, {"a": 1}], "told": [["renderer"], "quality", [1]], "here": ["own"]},
        known_as={"trained": ("renderer",), "here": ("renderer",), "task": ("renderer",), "told": ("renderer",)},
    ),
    Entry(
        "training.check_extras",
        check_extras,
        lambda: {"pixels": True},
        lambda given, answer: answer is None or pytest.fail("an answer"),
        errors=(ImportError,),
    ),
    Entry(
        "training.check_compatible",
        check_compatible,
        lambda: {"saved": {"cell": "rssm", "sizes": [1, 2]}, "wanted": {"cell": "rssm"}, "names": ["cell"]},
        lambda given, answer: (
            all(np.array_equal(given["saved"].get(name), given["wanted"].get(name)) for name in given["names"])
            or pytest.fail("a difference")
        ),
        also={"names": ["cell", (), ["cell", "sizes"], {"cell"}, [1], [[]]]},
        known_as={"saved": ("checkpoint",), "wanted": ("checkpoint",), "names": ("checkpoint",)},
    ),
    Entry(
        "training.choose_device",
        choose_device,
        lambda: {"name": "cpu"},
        lambda given, answer: isinstance(answer, torch.device) or pytest.fail(f"{answer!r}"),
        also={"name": ["auto", "cuda:99", "mps", "cpu:3", "meta", "xla", torch.device("cpu")]},
        known_as={"name": ("device",)},
    ),
    Entry(
        "training.rng_state",
        lambda generator: rng_state(random=generator),
        lambda: {"generator": np.random.default_rng(0)},
        lambda given, answer: isinstance(answer["random"], dict | torch.Tensor) or pytest.fail("no state"),
        state=rng_digest,
        also={"generator": [torch.Generator(), np.random.RandomState(0), np.random, torch]},
        known_as={"generator": ("random",)},
    ),
    Entry(
        "training.set_rng_state",
        lambda state, generator: set_rng_state(state, random=generator),
        lambda: {"state": copy.deepcopy(rng_state(random=GENERATOR)), "generator": GENERATOR},
        rng_restored,
        state=rng_digest,
        also={"generator": [torch.Generator(), np.random.Generator(np.random.MT19937(0)), np.random]},
        known_as={"generator": ("random",), "state": ("random",)},
    ),
    Entry(
        "training.SkipNonFinite",
        SkipNonFinite,
        lambda: {"limit": 3, "say": print},
        lambda given, answer: (answer.limit, answer.count) == (given["limit"], 0) or pytest.fail("other counts"),
    ),
    Entry(
        "training.SkipNonFinite.leaving_out",
        leave_out,
        lambda: {"skip": SkipNonFinite(3, say=lambda text: None), "what": "update 3"},
        lambda given, answer: (given["skip"].count, given["skip"].in_a_row) == (1, 1) or pytest.fail("not counted"),
        keep=("skip",),
    ),
    Entry(
        "training.SkipNonFinite.load_state_dict",
        lambda skip, state: skip.load_state_dict(state),
        lambda: {"skip": SkipNonFinite(3), "state": {"count": 4, "in_a_row": 2}},
        lambda given, answer: (
            given["skip"].state_dict().items() <= given["state"].items() or pytest.fail("another state")
        ),
        state=lambda given: (given["skip"].count, given["skip"].in_a_row),
        keep=("skip",),
    ),
    Entry(
        "training.ending_in_one_line",
        end_with,
        lambda: {"program": "train.py"},
        lambda given, answer: answer == f"{given['program']}: a mistake" or pytest.fail("another line"),
    ),
]
LEFT_OUT = {
    "training.UpdateResult": "a NamedTuple of what `update` measured, which users read",
    "training.OpenLoopError": "a NamedTuple of what `open_loop_error` measured, which users read",
    "training.make_deterministic": "takes no arguments",
    "training.run_program": "calls what it is given, which may raise anything; see tests/training/test_programs.py",
}


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_answers_rightly_or_names_what_is_wrong(entry):
    fuzz(entry)

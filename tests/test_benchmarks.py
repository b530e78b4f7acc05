"""The benchmark of the world model: its bookkeeping by hand, its check against a stand-in for the port, a tiny run."""

import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from loading import BENCHMARKS, load_benchmark
from tiny_runs import flags_of

TINY_SIZES = {
    "length": 6,
    "batch-size": 4,
    "action-dim": 2,
    "embed-dim": 8,
    "deter-dim": 10,
    "stoch-dim": 3,
    "hidden-dim": 7,
    "distance": 7,
    "chunk-size": 3,
    "threads": 1,
}
TINY = flags_of(TINY_SIZES)
MIB = 2**20
needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")

# What the benchmark needs of the port, without TorchScript: its names, shapes and order of arguments.
STAND_IN = """
import torch
from torch import nn


class TransitionModel(nn.Module):
    def __init__(self, belief, state, action, hidden, embedding):
        super().__init__()
        self.fc_embed_state_action = nn.Linear(state + action, belief)
        self.rnn = nn.GRUCell(belief, belief)
        self.fc_embed_belief_prior = nn.Linear(belief, hidden)
        self.fc_state_prior = nn.Linear(hidden, 2 * state)
        self.fc_embed_belief_posterior = nn.Linear(belief + embedding, hidden)
        self.fc_state_posterior = nn.Linear(hidden, 2 * state)

    def draw(self, kind, inputs):
        hidden = getattr(self, f"fc_embed_belief_{kind}")(inputs).relu()
        mean, raw = getattr(self, f"fc_state_{kind}")(hidden).chunk(2, -1)
        std = nn.functional.softplus(raw) + MIN_STD
        return mean + std * torch.randn_like(mean), mean, std

    def forward(self, state, actions, belief, observations=None, nonterminals=None):
        rows = []
        for t, action in enumerate(actions):
            inputs = torch.cat([state * nonterminals[t], action], -1)
            belief = self.rnn(self.fc_embed_state_action(inputs).relu(), belief)
            prior = self.draw("prior", belief + (OPEN_LOOP_SHIFT if observations is None else 0.0))
            posterior = ()
            if observations is not None:
                posterior = self.draw("posterior", torch.cat([belief, observations[t]], -1))
            state = (posterior or prior)[0]
            rows.append((belief, *prior, *posterior))
        return [torch.stack(fields) for fields in zip(*rows)]


class RewardModel(nn.Module):
    def __init__(self, belief, state, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(belief + state, hidden), nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, 1)

    def forward(self, belief, state):
        return self.fc3(self.fc2(self.fc1(torch.cat([belief, state], -1)).relu()).relu()).squeeze(-1)


def bottle(module, inputs):
    return module(*inputs)
"""


world_model = load_benchmark("world_model")


@pytest.fixture(autouse=True)
def _threads_as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def checkout(tmp_path):
    def write(min_std=0.1, open_loop_shift=0.0):
        text = STAND_IN.replace("MIN_STD", str(min_std)).replace("OPEN_LOOP_SHIFT", str(open_loop_shift))
        (tmp_path / "models.py").write_text(text)
        return ["--kaixhin", str(tmp_path)]

    return write


def differences(flags, capsys):
    world_model.main([*TINY, *flags, "--worker", "check"])
    return json.loads(capsys.readouterr().out)


def test_every_round_calls_all_jobs_in_turn():
    calls = []
    jobs = {name: lambda name=name: calls.append(name) for name in ("ours", "theirs")}
    world_model.take_turns(jobs, rounds=3, warmup=1)
    assert calls == ["ours", "theirs"] * 4


def test_the_warm_up_is_not_counted(monkeypatch):
    clock = [0.0]
    durations = {"ours": iter([100.0, 1.0, 2.0]), "theirs": iter([100.0, 5.0, 7.0])}

    def run(name):
        clock[0] += next(durations[name])

    monkeypatch.setattr(world_model.time, "perf_counter", lambda: clock[0])
    jobs = {name: lambda name=name: run(name) for name in durations}
    assert world_model.take_turns(jobs, rounds=2, warmup=1) == {"ours": [1.0, 2.0], "theirs": [5.0, 7.0]}


def test_ratios_are_those_of_paired_rounds_not_of_medians():
    seconds = {"ours": [1.0, 2.0, 4.0], "theirs": [2.0, 2.0, 12.0]}
    ours, theirs = world_model.summarise("observe", seconds, {"ours": MIB, "theirs": 4 * MIB})
    assert ours == {
        "question": "observe",
        "variant": "ours",
        "seconds": 2.0,
        "least": 1.0,
        "most": 4.0,
        "memory_mib": 1.0,
        "times_faster": 2.0,
        "least_faster": 1.0,
        "most_faster": 3.0,
        "memory_share": 0.25,
        "goal": ">= 1.5",
    }
    assert (theirs["seconds"], theirs["memory_mib"]) == (2.0, 4.0)
    assert [theirs[name] for name in ("times_faster", "memory_share", "goal")] == [None] * 3


def test_ours_alone_has_no_ratios():
    (row,) = world_model.summarise("overshooting", {"ours": [1.0, 3.0]}, {})
    assert {name for name, value in row.items() if value is not None} == {
        "question",
        "variant",
        "seconds",
        "least",
        "most",
    }


def test_a_right_port_computes_the_same(checkout, capsys):
    found = differences(checkout(), capsys)
    assert max(found.values()) < 1e-5
    assert sum(name.startswith("observe") for name in found) == 7
    # Every parameter that takes part in predicting ahead: two of each linear layer, four of the GRU.
    assert sum("gradient" in name for name in found) == 2 + 4 + 2 + 2


def test_a_port_with_another_deviation_is_noticed(checkout, capsys):
    found = differences(checkout(min_std=0.2), capsys)
    assert found["observe, output 0"] > world_model.TOLERANCE
    assert found["overshooting, KL"] > world_model.TOLERANCE


def test_a_port_that_differs_only_in_the_open_loop_is_noticed(checkout, capsys):
    found = differences(checkout(open_loop_shift=0.1), capsys)
    assert max(value for name, value in found.items() if name.startswith("observe")) < 1e-5
    assert found["overshooting, KL"] > world_model.TOLERANCE
    assert found["overshooting, KL and reward in chunks"] > world_model.TOLERANCE


@pytest.mark.parametrize("difference", [0.5, float("nan")])
def test_nothing_is_measured_where_the_two_differ(checkout, monkeypatch, difference):
    commands = []

    def run(command, **_):
        commands.append(command)
        return SimpleNamespace(stdout=json.dumps({"observe, output 0": 0.0, "overshooting, KL": difference}))

    monkeypatch.setattr(world_model, "subprocess", SimpleNamespace(run=run, PIPE=None))
    monkeypatch.setattr(world_model, "take_turns", lambda *_: pytest.fail("measured"))
    flags = [*TINY, *checkout()]
    with pytest.raises(SystemExit, match="do not compute the same: a difference is not below"):
        world_model.main(flags)
    assert commands[-1][1:] == [str(BENCHMARKS / "world_model.py"), *flags, "--worker", "check"]


def test_the_given_noise_replaces_the_drawn():
    with world_model.GivenNoise([torch.ones(2), torch.zeros(2)]):
        first, second = (torch.randn_like(torch.empty(2)) for _ in range(2))
    assert first.tolist() == [1.0, 1.0]
    assert second.tolist() == [0.0, 0.0]


@needs_proc
def test_the_peak_counts_memory_that_is_freed_before_the_end():
    sizes = {name.replace("-", "_"): value for name, value in TINY_SIZES.items()}
    setup = world_model.Setup(Namespace(device="cpu", kaixhin=None, **sizes))
    leaf = torch.ones(1, requires_grad=True)
    small, large = (
        world_model.peak_memory(setup, lambda size=size: leaf * torch.ones(size * MIB // 4).sum()) for size in (1, 64)
    )
    assert small < 16 * MIB
    assert 63 * MIB < large < 80 * MIB


@needs_proc
def test_a_fresh_process_reports_the_memory_of_one_variant_in_bytes(capsys):
    world_model.main([*TINY, "--worker", "overshooting and reward/ours in chunks"])
    assert 0 <= int(capsys.readouterr().out) < 64 * MIB


def test_a_tiny_run_writes_what_it_prints(tmp_path, capsys):
    out = tmp_path / "new" / "out.json"
    world_model.main([*TINY, "--no-memory", "--rounds", "2", "--warmup", "1", "--out", str(out)])
    result, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert [(row["question"], row["variant"]) for row in result["rows"]] == [
        ("observe", "ours"),
        ("overshooting", "ours"),
        ("overshooting", "ours in chunks"),
        ("overshooting and reward", "ours"),
        ("overshooting and reward", "ours in chunks"),
    ]
    for row in result["rows"]:
        assert 0 < row["least"] <= row["seconds"] <= row["most"]
        assert f"|{row['question']}|{row['variant']}|{row['seconds']:.4g}|" in printed
    facts = result["facts"]
    assert (facts["length"], facts["distance"], facts["rounds"]) == (6, 7, 2)
    assert facts["torch"] == torch.__version__


def test_a_folder_without_the_port_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        world_model.main([*TINY, "--kaixhin", str(tmp_path)])
    assert "--kaixhin must be a checkout of Kaixhin/PlaNet, got" in capsys.readouterr().err

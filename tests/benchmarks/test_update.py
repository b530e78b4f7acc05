"""The benchmark of updates: its bookkeeping by hand, its check against a stand-in for the port, a tiny run."""

import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from loading import load_benchmark

benchmark = load_benchmark("update")
peers, problems = load_benchmark("updates.peers"), load_benchmark("updates.problem")

MIB = 2**20
needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")

# What the benchmark needs of the port, without TorchScript: its names, shapes, order of arguments and of draws.
MODELS = """
import torch
from torch import nn


def bottle(module, inputs):
    rows = inputs[0].shape[:2]
    return module(*(value.flatten(0, 1) for value in inputs)).unflatten(0, rows)


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
            belief = self.rnn(self.fc_embed_state_action(torch.cat([state, action], -1)).relu(), belief)
            prior = self.draw("prior", belief)
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


class Encoder(nn.Module):
    def __init__(self, symbolic, size, embedding):
        super().__init__()
        for number, (below, above) in enumerate([(3, 32), (32, 64), (64, 128), (128, 256)], 1):
            setattr(self, f"conv{number}", nn.Conv2d(below, above, 4, stride=2))
        self.fc = nn.Identity()

    def forward(self, image):
        for number in range(1, 5):
            image = getattr(self, f"conv{number}")(image).relu()
        return image.flatten(1)


class ObservationModel(nn.Module):
    def __init__(self, symbolic, size, belief, state, embedding):
        super().__init__()
        self.fc1 = nn.Linear(belief + state, embedding)
        for number, (below, above, side) in enumerate([(1024, 128, 5), (128, 64, 5), (64, 32, 6), (32, 3, 6)], 1):
            setattr(self, f"conv{number}", nn.ConvTranspose2d(below, above, side, stride=2))

    def forward(self, belief, state):
        image = self.fc1(torch.cat([belief, state], -1))[:, :, None, None]
        for number in range(1, 4):
            image = getattr(self, f"conv{number}")(image).relu()
        return self.conv4(image)
"""
PLANNER = """
class MPCPlanner:
    def __init__(self, action_size, horizon, iterations, candidates, top, transition, reward, least, most):
        self.transition, self.reward, self.size = transition, reward, (horizon, candidates, action_size)

    def __call__(self, belief, state):
        rows = self.size[1]
        deter, stoch, *_ = self.transition(state.repeat(rows, 1), belief.new_ones(self.size), belief.repeat(rows, 1))
        return belief.new_zeros(1, self.size[2]) + self.reward(deter, stoch).mean()
"""


@pytest.fixture(autouse=True)
def _as_before():
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


@pytest.fixture
def checkout(tmp_path):
    def write(min_std=0.1):
        (tmp_path / "models.py").write_text(MODELS.replace("MIN_STD", str(min_std)))
        (tmp_path / "planner.py").write_text(PLANNER)
        return tmp_path

    return write


def quick(*flags):
    return benchmark.parse(
        ["--quick", "--no-torchrl", "--no-compile", "--threads", "1", *(str(flag) for flag in flags)]
    )


def test_a_right_port_computes_the_same_loss_and_gradients(checkout):
    found = benchmark.differences(quick("--kaixhin", checkout()), torch.float64)
    # Weight and bias of five linear layers and four of the GRU, of five layers that make an image, of three for the
    # reward and of four that see; and the loss.
    assert len(found) == 2 * 5 + 4 + 2 * 5 + 2 * 3 + 2 * 4 + 1
    assert max(found.values()) < 1e-12
    assert {name.rpartition(", ")[2] for name in found} == {"float64"}


def test_in_float32_the_loss_alone_is_compared(checkout):
    found = benchmark.differences(quick("--kaixhin", checkout()), torch.float32)
    assert found.keys() == {"loss, float32"}
    assert found["loss, float32"] < 1e-5


def test_a_port_with_another_deviation_is_noticed(checkout):
    found = benchmark.differences(quick("--kaixhin", checkout(min_std=0.2)), torch.float64)
    assert found["gradient of cell.prior_head.out.weight, float64"] > benchmark.TOLERANCE


@pytest.mark.parametrize("difference", [0.5, float("nan")])
def test_nothing_is_measured_where_the_two_differ(checkout, monkeypatch, difference):
    def run(command, **_):
        return SimpleNamespace(stdout=json.dumps({"loss, float32": 0.0, "loss, float64": difference}) + "\n")

    monkeypatch.setattr(benchmark, "subprocess", SimpleNamespace(run=run, PIPE=None))
    monkeypatch.setattr(benchmark, "describe", lambda args: {})
    monkeypatch.setattr(benchmark, "take_turns", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit, match="do not compute the same: a difference is not below"):
        benchmark.main(["--quick", "--threads", "1", "--kaixhin", str(checkout())])


def test_our_loss_is_the_one_that_our_update_descends():
    problem = problems.Problem("paper", "cpu", **problems.QUICK)
    before = [value.clone() for value in problem.model.parameters()]
    torch.manual_seed(3)
    expected = problem.loss()
    grads = torch.autograd.grad(expected, [*problem.model.parameters()])
    torch.manual_seed(3)
    result = problems.ours(problem)["update"]()
    torch.testing.assert_close(result.losses.total, expected.detach())
    # Adam's first step is the learning rate against the sign of the gradient, where that is far above epsilon.
    for old, new, grad in zip(before, problem.model.parameters(), grads, strict=True):
        large = grad.abs() > 1.0
        torch.testing.assert_close((new - old)[large], -1e-3 * grad[large].sign(), rtol=1e-3, atol=1e-7)
    assert any((grad.abs() > 1.0).any() for grad in grads)


def test_ratios_and_shares_are_those_of_paired_rounds_not_of_medians():
    product = 2 * benchmark.CEILING**3
    times = {"ours": [1.0, 2.0, 4.0], "Kaixhin": [2.0, 2.0, 12.0], "ceiling": [1.0, 1.0, 1.0]}
    memory = {"ours": MIB, "Kaixhin": 4 * MIB}
    mine, theirs = benchmark.summarise("paper", "update", times, {"ours": product, "Kaixhin": product // 2}, memory)
    assert (mine["variant"], mine["seconds"], mine["least"], mine["most"]) == ("ours", 2.0, 1.0, 4.0)
    assert (mine["times_faster"], mine["ceiling_share"], mine["memory_mib"]) == (None, 0.5, 1.0)
    assert (theirs["times_faster"], theirs["least_faster"], theirs["most_faster"]) == (2.0, 1.0, 3.0)
    assert (theirs["ceiling_share"], theirs["memory_share"]) == (0.25, 0.25)
    assert theirs["gflop"] == product / 2e9


def test_what_was_not_measured_is_left_empty():
    (row,) = benchmark.summarise("cpu", "acting", {"ours": [1.0], "ceiling": [1.0]}, {}, {})
    assert {name for name, value in row.items() if value is not None} == {
        *("sizes", "question", "variant", "seconds", "least", "most")
    }


def test_goals_are_judged_beside_kaixhins_update_at_the_papers_sizes():
    common = {"times_faster": 1.9, "memory_share": 0.4}
    rows = [{"sizes": "paper", "question": "update", "variant": "Kaixhin", **common}]
    rows += [{**rows[0], "variant": "TorchRL"}, {**rows[0], "sizes": "cpu"}, {**rows[0], "question": "encoder"}]
    assert benchmark.judge(rows) == [
        {"what": "update, paper: times_faster", "found": 1.9, "goal": ">= 2.0", "met": False},
        {"what": "update, paper: memory_share", "found": 0.4, "goal": "<= 1.0", "met": True},
    ]
    assert benchmark.judge([{**rows[0], "memory_share": None, "times_faster": 2.0}])[0]["met"]


def test_operations_are_counted_in_products_in_place_too():
    left, right, total = torch.ones(3, 5), torch.ones(5, 7), torch.zeros(3, 7)
    assert benchmark.count(lambda: total.addmm_(left, right)) == 2 * 3 * 5 * 7
    assert benchmark.count(lambda: left @ right) == 2 * 3 * 5 * 7


def test_every_round_asks_all_in_turn_and_the_warm_up_is_not_counted():
    calls = []
    jobs = {name: lambda name=name: calls.append(name) for name in ("ours", "theirs")}
    found = benchmark.take_turns(jobs, quick("--rounds", 2, "--warmup", 1))
    assert calls == ["ours", "theirs"] * 3
    assert [len(times) for times in found.values()] == [2, 2]


def test_a_folder_without_the_port_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        quick("--kaixhin", tmp_path)
    assert "--kaixhin must be a checkout of Kaixhin/PlaNet, got" in capsys.readouterr().err


@pytest.mark.filterwarnings("default")
def test_torchrls_jobs_run_and_reach_all_its_parameters():
    pytest.importorskip("torchrl")
    jobs = peers.torchrl(problems.Problem("paper", "cpu", **problems.QUICK))
    assert jobs.keys() == {"update", "encoder", "decoder", "observe"}
    for job in jobs.values():
        job()
    step = jobs["update"]
    _, _, parameters, _ = step.args
    assert all(value.grad is not None for value in parameters)


@needs_proc
@pytest.mark.slow
def test_a_tiny_run_writes_what_it_prints(checkout, tmp_path, capsys):
    out = tmp_path / "new" / "out.json"
    flags = ["--quick", "--no-torchrl", "--no-compile", "--threads", "1", "--rounds", "2", "--warmup", "0"]
    flags += ["--only", "update", "acting", "--sizes", "paper", "--kaixhin", str(checkout()), "--out", str(out)]
    benchmark.main(flags)
    result, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert [(row["question"], row["variant"]) for row in result["rows"]] == [
        *(("update", "ours"), ("update", "Kaixhin"), ("acting", "ours"), ("acting", "Kaixhin"))
    ]
    for row in result["rows"]:
        assert 0 < row["least"] <= row["seconds"] <= row["most"]
        assert 0 < row["ceiling_share"] < 1
        assert row["memory_mib"] > 0
        assert f"|paper|{row['question']}|{row['variant']}|{row['seconds']:.4g}|" in printed
    mine, theirs = (row["gflop"] for row in result["rows"][:2])
    assert mine == pytest.approx(theirs, rel=0.1)
    assert [goal["what"] for goal in result["goals"]] == ["update, paper: times_faster", "update, paper: memory_share"]
    assert result["left out"].keys() == {"TorchRL"}
    facts = result["facts"]
    assert (facts["rounds"], facts["threads"], facts["sizes paper"]["window"]) == (2, 1, 2)
    assert facts["torch"] == version("torch")

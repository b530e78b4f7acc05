"""The benchmark of planners: its bookkeeping by hand, each competitor against stand-ins, a tiny run."""

import importlib
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from loading import BENCHMARKS, load_benchmark
from torch import nn

benchmark = load_benchmark("planner")
measure, peers, picture, problems = (
    load_benchmark(f"planners.{name}") for name in ("measure", "peers", "picture", "problem")
)

MIB = 2**20
needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")

# What the benchmark needs of the port, without TorchScript: its names, shapes, order of arguments and of draws.
MODELS = """
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

    def forward(self, state, actions, belief):
        beliefs, states = [], []
        for action in actions:
            belief = self.rnn(self.fc_embed_state_action(torch.cat([state, action], -1)).relu(), belief)
            mean, raw = self.fc_state_prior(self.fc_embed_belief_prior(belief).relu()).chunk(2, -1)
            state = mean + (nn.functional.softplus(raw) + MIN_STD) * torch.randn_like(mean)
            beliefs.append(belief)
            states.append(state)
        return torch.stack(beliefs), torch.stack(states), None, None


class RewardModel(nn.Module):
    def __init__(self, belief, state, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(belief + state, hidden), nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, 1)

    def forward(self, belief, state):
        return self.fc3(self.fc2(self.fc1(torch.cat([belief, state], -1)).relu()).relu()).squeeze(-1)
"""
PLANNER = """
import torch


class MPCPlanner(torch.nn.Module):
    def __init__(self, size, horizon, iterations, candidates, top, transition, reward, low, high):
        super().__init__()
        self.sizes, self.top, self.iterations = (horizon, candidates, size), top, iterations
        self.transition, self.reward, self.box = transition, reward, (low, high)

    def forward(self, belief, state):
        (horizon, candidates, size), batch = self.sizes, len(belief)
        belief, state = (value.repeat_interleave(candidates, 0) for value in (belief, state))
        mean, std = torch.zeros(horizon, batch, 1, size), torch.ones(horizon, batch, 1, size)
        for _ in range(self.iterations):
            actions = (mean + std * torch.randn(horizon, batch, candidates, size)).clamp(*self.box)
            beliefs, states, _, _ = self.transition(state, actions.flatten(1, 2), belief)
            returns = self.reward(beliefs, states).sum(0).reshape(batch, candidates)
            best = returns.topk(self.top, 1).indices[None, :, :, None].expand(horizon, -1, -1, size)
            elites = actions.gather(2, best)
            mean, std = elites.mean(2, keepdim=True), elites.std(2, unbiased=False, keepdim=True)
        return mean[0, :, 0]
"""
# What the worker needs of mbrl-lib, which itself cannot be installed beside planet_lib.
MBRL_PLANNING = """
import torch


class TrajectoryOptimizer:
    def __init__(self, config, low, high, horizon, keep_last_solution):
        assert not keep_last_solution
        self.config, self.low, self.high = config, float(low[0]), float(high[0])
        self.shape = (config["population_size"], horizon, len(low))

    def optimize(self, evaluate):
        for _ in range(self.config["num_iterations"]):
            values = evaluate(torch.randn_like(torch.empty(self.shape)).clamp(self.low, self.high))
            values.topk(-int(-self.config["elite_ratio"] * len(values) // 1))
"""


@pytest.fixture(autouse=True)
def _threads_as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def checkout(tmp_path):
    def write(min_std=0.1):
        (tmp_path / "models.py").write_text(MODELS.replace("MIN_STD", str(min_std)))
        (tmp_path / "planner.py").write_text(PLANNER)
        return tmp_path

    return write


@pytest.fixture
def mbrl_stand_in(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    (folder / "mbrl").mkdir(parents=True)
    (folder / "mbrl" / "__init__.py").write_text("")
    (folder / "mbrl" / "planning.py").write_text(MBRL_PLANNING)
    (folder / "omegaconf.py").write_text("DictConfig = dict\n")
    (folder / "mbrl-9.8.dist-info").mkdir()
    (folder / "mbrl-9.8.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mbrl\nVersion: 9.8\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return sys.executable


def quick(*flags):
    return benchmark.parse(["--quick", "--threads", "1", *(str(flag) for flag in flags)])


def difference(side, problem):
    candidates, dynamics = problem.noise()
    with torch.no_grad():
        if side.shares_candidates:
            candidates = candidates[:, :1].expand_as(candidates)
        return (side.returns(candidates, dynamics) - problem.returns(candidates, dynamics)).abs().max().item()


# What is seen of a planner


def test_given_noise_replaces_the_drawn_until_it_runs_out():
    with measure.Watch([torch.ones(2), torch.zeros(3)]) as watch:
        first, second, third = torch.randn(2), torch.randn_like(torch.empty(3)), torch.randn(4)
    assert (first.tolist(), second.tolist()) == ([1.0, 1.0], [0.0, 0.0, 0.0])
    assert third.abs().min() > 0
    assert watch.draws == []


def test_noise_of_another_shape_is_refused():
    refused = pytest.raises(ValueError, match=r"must draw noise of \[2, 3\] next, but it drew \[3, 2\]")
    with refused, measure.Watch([torch.ones(2, 3)]):
        torch.randn(3, 2)


def test_what_is_ranked_is_kept_as_it_was():
    values = torch.tensor([1.0, 3.0, 2.0])
    with measure.Watch() as watch:
        values.topk(2)
        values.zero_()
    assert [scores.tolist() for scores in watch.scores] == [[1.0, 3.0, 2.0]]


def layer(x, weight, bias):
    return torch.addmm(bias, x, weight.t()).relu().unsafe_split(2, 1)[0].exp_()


def test_views_and_allocations_are_counted_apart():
    tensors = torch.ones(3, 5), torch.ones(4, 5), torch.ones(4)
    # t, addmm, relu, unsafe_split, exp_, empty: of these t, unsafe_split and empty compute nothing.
    assert measure.count_operations(lambda: (layer(*tensors), torch.empty(7))) == {"operations": 6, "views": 3}


def test_launches_of_eager_code_are_its_operations_that_compute():
    tensors = torch.ones(3, 5), torch.ones(4, 5), torch.ones(4)
    # addmm copies its bias and linear calls addmm, but each starts one thing.
    job = lambda: (layer(*tensors), nn.functional.linear(*tensors), torch.empty(7))  # noqa: E731
    assert measure.count_launches(job, torch.device("cpu")) == {"launches": 4}


def test_both_ways_of_counting_agree_on_a_whole_plan(checkout):
    side = peers.kaixhin(problems.Problem(quick(), 2), checkout())
    with torch.no_grad():
        counted = measure.count_operations(side.plan)
        launches = measure.count_launches(side.plan, torch.device("cpu"))["launches"]
    assert launches == counted["operations"] - counted["views"]
    # Two iterations of three steps: the stand-in's four linear layers and two GRU products are at least 36.
    assert launches > 36


def test_generated_kernels_are_launches_and_the_compilers_own_marks_are_not():
    names = ["graph_0_cpp_fused_relu_1", "aten::addmm", "aten::as_strided", "aten::reshape", "TorchDynamo Cache Lookup"]
    assert [measure._is_launch(name) for name in names] == [True, True, False, False, False]
    assert not measure._is_launch("nobody::knows")


def test_on_a_card_calls_of_the_host_and_kernels_are_counted(monkeypatch):
    host, card = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA
    names = [("cudaLaunchKernel", host), ("cudaGraphLaunch", host), ("aten::addmm", host), ("sgemm", card)]
    names += [("reduce", card), ("Memcpy DtoD (Device -> Device)", card), ("cudaMemcpyAsync", host)]
    events = [SimpleNamespace(name=name, device_type=device) for name, device in names]

    class Profile:
        def __init__(self, activities):
            assert torch.profiler.ProfilerActivity.CUDA in activities

        def __enter__(self):
            return SimpleNamespace(events=lambda: events)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(measure, "profile", Profile)
    assert measure.count_launches(lambda: None, torch.device("cuda")) == {"launches": 3, "kernels": 2}


@needs_proc
def test_the_peak_counts_memory_that_is_freed_before_the_end():
    small, large = (measure.peak_memory(lambda size=size: torch.ones(size * MIB // 4).sum()) for size in (1, 64))
    assert small < 16 * MIB
    assert 63 * MIB < large < 80 * MIB


@needs_proc
def test_compiled_planners_report_launches_and_how_they_run_and_others_operations():
    x, about = torch.ones(3, 3), SimpleNamespace(mode="graph", reason=None)
    plain = peers.Planner(torch.device("cpu"), lambda: x.mm(x), None)
    assert plain.usage().keys() == {"memory", "operations", "views"}
    compiled = plain._replace(is_compiled=True, about=about).usage()
    del compiled["memory"]
    assert compiled == {"launches": 1, "mode": "graph", "reason": None}


# Who takes part


def test_the_ceiling_is_the_products_of_one_step_at_every_step():
    problem = problems.Problem(quick(), 2)
    ceiling = problems.Ceiling(problem)
    # stoch 3, action 2, deter 10, hidden 10: input, GRU twice, prior, its output, reward three times; 2 * 16 rows.
    shapes = [(5, 10), (10, 30), (10, 30), (10, 10), (10, 6), (13, 10), (10, 10), (10, 1)]
    assert [tuple(right.shape) for _, right, _ in ceiling.products] == shapes
    assert ceiling.operations == 2 * (3 * 2) * 32 * sum(below * above for below, above in shapes)
    with measure.Watch() as watch:
        ceiling()
    assert watch.operations == 3 * 2 * len(shapes)
    left, right, out = ceiling.products[-1]
    torch.testing.assert_close(out, left @ right)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_right_port_computes_the_same(checkout, batch_size):
    problem = problems.Problem(quick("--kaixhin", checkout()), batch_size)
    assert difference(peers.kaixhin(problem, checkout()), problem) < 1e-6


def test_a_port_with_another_deviation_is_noticed(checkout):
    found = benchmark.differences(quick("--kaixhin", checkout(min_std=0.2), "--only", "ours eager", "Kaixhin"))
    assert found.keys() == {"ours eager, B=1", "Kaixhin, B=1", "ours eager, B=2", "Kaixhin, B=2"}
    assert max(value for name, value in found.items() if name.startswith("ours")) < 1e-6
    assert min(value for name, value in found.items() if name.startswith("Kaixhin")) > benchmark.TOLERANCE


def test_our_value_is_compared_with_the_best_of_our_own_returns(monkeypatch):
    args = quick("--only", "ours eager")
    monkeypatch.setattr(problems.Problem, "returns", lambda self, candidates, dynamics: candidates[0, :, :, 0])
    assert min(benchmark.differences(args).values()) > benchmark.TOLERANCE


def test_mbrl_plans_in_a_process_of_its_own(mbrl_stand_in):
    problem = problems.Problem(quick(), 2)
    worker = peers.MbrlWorker(problem, mbrl_stand_in)
    candidates, dynamics = problem.noise()
    with torch.no_grad():
        theirs, expected = worker.returns(candidates, dynamics), problem.returns(candidates, dynamics)
    torch.testing.assert_close(theirs, expected)
    assert worker.version == "9.8"
    assert 0 < worker.seconds() < 60
    worker.close()
    assert worker.process.returncode == 0


def test_a_dead_process_of_mbrl_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if importlib.util.find_spec("mbrl"):
        pytest.skip("mbrl-lib is installed here")
    with pytest.raises(RuntimeError, match="mbrl-lib's process ended with 1; its error stands above"):
        peers.MbrlWorker(problems.Problem(quick(), 1), sys.executable)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", ["torchrl", "pytorch_mppi"])
def test_installed_peers_compute_the_same(name, batch_size):
    pytest.importorskip(name)
    problem = problems.Problem(quick(), batch_size)
    side = getattr(peers, name)(problem)
    assert difference(side, problem) < 1e-6
    with torch.no_grad():
        action = side.plan()
    assert action.numel() == 2 * batch_size
    assert action.abs().max() <= 1


# What is made of it


def sides_that(clock):
    return {name: SimpleNamespace(seconds=lambda name=name: clock(name)) for name in ("ours", "theirs")}


def test_every_round_asks_all_in_turn_and_the_warm_up_is_not_counted():
    calls = []

    def clock(name):
        calls.append(name)
        return float(len(calls))

    assert benchmark.take_turns(sides_that(clock), rounds=2, warmup=1) == {"ours": [3.0, 5.0], "theirs": [4.0, 6.0]}
    assert calls == ["ours", "theirs"] * 3


def test_ratios_are_those_of_paired_rounds_not_of_medians():
    seconds = {"ours eager": [2.0, 2.0, 2.0], "ours compiled": [1.0, 2.0, 4.0], "Kaixhin": [2.0, 2.0, 12.0]}
    usage = {"Kaixhin": {"memory": 3 * MIB, "operations": 40, "views": 10}}
    usage["ours compiled"] = {"memory": MIB, "launches": 12, "mode": "compiled", "reason": None}
    eager, compiled, kaixhin = benchmark.summarise(8, seconds, usage)
    assert (kaixhin["times_ours"], kaixhin["least_times"], kaixhin["most_times"]) == (2.0, 1.0, 3.0)
    assert (kaixhin["seconds"], kaixhin["least"], kaixhin["most"], kaixhin["plans_per_s"]) == (2.0, 2.0, 12.0, 4.0)
    assert (kaixhin["memory_mib"], kaixhin["operations"], kaixhin["views"]) == (3.0, 40, 10)
    assert (compiled["times_ours"], compiled["launches"], compiled["mode"]) == (1.0, 12, "compiled")
    assert (eager["times_ours"], eager["memory_mib"], eager["launches"]) == (1.0, None, None)


def test_ours_is_the_eager_one_where_nothing_is_compiled():
    _, ceiling = benchmark.summarise(1, {"ours eager": [2.0], "ceiling": [1.0]}, {})
    assert ceiling["times_ours"] == 0.5


def row(batch, planner, ratio, **columns):
    ratios = {"times_ours": ratio, "least_times": ratio - 0.1, "most_times": ratio + 0.1}
    return {
        "batch": batch,
        "planner": planner,
        **ratios,
        "launches": None,
        "operations": None,
        "views": None,
        **columns,
    }


def test_goals_are_judged_at_one_state():
    rows = [row(1, "ours compiled", 1.0, launches=40), row(1, "Kaixhin", 1.2, operations=100, views=20)]
    rows += [row(1, "TorchRL", 1.3), row(1, "ceiling", 0.9), row(8, "TorchRL", 9.0)]
    found = [(goal["what"], goal["found"], goal["goal"], goal["met"]) for goal in benchmark.judge(rows)]
    assert found == [
        ("seconds: Kaixhin / ours compiled, B=1", 1.2, ">= 1.2", True),
        ("seconds: TorchRL / ours compiled, B=1", 1.3, ">= 1.35", False),
        ("seconds: ceiling / ours compiled, B=1", 0.9, ">= 0.8", True),
        ("launches: ours compiled / Kaixhin's operations, B=1", 0.4, "<= 0.5", True),
        ("launches: ours compiled / Kaixhin's operations that compute, B=1", 0.5, None, None),
    ]
    assert benchmark.judge(rows[1:]) == []


def test_rounds_are_one_number_or_one_for_each_batch(capsys):
    assert quick("--batch", 1, 8, "--rounds", 5).rounds == [5, 5]
    assert quick("--batch", 1, 8, "--warmup", 3, 1).warmup == [3, 1]
    with pytest.raises(SystemExit):
        quick("--batch", 1, 8, 64, "--rounds", 5, 3)
    assert "--rounds must be one number or one for each of the 3 batches, got [5, 3]" in capsys.readouterr().err


def test_quick_changes_defaults_alone():
    args = quick("--horizon", 7)
    assert (args.horizon, args.num_candidates, args.batch) == (7, 16, [1, 2])
    assert benchmark.parse([]).num_candidates == 1000


def test_a_folder_without_the_port_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        quick("--kaixhin", tmp_path)
    assert "--kaixhin must be a checkout of Kaixhin/PlaNet, got" in capsys.readouterr().err


@pytest.mark.parametrize("difference", [0.5, float("nan")])
def test_nothing_is_measured_where_they_differ(monkeypatch, difference):
    def run(command, **_):
        return SimpleNamespace(stdout="chatter\n" + json.dumps({"ours eager, B=1": 0.0, "Kaixhin, B=1": difference}))

    monkeypatch.setattr(benchmark, "subprocess", SimpleNamespace(run=run, PIPE=None))
    monkeypatch.setattr(benchmark, "take_turns", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit, match="do not compute the same: a difference is not below"):
        benchmark.main(["--quick", "--threads", "1", "--only", "ours eager"])


@needs_proc
@pytest.mark.slow
def test_a_tiny_run_writes_what_it_prints(tmp_path):
    out, plot = tmp_path / "new" / "out.json", tmp_path / "new" / "out.png"
    command = [sys.executable, str(BENCHMARKS / "planner.py"), "--quick", "--threads", "1", "--batch", "2"]
    command += ["--only", "ours eager", "Kaixhin", "ceiling", "--out", str(out), "--plot", str(plot)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert [(found["batch"], found["planner"]) for found in result["rows"]] == [(2, "ours eager"), (2, "ceiling")]
    eager, ceiling = result["rows"]
    for found in result["rows"]:
        assert 0 < found["least"] <= found["seconds"] <= found["most"]
        assert f"|2|{found['planner']}|{found['seconds']:.4g}|" in done.stdout
    assert ceiling["least_times"] < 1
    assert eager["operations"] > eager["views"] > 0
    assert "left out: Kaixhin; to get it: git clone" in done.stdout
    assert "left out: mbrl-lib" not in done.stdout  # it wasn't asked for
    facts = result["facts"]
    assert (facts["horizon"], facts["rounds"], facts["threads"]) == (3, [2], 1)
    assert facts["torch"] == version("torch")
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_picture_shows_operations_where_launches_were_not_counted():
    rows = [row(8, "Kaixhin", 1.0, operations=30), row(1, "Kaixhin", 1.0, operations=20), row(1, "TorchRL", 1.0)]
    rows += [row(1, "ours compiled", 1.0, launches=5, operations=None)]
    assert picture.series(rows, "Kaixhin", "launches") == ([1, 8], [20, 30])
    assert picture.series(rows, "ours compiled", "launches") == ([1], [5])
    assert picture.series(rows, "TorchRL", "launches") == ([], [])


def test_the_picture_has_only_panels_with_numbers(tmp_path):
    blank = {"memory_mib": None, "launches": None, "operations": None}
    rows = [{"planner": "Kaixhin", "batch": batch, "seconds": 1.0 * batch, **blank} for batch in (1, 8)]
    assert [column for column, _, _ in picture.panels(rows)] == ["seconds"]
    assert [column for column, _, _ in picture.panels([rows[0] | {"operations": 7}, rows[1]])] == [
        "seconds",
        "launches",
    ]
    picture.draw(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000

"""The examples of dynamics and of an environment of one's own: short, quick, and they reach what is known best."""

import os
import re
import resource
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from planet_lib.planning import EnvDynamics

ROOT = Path(__file__).parents[2]
NAMES = ("plan_custom_dynamics", "plan_custom_env")


def path_of(name):
    return ROOT / "examples" / f"{name}.py"


@pytest.mark.parametrize("name", NAMES)
def test_it_reaches_the_best_in_seconds(name, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(
        [sys.executable, "-W", "error", str(path_of(name))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20  # whatever else the machine does
    assert list(tmp_path.iterdir()) == []
    assert "best" in result.stdout


@pytest.mark.parametrize("name", NAMES)
def test_it_says_so_where_the_best_is_not_reached(name, capsys):
    source = path_of(name).read_text(encoding="utf-8")
    unreachable = re.sub(r"^TOLERANCE = [\d.]+", "TOLERANCE = -0.5", source, flags=re.MULTILINE)
    assert unreachable != source
    with torch.random.fork_rng(), pytest.raises(SystemExit) as stopped:
        exec(compile(unreachable, name, "exec"), {"__name__": "__main__"})
    assert stopped.value.code == 1
    assert "best" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_it_has_less_than_sixty_lines(name):
    assert len(path_of(name).read_text(encoding="utf-8").splitlines()) < 60


def test_the_best_of_the_formula_is_the_one_that_calculus_gives():
    names = runpy.run_path(str(path_of(NAMES[0])))
    dynamics = names["FunctionDynamics"](names["reach"])
    for x in (0.0, 3.0):
        # d/da of (x + H a - 1)^2 + H a^2 is zero at a = (1 - x) / (H + 1).
        best = -((x - 1) ** 2) / (names["HORIZON"] + 1)
        assert float(names["best_return"](dynamics, torch.tensor([x]))) == pytest.approx(best, rel=1e-4)


def test_no_actions_of_the_crane_beat_its_best():
    names = runpy.run_path(str(path_of(NAMES[0])))
    dynamics, state = names["StepDynamics"](names["push"], names["calm"]), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    some = torch.rand(names["HORIZON"], 1, 5000, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert dynamics.rollout(state, some).max() < names["best_return"](dynamics, state)


def test_the_best_of_the_battery_is_the_one_found_by_hand():
    names = runpy.run_path(str(path_of(NAMES[1])))
    env = names["Battery"]()
    env.reset()
    # Buy at 1 and 2, sell one at 6, wait at 4, buy again at 2, sell at 5 and 7: -1 - 2 + 6 - 2 + 5 + 7.
    by_hand = torch.tensor([0.0, 1.0, 1.0, -1.0, 0.0, 1.0, -1.0, -1.0]).reshape(8, 1, 1, 1)
    dynamics = EnvDynamics(env)
    assert dynamics.rollout(dynamics.state(), by_hand).tolist() == [[13.0]]


@pytest.mark.slow
def test_the_page_about_them_runs_from_top_to_bottom_and_plans_well(tmp_path, monkeypatch):
    pytest.importorskip("dm_control")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "your-own-dynamics.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 7
    seen = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names = {}
        for block in blocks:
            exec(block, names)
            seen.append({name: names[name] for name in ("plan", "again", "state") if name in names})
    formula, point, windy, stepped, choices, mujoco, _ = (entry["plan"] for entry in seen)
    best = (1 - torch.tensor([0.0, -1.0, 3.0])) / 11
    torch.testing.assert_close(formula.action[:, 0], best, atol=0.03, rtol=0)
    assert (point.action[:, 0] * torch.tensor([1.0, -1.0]) < -0.5).all(), "full force towards the middle"
    assert all(torch.equal(one, two) for one, two in zip(windy[:5], seen[2]["again"][:5], strict=True))
    assert (seen[3]["state"]["place"].abs() < torch.tensor([1.0, 2.0])).all()
    assert stepped.valid.all()
    assert choices.action.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert mujoco.value.isfinite().all()

"""The environment of one page: its optimum is one, and an agent comes close to it."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from loading import ROOT, load_example

pytest.importorskip("gymnasium")
SCRIPT = ROOT / "examples" / "custom_env.py"


@pytest.fixture(scope="module")
def example():
    return load_example("custom_env")


def run(*command):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "examples")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)


def shares(output):
    """Random, agent and optimum of the last line, and its percentage."""
    found = re.search(r"random (\S+), agent (\S+), optimum (\S+): (\S+)% of the way$", output.strip())
    return [float(text) for text in found.groups()]


def play(env, act):
    total, done = 0.0, False
    while not done:
        _, reward, terminated, done, _ = env.step(act())
        assert not terminated
        total += reward
    return total


def test_the_stated_optimum_is_what_steering_straight_earns_and_no_wandering_earns_more(example):
    env, generator = example.Steer(), np.random.default_rng(0)
    for seed in range(10):
        env.reset(seed=seed)
        best = env.best_return()
        straight = play(env, lambda: np.clip((example.TARGET - env.place) / example.SPEED, -1, 1))
        assert straight == pytest.approx(best, abs=1e-9)
        env.reset(seed=seed)
        noise = play(
            env, lambda: np.clip((example.TARGET - env.place) / example.SPEED + generator.normal(size=2), -1, 1)
        )
        assert noise < best


def test_the_picture_shows_both_spots_where_they_are(example):
    env = example.Steer()
    image, _ = env.reset(seed=3)
    for colour, place in enumerate((env.place, example.TARGET)):
        brightest = np.unravel_index(image[..., colour].argmax(), (example.SIZE, example.SIZE))
        np.testing.assert_allclose((np.array(brightest) + 0.5) / example.SIZE, place, atol=0.5 / example.SIZE + 1e-9)
    assert env.observation_space.contains(image)
    assert not image[..., 2].any()


def test_an_agent_that_learned_nothing_is_told_so():
    result = run(SCRIPT, "--rounds", "0")
    assert result.returncode == 1, result.stderr
    assert shares(result.stdout)[3] < 90


def test_the_examples_of_the_page_run_from_top_to_bottom():
    page = (ROOT / "docs" / "your-own-environment.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    check = (
        "named = make_env('gym:Steer-v0', image_size=(32, 32))\n"
        "assert (named.reset(seed=0)[0] == episode.obs[0]).all() and episode.obs.shape == (16, 3, 32, 32)"
    )
    result = run("-W", "error", "-c", "\n".join([*blocks, check]))
    assert len(blocks) == 2
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_an_agent_comes_close_to_the_optimum():
    result = run(SCRIPT, "--rounds", "14")
    assert result.returncode == 0, result.stdout + result.stderr
    random, agent, best, share = shares(result.stdout)
    assert random < agent < best
    assert share == pytest.approx(100 * (agent - random) / (best - random), abs=0.3)

"""All parts of a run in one call, or none; numbers that are left out and counted; who may write to a run, and where."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import planet_lib as pl
from planet_lib.training import (
    RunDirectory,
    RunState,
    SkipNonFinite,
    load_checkpoint,
    make_deterministic,
    update,
)
from planet_lib.training.presets import PRESETS, build_agent, build_model


def make_parts(width=3, seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(2, width)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    replay = pl.SequenceReplay(20, obs_shape=(2,), action_dim=1, seed=seed)
    flags = np.zeros(10, bool)
    episode = pl.Episode(
        obs=np.arange(20, dtype=np.float32).reshape(10, 2),
        action=np.zeros((10, 1), np.float32),
        reward=np.zeros(10, np.float32),
        is_first=np.arange(10) == 0,
        terminated=flags,
        truncated=flags,
    )
    replay.add(episode)
    own = torch.Generator().manual_seed(seed)
    return {"model": model, "optimizer": optimizer, "replay": replay, "own": own, "numpy": np.random.default_rng(seed)}


def go_on(parts):
    """Some updates on windows of the replay, with noise from every generator there is; what comes out needs all."""
    drawn = []
    for _ in range(4):
        obs = parts["replay"].sample(4, 3).obs
        noise = torch.rand(4, generator=parts["own"]).sum() + parts["numpy"].random() + torch.rand(())
        parts["optimizer"].zero_grad()
        (parts["model"](obs).square().mean() * noise).backward()
        parts["optimizer"].step()
        drawn.append(float(noise))
    return drawn, copy.deepcopy(parts["model"].state_dict())


def test_a_restored_run_goes_on_bit_for_bit_in_new_parts(tmp_path):
    parts = make_parts()
    go_on(parts)
    RunState(**parts).save(tmp_path / "checkpoint.pt", done={"episodes": 3})
    expected = go_on(parts)
    others = make_parts(seed=1)
    saved = load_checkpoint(tmp_path / "checkpoint.pt")
    RunState(**others).restore(saved)
    assert saved["done"] == {"episodes": 3}
    torch.testing.assert_close(go_on(others), expected, rtol=0.0, atol=0.0)


def test_what_does_not_fit_is_named_and_everything_stays_as_it_was(tmp_path):
    RunState(**make_parts()).save(tmp_path / "checkpoint.pt")
    saved = load_checkpoint(tmp_path / "checkpoint.pt")
    wider = make_parts(width=4, seed=1)
    twin = make_parts(width=4, seed=1)
    with pytest.raises(ValueError, match=r"^saved\['model'\] must fit this run, got another's: .*size mismatch"):
        RunState(**wider).restore(saved)
    for parts in (twin, wider):  # the same numbers as if nobody had tried
        torch.manual_seed(2)
        go_on(parts)
    torch.testing.assert_close(wider["model"].state_dict(), twin["model"].state_dict(), rtol=0.0, atol=0.0)
    fitting = make_parts(seed=1)
    before = copy.deepcopy(fitting["model"].state_dict())
    broken = {**saved, "rng": {**saved["rng"], "numpy": {"bit_generator": "PCG64"}}}
    with pytest.raises(ValueError, match=r"^saved\['rng'\] must fit this run"):
        RunState(**fitting).restore(broken)
    torch.testing.assert_close(fitting["model"].state_dict(), before, rtol=0.0, atol=0.0)
    with pytest.raises(ValueError, match=r"got none called replay$"):
        RunState(**fitting).restore({name: part for name, part in saved.items() if name != "replay"})


@pytest.mark.parametrize(
    ("parts", "plain", "error", "message"),
    [
        ({"rng": np.random.default_rng()}, {}, ValueError, "must not be called 'rng'"),
        ({"model": 3}, {}, TypeError, "model must be a generator, or have state_dict and load_state_dict, got int"),
        ({"model": nn.Linear}, {}, TypeError, "model must be a generator.*got type"),
        ({"model": nn.Linear(1, 1)}, {"model": 1}, ValueError, "must have names of their own, got model"),
        ({"model": nn.Linear(1, 1)}, {"done": {1, 2}}, TypeError, r"payload\['done'\] must be a tensor.*got set"),
    ],
)
def test_what_cannot_be_saved_is_refused_and_nothing_written(tmp_path, parts, plain, error, message):
    with pytest.raises(error, match=message):
        RunState(**parts).save(tmp_path / "checkpoint.pt", **plain)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("start", [0, 1])
def test_an_agent_goes_on_within_an_episode_with_its_filter_and_its_last_plan(tmp_path, start):
    preset = PRESETS["cpu"]
    torch.manual_seed(0)
    agent = build_agent(preset, build_model(preset, "rssm", (5,), 2))
    agent.warm_start = bool(start)
    begins, goes_on = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)
    _, state, _ = agent(torch.ones(1, 5), begins, None, explore=True)
    run = RunState(model=agent.model)
    run.save(tmp_path / "checkpoint.pt", agent=agent.save_state(state))
    expected, later, _ = agent(torch.ones(1, 5) * 2, goes_on, state, explore=True)
    saved = load_checkpoint(tmp_path / "checkpoint.pt")
    torch.manual_seed(5)
    run.restore(saved)
    action, again, _ = agent(torch.ones(1, 5) * 2, goes_on, agent.load_state(saved["agent"]), explore=True)
    torch.testing.assert_close(action, expected, rtol=0.0, atol=0.0)
    torch.testing.assert_close(again, later, rtol=0.0, atol=0.0)
    assert type(again.latent) is type(state.latent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: None, "must be what save_state returned, got NoneType"),
        (lambda saved: {"action": saved["action"]}, "must be what save_state returned, got dict"),
        (lambda saved: saved | {"plan": {"nothing": None}}, "must be what save_state returned, got dict"),
        (
            lambda saved: saved | {"latent": saved["latent"][:1]},
            r"must be of this cell, latent \[\[1, 100\].*got \[\[1",
        ),
        (lambda saved: saved | {"action": torch.zeros(1, 7)}, r"action \[B, 2\], got .*\[1, 7\]"),
    ],
)
def test_a_state_of_another_agent_is_refused(change, message):
    agent = build_agent(PRESETS["cpu"], build_model(PRESETS["cpu"], "rssm", (5,), 2))
    with pytest.raises(ValueError, match=message):
        agent.load_state(change(agent.save_state(agent.initial(1))))


def bad():
    raise pl.NonFiniteError("step 3: reward must be finite, got nan")


def test_what_is_not_finite_is_left_out_told_counted_and_too_much_in_a_row_ends_it():
    lines = []
    skip = SkipNonFinite(limit=2, say=lines.append)
    for number, goes_well in enumerate([False, False, True, False, False]):
        with skip.leaving_out(f"update {number}"):
            if not goes_well:
                bad()
    assert (skip.count, skip.in_a_row) == (4, 2)
    assert lines[0] == "update 0 is left out (step 3: reward must be finite, got nan)"
    message = r"^update 9 would be number 3 in a row to be left out, and 2 may be: step 3: reward must be finite"
    with pytest.raises(pl.NonFiniteError, match=message), skip.leaving_out("update 9"):
        bad()
    assert len(lines) == 4


def test_other_errors_are_nobodys_to_leave_out():
    skip = SkipNonFinite(say=print)
    with pytest.raises(ValueError, match="another"), skip.leaving_out("update 0"):
        raise ValueError("another")
    assert skip.count == 0


def test_the_counts_go_on_after_a_pause_and_others_are_refused():
    skip = SkipNonFinite(limit=3, say=str)
    with skip.leaving_out("update 0"):
        bad()
    other = SkipNonFinite(limit=3, say=str)
    other.load_state_dict(skip.state_dict())
    assert (other.count, other.in_a_row) == (1, 1)
    for state in (
        None,
        {},
        {"count": -1, "in_a_row": 0},
        {"count": 1.5, "in_a_row": 0},
        {"count": True, "in_a_row": 0},
    ):
        with pytest.raises(ValueError, match="state must hold count and in_a_row"):
            other.load_state_dict(state)
    assert (other.count, other.in_a_row) == (1, 1)
    with pytest.raises(ValueError, match="limit must be a whole number of at least 1, got 0"):
        SkipNonFinite(limit=0)


def test_a_run_is_written_by_one_process_at_a_time_and_is_free_when_that_ends(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {"seed": 0})
    program = (
        "import sys; from planet_lib.training import RunDirectory\n"
        "with RunDirectory.open(sys.argv[1]).lock(): print('locked', flush=True); sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", program, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        message = r"run .*run must be written by one process at a time, got another"
        with pytest.raises(BlockingIOError, match=message), run.lock():
            pass
        other.kill()
        other.communicate()
    with run.lock():
        pass


def test_what_the_last_digits_depend_on_is_compared_with_the_start_of_the_run(tmp_path, monkeypatch):
    run = RunDirectory.create(tmp_path / "run", {"seed": 0})
    assert run.differences() == []
    threads = run.machine["torch_threads"]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    monkeypatch.setattr("platform.python_version", lambda: "3.99.0")
    found = RunDirectory.open(run.path).differences()
    assert found[0].startswith("python 3.")
    assert found[0].endswith("(now 3.99.0)")
    assert found[1:] == [f"torch_threads {threads} (now {threads + 1})"]


def test_the_switch_for_deterministic_operations_leaves_an_updates_numbers_as_they_are(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    preset = PRESETS["cpu"]
    flags = torch.zeros(6, 2, dtype=torch.bool)
    frames = torch.randint(0, 256, (6, 2, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    batch = pl.Batch(frames, torch.zeros(6, 2, 2), torch.ones(6, 2), flags, flags, ~flags)
    norms = []
    try:
        for _ in range(2):
            torch.manual_seed(0)
            model = build_model(preset, "rssm", (1, 32, 32), 2)
            norms.append(update(model, torch.optim.Adam(model.parameters()), batch).grad_norm)
            make_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(norms[0], norms[1], rtol=0.0, atol=0.0)


def test_moments_of_other_weights_are_refused_and_the_optimizer_stays_as_it_was(tmp_path):
    others = make_parts(width=4)
    go_on(others)
    RunState(optimizer=others["optimizer"]).save(tmp_path / "checkpoint.pt")
    parts = make_parts()
    go_on(parts)
    before = copy.deepcopy(parts["optimizer"].state_dict())
    with pytest.raises(
        ValueError, match=r"^saved\['optimizer'\] must fit this run.*exp_avg \[4, 2\] for a weight \[3, 2\]"
    ):
        RunState(optimizer=parts["optimizer"]).restore(load_checkpoint(tmp_path / "checkpoint.pt"))
    torch.testing.assert_close(parts["optimizer"].state_dict(), before, rtol=0.0, atol=0.0)

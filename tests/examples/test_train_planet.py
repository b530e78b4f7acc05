"""The whole loop at a tiny size: what it writes, that it goes on exactly, and that mistakes cost one line."""

import csv
import importlib.util
import shutil
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from loading import EXAMPLES, load_example
from tiny_runs import RUN, flags_of

from planet_lib.training import load_checkpoint, save_checkpoint

TINY = flags_of(RUN)


train_planet = load_example("train_planet")
LOSSES = train_planet.COLUMNS[train_planet.COLUMNS.index("loss_total") : train_planet.COLUMNS.index("grad_norm") + 1]
# Everything that a run can have at once: camera and vector, all terms, a warm-up that a pause must not begin anew.
EVERYTHING = (
    *("--preset", "v1", "--image-size", "16", "--precision", "bfloat16", "--warmup-updates", "3"),
    *("--kl-balance", "0.8", "--overshooting-obs-scale", "0.1", "--overshooting-chunk", "1"),
)


def train(out, *flags, name="run", obs="state"):
    train_planet.main([*TINY, "--out", str(out), "--name", name, "--obs", obs, *flags])
    return out / name


def rows_of(run):
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights_of(run):
    return load_checkpoint(run / "checkpoint.pt")["model"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two seed episodes, two training episodes and one evaluation, from vectors."""
    return train(tmp_path_factory.mktemp("whole"))


def test_a_run_writes_settings_metrics_episodes_checkpoint_curve_and_events(whole):
    assert [row["kind"] for row in rows_of(whole)] == ["seed", "seed", "train", "train", "eval"]
    assert [int(row["updates"]) for row in rows_of(whole)] == [0, 0, 2, 4, 4]
    assert [int(row["env_steps"]) for row in rows_of(whole)] == [200, 400, 600, 800, 800]
    assert len(list((whole / "episodes").glob("*.npz"))) == 4
    for name in ("settings.json", "checkpoint.pt", "learning_curve.png", "tensorboard"):
        assert (whole / name).exists(), name


def test_the_training_rows_hold_finite_losses_and_the_evaluation_a_mean_and_spread(whole):
    *_, trained, evaluated = rows_of(whole)
    there = {"loss_total", "loss_obs", "loss_reward", "loss_continue", "kl", "kl_clipped", "grad_norm"}
    assert {name for name in LOSSES if trained[name]} == there
    assert all(np.isfinite(float(trained[name])) for name in (*there, "episode_return"))
    assert float(evaluated["eval_mean"]) < 0 <= float(evaluated["eval_std"])


def test_a_stopped_and_resumed_run_equals_one_that_never_stopped_bit_for_bit(whole, tmp_path):
    run = train(tmp_path, "--num-episodes", "1")
    train_planet.main(["--resume", str(run), "--num-episodes", "2"])
    torch.testing.assert_close(weights_of(run), weights_of(whole), rtol=0.0, atol=0.0)
    # The first run's last episode was evaluated, being its last; apart from that and the clock all rows are equal.
    timeless = [
        [{name: cell for name, cell in row.items() if "second" not in name} for row in rows_of(path)]
        for path in (run, whole)
    ]
    assert timeless[1] == [row for row in timeless[0] if not (row["kind"] == "eval" and row["episode"] == "3")]


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    return train(tmp_path_factory.mktemp("everything"), *EVERYTHING, obs="both")


def test_a_run_with_every_term_from_pixels_and_state_fills_every_column_and_draws_the_pixels(everything):
    *_, trained, evaluated = rows_of(everything)
    assert all(np.isfinite(float(trained[name])) for name in LOSSES)
    assert float(trained["loss_total"]) > float(trained["loss_obs"]) > 0
    assert float(evaluated["eval_mean"]) < 0
    names = sorted(path.name for path in (everything / "videos").iterdir())
    stem = "episode-000004-pixels"
    assert names == [f"{stem}-open-loop.mp4", f"{stem}-open-loop.png", f"{stem}-reconstruction.mp4"]


def test_a_run_with_every_term_goes_on_bit_for_bit(everything, tmp_path):
    run = train(tmp_path, *EVERYTHING, "--num-episodes", "1", obs="both")
    train_planet.main(["--resume", str(run), "--num-episodes", "2"])
    torch.testing.assert_close(weights_of(run), weights_of(everything), rtol=0.0, atol=0.0)


def test_a_run_stops_at_its_score_and_goes_on_to_a_higher_one(tmp_path, capsys):
    run = train(tmp_path, "--eval-every", "1", "--stop-at", "-1000000")  # below any return of the pendulum
    assert [row["kind"] for row in rows_of(run)] == ["seed", "seed", "train", "eval"]
    assert "done after 3 episodes; a larger --stop-at with --resume goes on" in capsys.readouterr().err
    before = weights_of(run)
    train_planet.main(["--resume", str(run)])
    torch.testing.assert_close(weights_of(run), before, rtol=0.0, atol=0.0)
    train_planet.main(["--resume", str(run), "--stop-at", "0.1"])
    assert [row["kind"] for row in rows_of(run)] == ["seed", "seed", "train", "eval", "train", "eval"]
    assert "done after 4 episodes; a larger --num-episodes with --resume goes on" in capsys.readouterr().err


def test_evaluate_draws_the_pixels_of_a_run_from_pixels_and_state(everything):
    load_example("evaluate").main([str(everything), "--episodes", "1", "--video"])
    assert (everything / "videos" / "evaluation-pixels.mp4").stat().st_size > 1000


def test_the_learning_rate_warms_up_across_a_pause_and_the_precision_may_change_there(tmp_path, monkeypatch):
    calls, original = [], train_planet.training.update

    def watched(model, optimizer, *args, autocast, **kwargs):
        calls.append((optimizer.param_groups[0]["lr"], autocast))
        return original(model, optimizer, *args, autocast=autocast, **kwargs)

    monkeypatch.setattr(train_planet.training, "update", watched)
    run = train(tmp_path, "--num-episodes", "1", "--warmup-updates", "3", "--learning-rate", "0.3")
    train_planet.main(["--resume", str(run), "--num-episodes", "2", "--precision", "bfloat16"])
    assert [rate for rate, _ in calls] == pytest.approx([0.1, 0.2, 0.3, 0.3])
    assert [autocast for _, autocast in calls] == [None, None, torch.bfloat16, torch.bfloat16]


@pytest.mark.parametrize("moment", ["fit", "collect", "evaluate"])
def test_ctrl_c_at_any_moment_leaves_a_run_that_goes_on_to_the_same_end(whole, tmp_path, monkeypatch, capsys, moment):
    where = train_planet.training if moment == "fit" else train_planet
    place, count = {"fit": ("update", 3), "collect": ("run_episodes", 4), "evaluate": ("run_episodes", 5)}[moment]
    original, calls = getattr(where, place), []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(where, place, interrupted)
    run = train(tmp_path)
    kept = load_checkpoint(run / "checkpoint.pt")["done"]["episodes"]
    assert f"stopped after {kept} episodes; go on with: --resume {run}" in capsys.readouterr().err
    monkeypatch.undo()
    train_planet.main(["--resume", str(run)])
    torch.testing.assert_close(weights_of(run), weights_of(whole), rtol=0.0, atol=0.0)
    assert [row["kind"] for row in rows_of(run)] == [row["kind"] for row in rows_of(whole)]


def test_what_is_changed_with_resume_holds_for_every_later_one(whole, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    alone, cut = (shutil.copytree(whole, tmp_path / name) for name in ("alone", "cut"))
    changes = ["--batch-size", "3", "--num-episodes", "3"]
    train_planet.main(["--resume", str(alone), *changes])
    with monkeypatch.context() as patch:
        patch.setattr(train_planet.training, "update", interrupted)
        train_planet.main(["--resume", str(cut), *changes])
    assert capsys.readouterr().err.count("from here on: num_episodes 3 (was 2), batch_size 3 (was 2)") == 2
    train_planet.main(["--resume", str(cut)])
    said = capsys.readouterr().err
    assert "done after 5 episodes" in said
    assert "from here on" not in said
    torch.testing.assert_close(weights_of(cut), weights_of(alone), rtol=0.0, atol=0.0)


def test_switches_and_scores_can_be_taken_back_and_the_replay_moved_back(whole, tmp_path, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    there = str(tmp_path / "replay")
    for flags, said in (
        (["--stop-at", "5", "--replay-dir", there], f"replay_dir {there} (was ), stop_at 5.0 (was None)"),
        (["--stop-at", "none", "--replay-dir", ""], f"replay_dir  (was {there}), stop_at None (was 5.0)"),
        (["--replay-dir", there, "--no-deterministic"], f"replay_dir {there} (was )"),
    ):
        train_planet.main(["--resume", str(run), *flags])
        assert f"from here on: {said}\n" in capsys.readouterr().err


def test_another_renderer_is_that_of_the_next_resume_too(tmp_path, monkeypatch, capsys):
    small = ("--env", "dmc:pendulum-swingup", "--image-size", "16", "--renderer", "rays", "--action-repeat", "250")
    run = train(tmp_path, *small, "--num-episodes", "0", "--quality", "tuned", obs="pixels")
    saved = load_checkpoint(run / "checkpoint.pt")
    saved["renderer"] = dict.fromkeys(saved["renderer"], "gl-tuned")  # as if OpenGL had drawn it
    save_checkpoint(run / "checkpoint.pt", saved)
    with monkeypatch.context() as patch:
        patch.setattr(train_planet, "run_episodes", None)
        train_planet.main(["--resume", str(run), "--renderer", "rays", "--stop-at", "9"])
    assert "from here on: stop_at 9.0 (was None)" in capsys.readouterr().err
    assert set(load_checkpoint(run / "checkpoint.pt")["renderer"].values()) == {"rays"}
    train_planet.main(["--resume", str(run)])


def test_a_checkpoint_is_read_once_no_other_process_can_write_the_next_one(whole, tmp_path, monkeypatch):
    run, original = shutil.copytree(whole, tmp_path / "run"), train_planet.training.load_checkpoint

    def while_locked(path, **settings):
        with pytest.raises(BlockingIOError):
            train_planet.RunDirectory.open(run).lock().__enter__()
        return original(path, **settings)

    monkeypatch.setattr(train_planet.training, "load_checkpoint", while_locked)
    train_planet.main(["--resume", str(run)])


def test_ctrl_c_in_the_first_episode_leaves_a_run_that_goes_on_to_the_same_end(whole, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_planet, "run_episodes", interrupted)
    run = train(tmp_path, name="a run")
    assert f"stopped after 0 episodes; go on with: --resume '{run}'" in capsys.readouterr().err
    monkeypatch.undo()
    train_planet.main(["--resume", str(run)])
    torch.testing.assert_close(weights_of(run), weights_of(whole), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_ctrl_c_before_the_run_and_a_second_one_after_it_cost_one_line(tmp_path, monkeypatch, moment):
    close = train_planet.training.MetricsWriter.close

    def interrupted(*args, **kwargs):
        if moment == "after":
            close(*args)
        raise KeyboardInterrupt

    place = {"before": (train_planet, "make_vector_env"), "after": (train_planet.training.MetricsWriter, "close")}[
        moment
    ]
    monkeypatch.setattr(*place, interrupted)
    with pytest.raises(SystemExit, match=r"^train_planet.py: stopped$"):
        train(tmp_path, "--num-episodes", "0")


def test_an_environment_whose_episodes_are_shorter_than_the_context_is_drawn(tmp_path):
    run = train(tmp_path, "--action-repeat", "100", "--window", "2", "--image-size", "16", obs="pixels")
    assert (run / "videos" / "episode-000004-open-loop.mp4").stat().st_size > 1000


@pytest.mark.parametrize("cell", ["ssm", "rnn"])
def test_pixels_and_the_other_cells_train_and_draw_their_videos(tmp_path, cell):
    run = train(tmp_path, "--cell", cell, "--image-size", "32", obs="pixels")
    names = sorted(path.name for path in (run / "videos").iterdir())
    stem = "episode-000004"
    assert names == [f"{stem}-open-loop.mp4", f"{stem}-open-loop.png", f"{stem}-reconstruction.mp4"]


def test_evaluate_reports_mean_and_spread_of_a_checkpoint_and_repeats_itself(whole, capsys):
    evaluate = load_example("evaluate")
    lines = []
    for _ in range(2):
        evaluate.main([str(whole), "--episodes", "2"])
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1]
    assert "gym:Pendulum-v1: mean return -" in lines[0]
    assert "over 2 episodes, after 4 episodes and 4 updates" in lines[0]


def test_evaluate_can_plan_in_another_way_than_the_run_did(whole, monkeypatch):
    evaluate, agents = load_example("evaluate"), []
    build = evaluate.build_agent
    monkeypatch.setattr(
        evaluate, "build_agent", lambda *args, **flags: agents.append(build(*args, **flags)) or agents[-1]
    )
    chosen = ["planner=icem", "warm_start=1", "num_candidates=9", "num_elites=2", "discount=0.9"]
    evaluate.main([str(whole), "--episodes", "1", "--set", *chosen])
    planner = agents[0].planner
    assert (type(planner).__name__, planner.num_candidates, planner.num_elites) == ("ICEMPlanner", 9, 2)
    assert (planner.dynamics.discount, agents[0].warm_start) == (0.9, True)


def test_evaluate_writes_a_video_of_a_run_from_pixels(tmp_path):
    run = train(tmp_path, "--image-size", "32", "--num-episodes", "1", obs="pixels")
    load_example("evaluate").main([str(run), "--episodes", "1", "--video"])
    assert (run / "videos" / "evaluation.mp4").stat().st_size > 1000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "meta"], "device must be auto, cpu, or one"),
        (["--eval-every", "0"], "eval_every must be a whole number of at least 1, got 0"),
        (["--free-nats", "nan"], "free_nats must be a finite number, got nan"),
        (["--seed", "-1"], "seed must be"),
        (["--replay-capacity", "10000000000000"], "replay_capacity must be a whole number of at most 2147483647"),
    ],
)
def test_a_setting_that_cannot_be_leaves_nothing_behind(tmp_path, flags, message):
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path / "runs", *flags)
    assert message in str(stopped.value)
    assert not (tmp_path / "runs").exists()


def test_a_missing_extra_is_named_before_anything_is_collected(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    with pytest.raises(SystemExit, match=r"need matplotlib, not installed here.*planet-worldmodel\[train\]"):
        train(tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_reward_that_is_not_finite_costs_one_line_and_keeps_the_run(tmp_path, monkeypatch):
    step = lambda self, action: (np.zeros(3, np.float32), np.nan, False, False, {})  # noqa: E731
    monkeypatch.setattr("gymnasium.envs.classic_control.pendulum.PendulumEnv.step", step)
    message = (
        r"number 11 in a row to be left out, and 10 may be: the environment's reward must be finite, got nan[^\n]*$"
    )
    with pytest.raises(SystemExit, match=message):
        train(tmp_path)
    monkeypatch.undo()
    train_planet.main(["--resume", str(tmp_path / "run")])
    assert len(rows_of(tmp_path / "run")) == 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env", "dmc:cartpole-balanse"], "it has balance,"),
        (["--env", "cartpole"], "dmc:"),
        (["--tasks", "gym:Pendulum-v1,gym:CartPole-v1"], "tasks must have continuous actions, or all the same"),
        (["--num-envs", "0"], "num_envs must be"),
        (["--init-from", "nowhere"], "run directory nowhere does not exist"),
        (["--num-elites", "7"], "num_elites must be between 1 and num_candidates=6, got 7"),
    ],
)
def test_a_mistake_costs_one_line(tmp_path, flags, message):
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path, *flags)
    assert message in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_an_existing_run_is_not_overwritten(whole):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match="--resume"):
        train(whole.parent)
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (["--env", "gym:MountainCarContinuous-v0"], "env='gym:Pendulum-v1', got env='gym:MountainCarContinuous-v0'"),
        (["--cell", "ssm"], "cell='rssm', got cell='ssm'"),
        (["--deter-dim", "9"], "deter_dim=8, got deter_dim=9"),
        (["--preset", "paper"], "preset='cpu', got preset='paper'"),
        (["--gru", "reset_before"], "gru='reset_after', got gru='reset_before'"),
        (["--continue-scale", "0"], "continue_scale=1.0, got continue_scale=0.0"),
    ],
)
def test_a_checkpoint_of_another_environment_or_model_is_refused_and_kept(whole, tmp_path, flags, difference):
    run = tmp_path / "copy"
    shutil.copytree(whole, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stopped:
        train_planet.main(["--resume", str(run), *flags])
    assert difference in str(stopped.value)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_of_the_version_before_the_newer_settings_is_refused_in_one_line_and_kept(whole, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(whole, run)
    saved = load_checkpoint(run / "checkpoint.pt")
    for name in ("activation", "gru", "precision"):
        del saved["settings"][name]
    save_checkpoint(run / "checkpoint.pt", saved)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for command in (
        lambda: train_planet.main(["--resume", str(run)]),
        lambda: load_example("evaluate").main([str(run)]),
    ):
        with pytest.raises(
            SystemExit,
            match=r"lack activation, gru, precision: .* another version[^\n]* new run \(got",
        ):
            command()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_training_script_is_read_in_one_sitting():
    assert len((EXAMPLES / "train_planet.py").read_text(encoding="utf-8").splitlines()) <= 300


def test_a_directory_that_is_no_run_is_named(tmp_path):
    with pytest.raises(SystemExit, match="nothing-here"):
        train_planet.main(["--resume", str(tmp_path / "nothing-here")])


@pytest.mark.parametrize("damage", ["an episode is missing", "a checkpoint of another program", "settings of a kind"])
def test_a_run_that_lost_something_is_refused_and_kept(whole, tmp_path, damage):
    run = tmp_path / "copy"
    shutil.copytree(whole, run)
    if damage == "an episode is missing":
        next((run / "episodes").glob("episode-000001-*")).unlink()
        message = "must hold 4 episodes by now, got 3: restore them"
    elif damage == "a checkpoint of another program":
        save_checkpoint(run / "checkpoint.pt", {"model": {}, "env_steps": 5})
        message = "it lacks settings, renderer, action_dim, done, metrics_rows, optimizer, replay, rng"
    else:
        text = (run / "settings.json").read_text()
        (run / "settings.json").write_text(text.replace('"batch_size": 2', '"batch_size": [2]'))
        message = "batch_size must be a whole number of at least 0, got [2]"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stopped:
        train_planet.main(["--resume", str(run), "--num-episodes", "3"])
    assert message in str(stopped.value)
    assert "\n" not in str(stopped.value)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--video"], "--video needs a run from pixels, got one from state"),
        (["--episodes", "0"], "--episodes must be at least 1, got 0"),
        (["--device", "meta"], "device must be"),
        (["--seed", "-1"], "seed must be"),
        (["--set", "learning_rate=1"], "--set takes NAME=VALUE with NAME one of planner, warm_start, "),
        (["--set", "num_candidates=many"], "--set num_candidates must be of type int, got 'many'"),
        (["--set", "planner=cma"], "planner must be one of cem, icem, mppi, shooting, got 'cma'"),
    ],
)
def test_a_mistake_in_evaluating_costs_one_line_before_any_episode(whole, capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        load_example("evaluate").main([str(whole), *flags])
    assert message in str(stopped.value)
    assert "return" not in "".join(capsys.readouterr())


def test_environments_that_can_terminate_get_a_continue_head_unless_it_is_refused():
    assert train_planet.parse(["--env", "gym:Hopper-v5"], ExitStack()).continue_scale == 1.0
    assert train_planet.parse(["--env", "gym:Hopper-v5", "--continue-scale", "0"], ExitStack()).continue_scale == 0.0
    assert train_planet.parse([], ExitStack()).continue_scale == 0.0


def test_the_rnn_has_no_free_nats_unless_they_are_asked_for():
    assert train_planet.parse(["--cell", "rnn"], ExitStack()).free_nats == 0.0
    assert train_planet.parse(["--cell", "rnn", "--free-nats", "2"], ExitStack()).free_nats == 2.0
    assert train_planet.parse(["--preset", "paper"], ExitStack()).free_nats == 3.0


def test_the_planner_alone_comes_close_to_the_known_optimum(capsys):
    assert load_example("plan_point_mass").main() == 0
    assert "allowed" in capsys.readouterr().out

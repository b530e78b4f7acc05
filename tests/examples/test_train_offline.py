"""A world model from recorded episodes alone: what it reads, writes and measures, and that it goes on exactly."""

import csv
import os
import re
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from loading import EXAMPLES, ROOT, load_example
from tiny_runs import MODEL, WINDOWS, flags_of

import planet_lib as pl
from planet_lib.data import load_episodes, save_episode
from planet_lib.training import load_checkpoint, open_loop_error
from planet_lib.training.presets import PRESETS, Preset, build_model
from planet_lib.types import Episode

TINY = flags_of({"updates": 4, "report-every": 2, "holdout": 0.25, "context": 3, "length": 8, **WINDOWS, **MODEL})


example = load_example("train_offline")


def recorded(number, *, kind="state", rows=12):
    """An episode whose action pushes a number that is seen, as a vector or a brightness, and earned."""
    action = np.random.default_rng(number).uniform(-1, 1, (rows, 1)).astype(np.float32)
    action[0] = 0
    place = action.cumsum(0)
    state = np.concatenate([place, np.full_like(place, number / 100)], 1)
    pixels = np.tile((128 + 10 * place).astype(np.uint8)[:, :, None, None], (1, 3, 16, 16))
    obs = {"state": state, "pixels": pixels, "both": {"pixels": pixels, "state": state}}[kind]
    count = np.arange(rows)
    reward = np.where(count > 0, place[:, 0], 0).astype(np.float32)
    return Episode(obs, action, reward, count == 0, np.zeros(rows, bool), count == rows - 1)


def folder_of(path, *, count=8, **settings):
    for number in range(count):
        save_episode(path, recorded(number, **settings), number)
    return path


def train(source, out, *flags, name="run"):
    example.main([str(source), *TINY, "--out", str(out), "--name", name, *flags])
    return out / name


def rows_of(run):
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def model_of(run, obs_shape):
    saved = load_checkpoint(run / "checkpoint.pt")
    model = build_model(Preset.from_settings(saved["settings"]), saved["settings"]["cell"], obs_shape, 1)
    model.load_state_dict(saved["model"])
    return model


def message_of(*arguments):
    with pytest.raises(SystemExit) as stopped:
        example.main([str(argument) for argument in arguments])
    assert "\n" not in str(stopped.value)
    return str(stopped.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    return train(folder, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    out = tmp_path_factory.mktemp("pixels")
    return train(folder_of(out / "episodes", kind="pixels"), out)


def test_a_run_writes_settings_metrics_and_a_checkpoint_and_reports_what_was_kept_aside(whole):
    assert sorted(path.name for path in whole.iterdir() if path.suffix) == sorted(
        ["settings.json", "metrics.csv", "checkpoint.pt", "checkpoint-previous.pt"]
    )
    rows = rows_of(whole)
    assert [int(row["updates"]) for row in rows] == [2, 4]
    assert tuple(rows[0]) == example.COLUMNS
    assert all(float(row[name]) > 0 for row in rows for name in ("loss_total", "loss_obs", "holdout_obs", "kl"))
    assert load_checkpoint(whole / "checkpoint.pt")["done"]["episodes"] == 6


def test_a_run_that_was_stopped_goes_on_bit_for_bit(folder, whole, tmp_path):
    run = train(folder, tmp_path, "--updates", "3")
    example.main(["--resume", str(run), "--updates", "4"])
    states = [load_checkpoint(each / "checkpoint.pt") for each in (run, whole)]
    torch.testing.assert_close(states[0]["model"], states[1]["model"], rtol=0.0, atol=0.0)
    assert states[0]["replay"] == states[1]["replay"]
    assert [int(row["updates"]) for row in rows_of(run)] == [2, 3, 4]


def test_ctrl_c_leaves_a_run_that_goes_on_to_the_same_end(folder, whole, tmp_path, monkeypatch, capsys):
    original, calls = example.training.update, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(example.training, "update", interrupted)
        run = train(folder, tmp_path)
    assert f"stopped; go on with: --resume {run}" in capsys.readouterr().err
    example.main(["--resume", str(run)])
    states = [load_checkpoint(each / "checkpoint.pt")["model"] for each in (run, whole)]
    torch.testing.assert_close(states[0], states[1], rtol=0.0, atol=0.0)


def test_what_is_changed_with_resume_holds_for_every_later_one(whole, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    def while_locked(path, **settings):
        with pytest.raises(BlockingIOError):
            example.training.RunDirectory.open(cut).lock().__enter__()
        return load_checkpoint(path, **settings)

    alone, cut = (shutil.copytree(whole, tmp_path / name) for name in ("alone", "cut"))
    changes = ["--batch-size", "3", "--updates", "6"]
    example.main(["--resume", str(alone), *changes])
    with monkeypatch.context() as patch:
        patch.setattr(example.training, "update", interrupted)
        patch.setattr(example.training, "load_checkpoint", while_locked)
        example.main(["--resume", str(cut), *changes])
    assert capsys.readouterr().err.count("\nfrom here on: batch_size 3 (was 2)\n") == 2
    example.main(["--resume", str(cut)])
    assert "from here on" not in capsys.readouterr().err
    states = [load_checkpoint(each / "checkpoint.pt") for each in (alone, cut)]
    assert states[0]["done"]["updates"] == states[1]["done"]["updates"] == 6
    torch.testing.assert_close(states[0]["model"], states[1]["model"], rtol=0.0, atol=0.0)


def test_episodes_kept_aside_are_spread_evenly_and_never_trained_on(folder, tmp_path, monkeypatch):
    batches, original = [], example.training.update

    def watched(model, optimizer, batch, *args, **kwargs):
        batches.append(batch)
        return original(model, optimizer, batch, *args, **kwargs)

    monkeypatch.setattr(example.training, "update", watched)
    train(folder, tmp_path, "--updates", "40", "--report-every", "40")
    numbers = {round(100 * float(number)) for batch in batches for number in batch.obs[..., 1].unique()}
    assert numbers == {0, 2, 3, 4, 6, 7}


def test_the_error_of_pixels_is_that_of_the_checkpoint_on_the_episodes_kept_aside(pixels):
    episodes = list(load_episodes(pixels.parent / "episodes"))
    error = open_loop_error(model_of(pixels, (3, 16, 16)), [episodes[1], episodes[5]], context=3, length=8)
    row = rows_of(pixels)[-1]
    for name, values in zip(example.HOLDOUT, (error.image, error.last_frame, error.reward_r2), strict=True):
        assert float(row[name]) == pytest.approx(float(values.mean()), rel=1e-4), name
    names = sorted(path.name for path in (pixels / "videos").iterdir())
    assert names == [
        f"updates-{n:07d}-{what}" for n in (2, 4) for what in ("open-loop.mp4", "open-loop.png", "reconstruction.mp4")
    ]


@pytest.mark.parametrize("kind", ["state", "both"])
def test_the_error_of_vectors_by_hand(kind):
    rows = np.arange(12)
    obs = np.stack([rows, np.full(12, 7)], 1).astype(np.float32)
    obs = {"far": obs[:, 1:], "near": obs[:, :1]} if kind == "both" else obs
    episode = recorded(0)._replace(obs=obs, reward=rows.astype(np.float32))
    obs_shape, action_dim = example.shapes_of(episode)
    model = build_model(PRESETS["cpu"], "rnn", obs_shape, action_dim)
    for parameter in [*model.decoder.parameters(), *model.reward_head.parameters()]:
        torch.nn.init.zeros_(parameter)  # so that it foresees zeros
    error = example.vector_error(model, [episode], context=3, length=12)
    seen = np.arange(3, 12)
    assert error["holdout_obs"] == pytest.approx(((seen**2).mean() + 49) / 2)
    assert error["holdout_obs_last"] == pytest.approx(((seen - 2) ** 2).mean() / 2)
    assert error["holdout_reward_r2"] == pytest.approx(1 - (seen**2).mean() / seen.var())


@torch.no_grad()
def test_the_error_of_vectors_is_that_of_a_model_which_saw_the_context_and_no_more():
    episode = recorded(5)
    model = build_model(PRESETS["cpu"], "rnn", (2,), 1)  # without chance
    obs, action, is_first = (
        torch.from_numpy(value)[:, None] for value in (episode.obs, episode.action, episode.is_first)
    )
    _, posterior = pl.observe(model.cell, model.encoder(obs[:3]), action[:3], is_first[:3])
    last = type(posterior)(*(field[-1] for field in posterior))
    features = model.cell.features(pl.imagine(model.cell, last, action[3:]))
    error = example.vector_error(model, [episode], context=3, length=12)
    assert error["holdout_obs"] == pytest.approx(float((model.decoder(features) - obs[3:]).square().mean()), rel=1e-4)


def test_a_model_of_vectors_learns_what_it_is_asked_for(folder, tmp_path):
    sizes = [text for name in ("hidden-dim", "embed-dim", "deter-dim") for text in (f"--{name}", "32")]
    flags = (*sizes, "--updates", "300", "--report-every", "100", "--holdout", "0.13")
    run = train(folder_of(tmp_path / "more", count=60), tmp_path, *flags, "--batch-size", "16", "--window", "8")
    first, _, last = rows_of(run)
    assert float(last["loss_obs"]) < float(first["loss_obs"])
    assert float(last["holdout_reward_r2"]) > 0.5
    assert float(last["holdout_obs"]) < float(first["holdout_obs"])


def test_no_environment_is_ever_imported(tmp_path):
    folder = folder_of(tmp_path / "episodes", kind="pixels")
    code = (
        "import sys\nfor name in ('gymnasium', 'dm_control', 'mujoco', 'minari'): sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(EXAMPLES)!r})\nimport train_offline\ntrain_offline.main({[str(folder), *TINY]!r})\n"
        "assert not [name for name in sys.modules if name.startswith('planet_lib.envs')]"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs" / "offline-episodes-rssm-cpu-seed0" / "checkpoint.pt").exists()


def test_open_loop_reads_the_run(pixels, tmp_path):
    assert load_checkpoint(pixels / "checkpoint.pt")["renderer"] == "unknown"
    fresh = folder_of(tmp_path / "fresh", kind="pixels", count=2)
    windows = ["--context", "3", "--length", "8", "--episodes", str(fresh), "--out", str(tmp_path / "out")]
    load_example("open_loop").main([str(pixels), *windows])
    assert (tmp_path / "out" / "run.png").stat().st_size > 1000


def test_what_a_run_collected_trains_a_model_that_acts_in_its_environment(tmp_path, capsys):
    pytest.importorskip("gymnasium")
    tiny = [*TINY[TINY.index("--batch-size") :], "--env", "gym:Pendulum-v1", "--obs", "both", "--image-size", "16"]
    collect = [*tiny, "--action-repeat", "20", "--seed-episodes", "4", "--num-episodes", "0"]
    load_example("train_planet").main([*collect, "--out", str(tmp_path), "--name", "seen"])
    run = train(tmp_path / "seen", tmp_path, "--horizon", "2", "--num-candidates", "6", "--num-elites", "2")
    saved = load_checkpoint(run / "checkpoint.pt")
    settings = saved["settings"]
    kept = {name: settings[name] for name in ("env", "obs", "image_size", "action_repeat", "continue_scale")}
    assert list(kept.values()) == ["gym:Pendulum-v1", "both", 16, 20, 1.0]
    assert saved["renderer"] == load_checkpoint(tmp_path / "seen" / "checkpoint.pt")["renderer"]
    capsys.readouterr()
    load_example("evaluate").main([str(run), "--episodes", "1"])
    assert "over 1 episodes, after 3 episodes and 4 updates" in capsys.readouterr().out
    alone = train(tmp_path / "seen", tmp_path, "--entry", "state", name="alone")
    saved = load_checkpoint(alone / "checkpoint.pt")
    assert (saved["settings"]["obs"], saved["renderer"]) == ("state", "none")


def test_several_sources_are_one_and_a_minari_dataset_is_one_of_them(folder, tmp_path, monkeypatch):
    minari = pytest.importorskip("minari", reason="reads Minari's datasets", exc_type=ImportError)
    spaces = pytest.importorskip("gymnasium").spaces
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    from minari.data_collector import EpisodeBuffer

    steps = [recorded(number) for number in range(4)]
    buffers = [
        EpisodeBuffer(
            observations=episode.obs,
            actions=2 * episode.action[1:],
            rewards=episode.reward[1:].tolist(),
            terminations=episode.terminated[1:].tolist(),
            truncations=episode.truncated[1:].tolist(),
        )
        for episode in steps
    ]
    made = {"observation_space": spaces.Box(-99.0, 99.0, (2,)), "action_space": spaces.Box(-2.0, 2.0, (1,))}
    with warnings.catch_warnings(action="ignore"):
        minari.create_dataset_from_buffers("mine/test-v0", buffers, **made)
    run = train(folder, tmp_path, "minari:mine/test-v0")
    done = load_checkpoint(run / "checkpoint.pt")["done"]
    assert (done["episodes"], done["held"], done["rows"]) == (9, 3, 9 * 12)
    example.main(["--resume", str(run), "--updates", "5"])
    assert len(rows_of(run)) == 3


def test_a_replay_that_is_too_small_says_so(folder, tmp_path, capsys):
    train(folder, tmp_path, "--replay-capacity", "30")
    assert "only the newest of all 72 rows fit: raise --replay-capacity" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--holdout", "0"], "--holdout must be above 0 and below 1, got 0"),
        (["--holdout", "1"], "--holdout must be above 0 and below 1, got 1"),
        (["--holdout", "nan"], "--holdout must be above 0 and below 1, got nan"),
        (
            ["--holdout", "0.01"],
            "--holdout 0.01 must leave some episodes to train on and some aside, got 8 and 0: "
            "add episodes, or choose a share nearer to 0.5",
        ),
        (["--holdout", "0.99"], "some aside, got 0 and 8: add episodes, or choose a share nearer to 0.5"),
        (["--context", "8"], "--context must be 1 to 7, less than --length and an episode, got 8"),
        (["--context", "12", "--length", "40"], "--context must be 1 to 11, less than --length and an episode, got 12"),
        (["--updates", "0"], "--updates and --report-every must be at least 1, got 0, 2"),
        (["--entry", "camera"], "obs must be None, since the observations of "),
        (["--window", "0"], "window must be a whole number of at least 1, got 0"),
        (["--device", "meta"], "device must be auto, cpu, or one"),
    ],
)
def test_a_mistake_costs_one_line_and_leaves_nothing_behind(folder, tmp_path, flags, message):
    assert message in message_of(folder, *TINY, "--out", tmp_path / "runs", *flags)
    assert not (tmp_path / "runs").exists()


def test_a_source_that_is_missing_or_unlike_the_others_costs_one_line(folder, pixels, tmp_path, capsys):
    assert "nothing-here, which does not exist" in message_of(tmp_path / "nothing-here", *TINY)
    assert "episodes must be alike, got ((3, 16, 16), 1) after ((2,), 1)" in message_of(
        folder, pixels.parent / "episodes", *TINY, "--out", tmp_path
    )
    with pytest.raises(SystemExit):
        example.main([])
    assert "SOURCE is missing: a run, a folder" in capsys.readouterr().err


def test_an_existing_run_and_other_data_or_settings_are_refused(folder, whole, tmp_path):
    assert "already exists: go on with it by --resume" in message_of(
        folder, *TINY, "--out", whole.parent, "--name", "run"
    )
    assert "stoch_dim=4, got stoch_dim=5" in message_of("--resume", whole, "--stoch-dim", "5")
    assert f"got sources=['{tmp_path}']" in message_of(tmp_path, "--resume", whole)
    more = folder_of(tmp_path / "more", count=4)
    run = train(more, tmp_path)
    save_episode(more, recorded(9), 9)
    assert "checkpoint was made with episodes=3, got episodes=4" in message_of("--resume", run)


@pytest.mark.parametrize("number", [0, 1])  # trained on, and kept aside
def test_sources_of_which_a_value_changed_are_refused(tmp_path, number):
    source = folder_of(tmp_path / "episodes", count=4)
    run = train(source, tmp_path)
    before = (run / "checkpoint.pt").read_bytes()
    episode = recorded(number)
    obs = episode.obs.copy()
    obs[5, 1] += 0.5
    save_episode(source, episode._replace(obs=obs), number, replace=True)
    message = message_of("--resume", run, "--updates", "5")
    assert re.search(r"checkpoint was made with sources_checksum=\d+, got sources_checksum=\d+: ask", message)
    assert (run / "checkpoint.pt").read_bytes() == before
    save_episode(source, episode, number, replace=True)
    example.main(["--resume", str(run), "--updates", "5"])
    assert [int(row["updates"]) for row in rows_of(run)] == [2, 4, 5]


@pytest.mark.parametrize("value", [0.0, 0.1])  # the variance of the latter is not quite 0 in float32
@pytest.mark.parametrize("kind", ["state", "pixels"])
def test_rewards_that_are_all_equal_leave_their_share_explained_open(tmp_path, kind, value):
    for number in range(4):
        episode = recorded(number, kind=kind)
        reward = np.where(episode.is_first, 0, value).astype(np.float32)
        save_episode(tmp_path / "episodes", episode._replace(reward=reward), number)
    row = rows_of(train(tmp_path / "episodes", tmp_path, "--updates", "1"))[-1]
    assert row["holdout_reward_r2"] == "nan"
    assert float(row["holdout_obs"]) > 0


@pytest.mark.parametrize(
    ("count", "preset", "expected"), [(3, "cpu", "all"), (1, "paper", "red"), (1, "cpu", "red"), (3, "paper", "all")]
)
def test_the_channels_of_the_frames_are_recorded_for_whoever_makes_the_model_again(tmp_path, count, preset, expected):
    for number in range(4):
        episode = recorded(number, kind="pixels")
        save_episode(tmp_path / "episodes", episode._replace(obs=np.ascontiguousarray(episode.obs[:, :count])), number)
    run = train(tmp_path / "episodes", tmp_path, "--updates", "1", "--preset", preset)
    assert load_checkpoint(run / "checkpoint.pt")["settings"]["channels"] == expected
    assert model_of(run, (count, 16, 16)).decoder.obs_shape == (count, 16, 16)


def test_the_script_is_read_in_one_sitting():
    assert len((EXAMPLES / "train_offline.py").read_text(encoding="utf-8").splitlines()) < 250

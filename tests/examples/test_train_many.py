"""The loop with several environments, several tasks, another run's model, another renderer, and replay on the disk."""

import csv
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from loading import load_example
from tiny_runs import RUN, flags_of

from planet_lib.data import SequenceReplay, load_episodes
from planet_lib.training import load_checkpoint, save_checkpoint

pytest.importorskip("gymnasium")
TINY = {**RUN, "obs": "state"}


train_planet = load_example("train_planet")


def train(out, *flags, name="run", **changes):
    settings = TINY | {key.replace("_", "-"): value for key, value in changes.items()}
    train_planet.main([*flags_of(settings), "--out", str(out), "--name", name, *flags])
    return out / name


def rows_of(run):
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights_of(run):
    return load_checkpoint(run / "checkpoint.pt")["model"]


def assert_same_weights(run, other):
    torch.testing.assert_close(weights_of(run), weights_of(other), rtol=0.0, atol=0.0)


def test_three_workers_at_once_keep_updates_episodes_and_seeds_in_proportion(tmp_path):
    run = train(tmp_path, num_envs=3, seed_episodes=4, num_episodes=3)
    rows = rows_of(run)
    assert [row["kind"] for row in rows] == ["seed"] * 4 + ["train"] * 3 + ["eval"]
    assert [int(row["updates"]) for row in rows] == [0] * 4 + [6] * 4  # three episodes: three times the updates before
    assert [int(row["env_steps"]) for row in rows[:7]] == [200 * n for n in range(1, 8)]
    first = [tuple(episode.obs[0]) for episode in load_episodes(run / "episodes")]
    assert len(set(first)) == 7  # each episode begins from a seed of its own


def test_many_environments_in_workers_or_one_after_another_begin_from_the_same_seeds(tmp_path):
    many, one = train(tmp_path, name="many", num_envs=2), train(tmp_path, name="one")
    starts = [np.stack([episode.obs[0] for episode in load_episodes(run / "episodes", count=4)]) for run in (many, one)]
    np.testing.assert_array_equal(*starts)


def test_a_run_of_several_environments_goes_on_bit_for_bit_after_ctrl_c_in_a_round(tmp_path, monkeypatch):
    whole = train(tmp_path, name="whole", num_envs=2, num_episodes=4)
    original, calls = train_planet.run_episodes, []

    def interrupted(env, policy, *, seeds, on_episode, **others):
        calls.append(1)

        def keep(place, episode):
            on_episode(place, episode)
            if len(calls) == 4:
                raise KeyboardInterrupt  # when one of the round's two episodes is finished and on the disk

        return original(env, policy, seeds=seeds, on_episode=keep if on_episode else None, **others)

    monkeypatch.setattr(train_planet, "run_episodes", interrupted)
    run = train(tmp_path, num_envs=2, num_episodes=4)
    monkeypatch.undo()
    assert load_checkpoint(run / "checkpoint.pt")["done"]["episodes"] == 4
    train_planet.main(["--resume", str(run)])
    assert_same_weights(run, whole)


def test_discrete_actions_train_with_one_hot_actions(tmp_path):
    run = train(tmp_path, env="gym:CartPole-v1", action_repeat=1, window=4, batch_size=2)
    episodes = list(load_episodes(run / "episodes"))
    assert {tuple(row) for episode in episodes for row in episode.action[1:]} <= {(0.0, 1.0), (1.0, 0.0)}
    load_example("evaluate").main([str(run), "--episodes", "1"])


TASKS = "gym:Pendulum-v1,gym:MountainCarContinuous-v0"


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Two tasks from pixels, whose vectors have different lengths."""
    out = tmp_path_factory.mktemp("several")
    return train(out, tasks=TASKS, obs="pixels", image_size=16, num_episodes=3, action_repeat=100, window=2)


def test_several_tasks_take_turns_and_have_scores_of_their_own(several):
    rows = [(row["kind"], row["task"].partition(":")[2]) for row in rows_of(several)]
    pendulum, car = "Pendulum-v1", "MountainCarContinuous-v0"
    turns = [("seed", pendulum), ("seed", car), ("train", pendulum), ("train", car)]
    evaluations = [("eval", pendulum), ("eval", car)]
    assert rows == [*turns, *evaluations, ("train", pendulum), *evaluations]
    assert {path.name for path in (several / "videos").glob("episode-000004*strip*")} == set()
    for name in (pendulum, car):
        assert (several / "videos" / f"episode-000004-{name}-open-loop.png").exists()


def test_a_run_of_several_tasks_goes_on_bit_for_bit(several, tmp_path):
    settings = {"tasks": TASKS, "obs": "pixels", "image_size": 16, "action_repeat": 100, "window": 2}
    run = train(tmp_path, **settings, num_episodes=2)
    train_planet.main(["--resume", str(run), "--num-episodes", "3"])
    assert_same_weights(run, several)


def test_evaluate_reports_each_task_of_a_run_or_one_that_is_named(several, capsys):
    evaluate = load_example("evaluate")
    evaluate.main([str(several), "--episodes", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": mean return")[0] for line in lines] == TASKS.split(",")
    evaluate.main([str(several), "--episodes", "1", "--task", TASKS.split(",")[1], "--video"])
    assert [line.partition(": mean return")[0] for line in capsys.readouterr().out.splitlines()] == TASKS.split(",")[1:]
    assert (several / "videos" / "evaluation-MountainCarContinuous-v0.mp4").stat().st_size > 500


def test_actions_of_a_shorter_task_are_padded(tmp_path):
    pytest.importorskip("dm_control")
    run = train(
        tmp_path,
        tasks="dmc:cartpole-balance,dmc:reacher-easy",
        obs="pixels",
        image_size=16,
        action_repeat=250,
        window=3,
        num_episodes=2,
    )
    assert {episode.action.shape[1] for episode in load_episodes(run / "episodes")} == {2}
    load_example("evaluate").main([str(run), "--episodes", "1"])


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return train(tmp_path_factory.mktemp("body"), hidden_dim=9)


def test_a_new_task_begins_with_the_model_of_another_run_but_for_the_heads(body, tmp_path):
    begun = train(tmp_path, "--init-from", str(body), num_episodes=0, hidden_dim=9)
    old, new = weights_of(body), weights_of(begun)
    for name, value in new.items():
        assert torch.equal(value, old[name]) == (not name.startswith(("reward_head", "continue_head"))), name


def test_the_sizes_of_the_other_run_are_taken_over_unless_they_are_given(body, tmp_path):
    tiny = {name: value for name, value in TINY.items() if not name.endswith(("-dim", "depth"))} | {"num-episodes": 0}
    flags = [text for key, value in tiny.items() for text in (f"--{key}", str(value))]
    train_planet.main([*flags, "--out", str(tmp_path), "--name", "run", "--init-from", str(body)])
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["settings"]["hidden_dim"] == 9
    with pytest.raises(SystemExit, match="weights must be of a model with the same observations, actions and sizes"):
        train(tmp_path, "--init-from", str(body), name="other", hidden_dim=10)
    assert not (tmp_path / "other").exists()


def test_a_transferred_run_goes_on_without_looking_at_the_other_again(body, tmp_path):
    whole = train(tmp_path, "--init-from", str(body), name="whole", hidden_dim=9)
    run = train(tmp_path, "--init-from", str(body), hidden_dim=9, num_episodes=1)
    train_planet.main(["--resume", str(run), "--num-episodes", "2"])
    assert_same_weights(run, whole)


def test_a_checkpoint_refuses_another_renderer_unless_it_is_told(several, tmp_path):
    saved = load_checkpoint(several / "checkpoint.pt")
    assert saved["renderer"] == dict.fromkeys(TASKS.split(","), "own")  # they draw themselves
    save_checkpoint(several / "checkpoint.pt", {**saved, "renderer": dict.fromkeys(TASKS.split(","), "rays")})
    refused = "renderer must be rays, on whose pictures the model was trained, got own"
    try:
        for flags in ([], ["--quality", "fast"]):
            with pytest.raises(SystemExit, match=refused):
                train_planet.main(["--resume", str(several), "--num-episodes", "4", *flags])
            with pytest.raises(SystemExit, match=refused):
                load_example("evaluate").main([str(several), "--episodes", "1", *flags])
        load_example("evaluate").main([str(several), "--episodes", "1", "--renderer", "auto"])
    finally:
        save_checkpoint(several / "checkpoint.pt", saved)


def test_a_new_task_is_looked_at_as_the_old_one_was_unless_other_flags_are_given(tmp_path):
    pytest.importorskip("dm_control")
    look = ("--renderer", "rays", "--camera", "fixed")
    small = {"obs": "pixels", "image_size": 16, "action_repeat": 250, "window": 3, "num_episodes": 0}
    body = train(tmp_path, *look, name="body", env="dmc:cartpole-balance", **small)
    tiny = TINY | {key.replace("_", "-"): value for key, value in small.items()} | {"env": "dmc:cartpole-swingup"}
    flags = [
        text for key, value in tiny.items() if key not in ("obs", "action-repeat") for text in (f"--{key}", str(value))
    ]
    train_planet.main([*flags, "--out", str(tmp_path), "--name", "new", "--init-from", str(body)])
    saved = load_checkpoint(tmp_path / "new" / "checkpoint.pt")
    assert saved["renderer"] == {"dmc:cartpole-swingup": "rays"}
    assert [saved["settings"][name] for name in ("camera", "action_repeat", "obs")] == ["fixed", 250, "pixels"]
    with pytest.raises(SystemExit, match="obs='pixels', got obs='state'"):
        train_planet.main([*flags, "--out", str(tmp_path), "--name", "x", "--init-from", str(body), "--obs", "state"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", TASKS], r"tasks must have vectors of one length for obs=\"state\", got gym:Pendulum-v1: \(3,\)"),
        (["--replay-gb", "nan"], "replay_gb must be a finite number of at least 0, got nan"),
        (["--replay-gb", "1e-10"], "max_bytes must be at least"),
    ],
)
def test_a_mistake_costs_one_line_and_leaves_nothing(tmp_path, flags, message):
    with pytest.raises(SystemExit, match=message) as stopped:
        train(tmp_path / "runs", *flags)
    assert "\n" not in str(stopped.value)
    assert not (tmp_path / "runs").exists()


def test_a_run_goes_on_or_begins_from_another_but_not_both(body, capsys):
    with pytest.raises(SystemExit):
        train_planet.main(["--resume", str(body), "--init-from", str(body)])
    assert "not allowed with argument --resume" in capsys.readouterr().err


def test_blanks_in_a_list_of_tasks_do_not_matter():
    assert train_planet.parse(["--tasks", " gym:A-v0, gym:B-v0 ,"], ExitStack()).tasks == "gym:A-v0,gym:B-v0"


def test_a_replay_that_is_not_the_runs_own_is_left_alone(body, tmp_path):
    rows = tmp_path / "rows"
    episode = next(load_episodes(body / "episodes"))
    with SequenceReplay(100, obs_shape=(3,), action_dim=1, directory=rows) as replay:
        replay.add(episode)
    with pytest.raises(SystemExit, match=r"--replay-dir must be empty or this run's, .*rows holds 11 rows"):
        train_planet.main(["--resume", str(body), "--replay-capacity", "100", "--replay-dir", str(rows)])
    with SequenceReplay(100, obs_shape=(3,), action_dim=1, directory=rows) as replay:
        assert replay.num_steps == 11


def test_replay_in_mapped_files_and_in_memory_give_the_same_run_and_both_go_on(tmp_path):
    whole = train(tmp_path, name="whole")
    mapped = train(tmp_path, "--replay-dir", str(tmp_path / "rows"), name="mapped", num_episodes=1)
    assert sum(path.stat().st_size for path in (tmp_path / "rows").iterdir()) > 0
    train_planet.main(["--resume", str(mapped), "--num-episodes", "2"])
    assert_same_weights(mapped, whole)
    with pytest.raises(SystemExit, match=r"--replay-dir must be empty or this run's, .*rows holds 44 rows"):
        train(tmp_path, "--replay-dir", str(tmp_path / "rows"), name="third")
    train_planet.main(["--resume", str(mapped), "--replay-dir", str(tmp_path / "other")])
    train_planet.main(["--resume", str(mapped)])  # with its first directory again, whose rows are its own
    assert not (tmp_path / "third").exists()


def test_the_memory_of_the_replay_is_bounded_in_bytes(tmp_path):
    run = train(tmp_path, "--replay-gb", "0.000002", window=3)  # 2000 bytes, three episodes of 11 rows
    assert len(rows_of(run)) == 5
    with pytest.raises(SystemExit, match="capacity"):
        train(tmp_path, "--replay-gb", "0.0000003", name="too-small")


def test_a_worker_that_dies_costs_an_episode_that_is_played_again(tmp_path, monkeypatch):
    import os
    import signal

    whole = train(tmp_path, name="whole", num_envs=2)
    original, killed = train_planet.make_vector_env, []

    def make(*args, **settings):
        env = original(*args, **settings)
        step = env.step

        def step_and_kill(actions):
            if not killed:
                killed.append(env._slots[1]._process.pid)
                os.kill(killed[0], signal.SIGKILL)
            return step(actions)

        env.step = step_and_kill
        return env

    monkeypatch.setattr(train_planet, "make_vector_env", make)
    with pytest.warns(RuntimeWarning, match="environment 1"):
        run = train(tmp_path, num_envs=2)
    assert killed
    starts = [
        np.stack([episode.obs[0] for episode in load_episodes(path / "episodes", count=4)]) for path in (run, whole)
    ]
    np.testing.assert_array_equal(*starts)
    assert len(rows_of(run)) == len(rows_of(whole))

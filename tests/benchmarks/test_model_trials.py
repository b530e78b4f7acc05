"""The benchmark of world models on the same episodes: its measures by hand, what is trained on, flags, a tiny run."""

import json
from importlib.metadata import version
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from loading import load_benchmark
from torch import Tensor, nn

import planet_lib as pl
from planet_lib.data import read_episodes, run_episode, save_episode
from planet_lib.envs import make_env

benchmark, parts = load_benchmark("model_trials"), load_benchmark("model_trials_episodes")

SMALL = "obs=state deter_dim=8 stoch_dim=3 hidden_dim=8 reward_hidden_dim=8 embed_dim=8 batch_size=2 window=6"
ROWS = benchmark.CONTEXT + benchmark.HORIZONS[-1] + 5


@pytest.fixture
def clock(monkeypatch):
    """Every look at the clock is a second later, so an update takes one."""
    count = iter(range(10_000))
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(process_time=lambda: next(count)))


@pytest.fixture
def updates(monkeypatch):
    """What was trained on, and the loss of each update."""
    found, update = SimpleNamespace(batches=[], losses=[]), benchmark.training.update

    def record(model, optimizer, batch, *rest, **settings):
        found.batches.append(batch.obs.clone())
        result = update(model, optimizer, batch, *rest, **settings)
        found.losses.append(result.losses.total.item())
        return result

    monkeypatch.setattr(benchmark.training, "update", record)
    return found


def episode(number, rows=ROWS, pixels=8):
    """All that is seen is the number; the reward is the sum of the actions so far."""
    action = np.random.default_rng(number).uniform(-1, 1, (rows, 1)).astype(np.float32)
    action[0] = 0
    steps = np.arange(rows)
    return pl.Episode(
        obs={
            "state": np.full((rows, 2), number, np.float32),
            "side": np.full((rows, 3, pixels, pixels), number, np.uint8),
            "top": np.full((rows, 3, pixels, pixels), 100 + number, np.uint8),
        },
        action=action,
        reward=action[:, 0].cumsum(dtype=np.float32),
        is_first=steps == 0,
        terminated=steps < 0,
        truncated=steps == rows - 1,
    )


@pytest.fixture
def folder(tmp_path):
    for number in range(6):
        save_episode(tmp_path / "episodes", episode(number), number)
    return tmp_path / "episodes"


def train(folder, *flags, variants=(f"small: {SMALL}",), holdout=2):
    named = [text for variant in variants for text in ("--variant", variant)]
    benchmark.main(["train", str(folder), "--holdout", str(holdout), *named, *flags])


class Total(NamedTuple):
    value: Tensor


class Adder:
    """Knows the made-up episodes' reward: adds the actions up."""

    action_dim, feature_dim, noise_dim = 1, 1, 0

    def initial(self, batch_size):
        return Total(torch.zeros(batch_size, 1))

    def prior(self, state, action, noise=None):
        return Total(state.value + action)

    def posterior(self, prior, embed, noise=None):
        return prior

    def features(self, state):
        return state.value

    def divergence(self, posterior, prior):
        return (posterior.value - prior.value).sum(-1)


class Squeeze(nn.Module):
    def forward(self, features):
        return features.squeeze(-1)


class Twice(nn.Module):
    def forward(self, features):
        return features.repeat_interleave(2, dim=-1)


def adder():
    return pl.WorldModel(nn.Identity(), Adder(), Twice(), Squeeze())


def seen_states(episodes):
    return [each._replace(obs=each.obs["state"]) for each in episodes]


def test_r2_is_one_minus_error_over_variance():
    # Errors 0, 1 and 1; the variance of 1, 3, 5 is 8/3.
    assert benchmark.r2(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 3.0, 5.0])) == pytest.approx(1 - 2 / 8)


def test_r2_is_nothing_where_all_rewards_are_equal():
    assert benchmark.r2(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 3.0])) is None


def test_scores_are_those_of_their_horizons_and_of_the_sum():
    true = torch.zeros(12, 2)
    true[:, 1] = 2.0  # variance 1 at each horizon, and 144 of the sums 0 and 24
    foreseen = true.clone()
    foreseen[2] += 1.0  # horizon 3 misses by 1
    foreseen[11] += 0.5  # horizon 12 by 0.5
    found = benchmark.scores(foreseen, true)
    assert found == pytest.approx({"r2_1": 1, "r2_3": 0, "r2_6": 1, "r2_12": 0.75, "r2_sum": 1 - 1.5**2 / 144})


def test_a_model_that_knows_the_reward_foresees_it_at_every_horizon():
    found = benchmark.judge(adder(), seen_states([episode(1), episode(2, rows=ROWS + 9)]))
    assert [found[name] for name in benchmark.R2] == pytest.approx([1.0] * 5, abs=1e-9)
    assert found["held_reward"] == pytest.approx(0.0, abs=1e-9)
    assert found["held_kl"] == 0.0


def test_a_model_that_forgets_an_action_does_not(monkeypatch):
    monkeypatch.setattr(Adder, "prior", lambda self, state, action, noise=None: Total(state.value + 0.5 * action))
    found = benchmark.judge(adder(), seen_states([episode(1), episode(2)]))
    assert all(found[name] < 0.9 for name in benchmark.R2)
    assert found["held_reward"] > 0.01


def test_held_losses_are_means_over_the_held_episodes():
    # The decoder shows the total twice, where the number is to be seen: 1/2 * 2 * (total - number)^2.
    played = [episode(number) for number in (1, 4)]
    wanted = np.mean([np.square(each.reward - number).mean() for each, number in zip(played, (1, 4), strict=True)])
    assert benchmark.judge(adder(), seen_states(played))["held_obs"] == pytest.approx(float(wanted), rel=1e-5)


def test_episodes_too_short_to_foresee_count_for_the_losses_alone():
    both = benchmark.judge(adder(), seen_states([episode(1, rows=ROWS + 9), episode(2, rows=5)]))
    assert both["r2_12"] == pytest.approx(1.0, abs=1e-9)
    alone = benchmark.judge(adder(), seen_states([episode(1, rows=ROWS + 9)]))
    assert both["held_obs"] != alone["held_obs"]


def test_evaluation_leaves_training_as_it_is(folder, clock, updates):
    train(folder, "--seconds", "6", "--marks", "6")
    train(folder, "--seconds", "6", "--marks", "1", "2", "3", "4", "5")
    assert len(updates.losses) == 12
    assert updates.losses[:6] == updates.losses[6:]


def test_numbers_do_not_depend_on_global_state_nor_change_it(folder, clock, updates):
    threads = torch.get_num_threads()
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        train(folder, "--seconds", "3", "--marks", "3")
        assert torch.equal(before, torch.get_rng_state())
    assert updates.losses[:3] == updates.losses[3:]
    assert torch.get_num_threads() == threads


def test_episodes_held_out_are_never_trained_on(folder, clock, updates, monkeypatch):
    judged, judge = [], benchmark.judge

    def record(model, held):
        judged.extend(each.obs[0, 0] for each in held)
        return judge(model, held)

    monkeypatch.setattr(benchmark, "judge", record)
    train(folder, "--seconds", "20", "--marks", "20")
    assert set(torch.stack(updates.batches).unique().tolist()) == {0, 1, 2, 3}
    assert judged == [4, 5]


def test_fewer_episodes_leave_those_held_out_the_same(folder, clock, updates, tmp_path):
    out = tmp_path / "new" / "out.json"
    train(folder, "--seconds", "20", "--marks", "20", "--episodes", "2", "--out", str(out))
    assert set(torch.stack(updates.batches).unique().tolist()) == {0, 1}
    facts = json.loads(out.read_text())["facts"]
    assert (facts["episodes"], facts["holdout"]) == (2, 2)


def test_time_is_that_of_the_updates_up_to_the_mark(folder, clock, updates, tmp_path, capsys):
    out = tmp_path / "out.json"
    train(folder, "--seconds", "5", "--marks", "2", "--seeds", "0", "1", "--out", str(out))
    result, printed = json.loads(out.read_text()), capsys.readouterr().out
    rows = result["rows"]
    assert [(row["seed"], row["mark"], row["updates"]) for row in rows] == [(0, 2, 2), (0, 5, 5), (1, 2, 2), (1, 5, 5)]
    assert [(row["cpu_seconds"], row["ms_per_update"]) for row in rows] == [(2, 1000), (5, 1000)] * 2
    assert rows[0]["loss_total"] == pytest.approx(np.mean(updates.losses[:2]), rel=1e-5)
    assert rows[1]["loss_total"] == pytest.approx(np.mean(updates.losses[2:5]), rel=1e-5)
    assert updates.losses[:5] != updates.losses[5:]
    assert "|small|1|5|5|1000|" in printed
    assert f"|{rows[3]['r2_1']:.4g}|{rows[3]['r2_3']:.4g}|" in printed


def test_a_variant_that_diverges_is_named_and_the_next_one_is_trained(folder, clock, tmp_path, monkeypatch, capsys):
    update = benchmark.training.update

    def fail(model, optimizer, *rest, **settings):
        if optimizer.param_groups[0]["lr"] == 0.5:
            raise FloatingPointError("loss and gradient must be finite")
        return update(model, optimizer, *rest, **settings)

    monkeypatch.setattr(benchmark.training, "update", fail)
    out = tmp_path / "out.json"
    variants = [f"fast: {SMALL} learning_rate=0.5", f"slow: {SMALL}"]
    train(folder, "--seconds", "1", "--marks", "1", "--out", str(out), variants=variants)
    fast, slow = json.loads(out.read_text())["rows"]
    assert (fast["failed"], fast["updates"], slow["updates"]) == ("loss and gradient must be finite", 0, 1)
    assert "fast, seed 0, failed after 0 updates: loss and gradient must be finite" in capsys.readouterr().out


def test_variants_come_from_files_too_and_change_the_preset(folder, clock, tmp_path):
    lines, out = tmp_path / "variants.txt", tmp_path / "out.json"
    lines.write_text(f"# sizes\n\nwide: {SMALL} kl_balance=0.8 cell=rnn\n")
    train(folder, "--seconds", "1", "--marks", "1", "--variants", str(lines), "--out", str(out))
    settings = json.loads(out.read_text())["variants"]
    assert list(settings) == ["small", "wide"]
    assert (settings["wide"]["cell"], settings["wide"]["kl_balance"], settings["wide"]["window"]) == ("rnn", 0.8, 6)
    assert settings["small"]["learning_rate"] == 2e-3
    assert "horizon" not in settings["small"]


def test_the_camera_is_the_first_unless_the_variant_names_another():
    first, other = (
        parts.read_variant(f"a: image_size=4 {text}", episode(7), "cpu", "") for text in ("", "camera=top channels=all")
    )
    assert parts.seen(episode(7), first).obs.shape == (ROWS, 1, 4, 4)
    assert np.unique(parts.seen(episode(7), first).obs).tolist() == [7]
    assert parts.seen(episode(7), other).obs.shape == (ROWS, 3, 4, 4)
    assert np.unique(parts.seen(episode(7), other).obs).tolist() == [107]


def test_frames_shrink_by_the_mean_of_areas():
    played = episode(0, pixels=4)
    played.obs["side"][3, :, 0, :2] = 200  # half of the first pixel
    small = parts.seen(played, parts.read_variant("a: image_size=2 channels=all", played, "cpu", ""))
    assert small.obs[3, 1].tolist() == [[100, 0], [0, 0]]
    assert small.obs[4].max() == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: lerning_rate=1e-3", "variant 'a' must set fields of Preset, obs or cell, got 'lerning_rate', which is "),
        ("a: lerning_rate=1e-3", "did you mean learning_rate?"),
        ("a: num_candidates=3", "got 'num_candidates', which changes nothing here"),
        ("a: window=ten", "variant 'a': window must be of type int, got 'ten'"),
        ("a: window=0", "window must be a whole number of at least 1, got 0"),
        ("a: channels=blue", "channels must be all, red or grey, got 'blue'"),
        (
            "a: camera=back",
            "variant 'a' must see obs=state or a camera of state, side, top, got obs=pixels camera=back",
        ),
        ("a: camera=state", "got obs=pixels camera=state"),
        ("a: obs=both", "got obs=both"),
        ("a: image_size=16", "frames must be drawn at least as large as they are seen, got 8x8 and image_size=16"),
        ("a: obs=state cell=lstm", "cell must be one of rssm, ssm, rnn, got 'lstm'"),
        ("a: window", """--variant must be "name: field=value ...", got 'a: window'"""),
        ("window=3", """--variant must be "name: field=value ...", got 'window=3'"""),
        (f"small: {SMALL}", "each --variant must have a name of its own, got small, small"),
    ],
)
def test_a_wrong_variant_ends_with_one_line_before_anything_is_trained(folder, updates, text, message):
    with pytest.raises(SystemExit) as stop:
        train(folder, variants=[f"small: {SMALL}", text])
    said = str(stop.value)
    assert message in said
    assert said.startswith("model_trials.py: ")
    assert "\n" not in said
    assert not updates.losses


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--marks", "3", "2"], "--marks must rise from above 0 to --seconds, got 3 2 120"),
        (["--seconds", "0"], "--marks must rise from above 0 to --seconds, got 0"),
        (["--episodes", "5"], "--episodes and --holdout must be at least 1, and share 6 episodes, got 5 and 2"),
        (["--episodes", "0"], "share 6 episodes, got 0 and 2"),
        (["--seeds", "-1"], "--seeds must be at least 0, got 1 and -1"),
        (["--variants", "none.txt"], "No such file or directory: 'none.txt'"),
    ],
)
def test_wrong_flags_of_train_end_with_one_line(folder, flags, message):
    with pytest.raises(SystemExit, match=r"model_trials\.py: ") as stop:
        train(folder, *flags)
    assert message in str(stop.value)


def test_held_out_episodes_must_be_long_enough_to_foresee(tmp_path):
    for number in range(3):
        save_episode(tmp_path, episode(number, rows=19), number)
    with pytest.raises(SystemExit, match="an episode held out must have at least 20 rows, got 19"):
        train(tmp_path)


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """Four short episodes of a real task, and the first two of them once more."""
    root = tmp_path_factory.mktemp("collected")
    pytest.importorskip("dm_control")
    flags = ["--task", "dmc:cartpole-swingup", "--cameras", "lookatcart", "fixed", "--size", "16", "--renderer", "rays"]
    for name, count in (("all", 4), ("two", 2)):
        more = ["--time-limit", "1.6", "--episodes", str(count), "--seed", "3", "--out", str(root / name)]
        benchmark.main(["collect", *flags, *more])
    return root


def test_collected_episodes_hold_the_vector_and_all_cameras_in_all_channels(collected):
    episodes = list(read_episodes(collected / "all"))
    facts = json.loads((collected / "all" / "collection.json").read_text())
    assert len(episodes) == 4
    for each in episodes:
        shapes = {name: value.shape[1:] for name, value in each.obs.items()}
        assert shapes == {"state": (5,), "lookatcart": (3, 16, 16), "fixed": (3, 16, 16)}
    assert facts["returns"] == [float(each.reward.sum()) for each in episodes]
    assert (facts["task"], facts["renderer"], facts["noise"]) == ("dmc:cartpole-swingup", "rays", [None, 0.6, 0.3, 0.3])


def test_an_episode_depends_on_seed_and_number_alone(collected):
    whole, part = (list(read_episodes(collected / name)) for name in ("all", "two"))
    for one, other in zip(whole[:2], part, strict=True):
        assert np.array_equal(one.action, other.action)
        assert all(np.array_equal(one.obs[name], other.obs[name]) for name in one.obs)
    assert not np.array_equal(whole[2].action, whole[3].action)


def test_planned_episodes_earn_more_than_random_ones(collected):
    random, *planned = (float(each.reward.sum()) for each in read_episodes(collected / "all"))
    assert random < max(planned)


def test_what_is_seen_of_collected_frames_is_what_the_environment_would_show(collected):
    recorded = list(read_episodes(collected / "two"))[1]
    variant = parts.read_variant("a: image_size=8 channels=red camera=fixed", recorded, "cpu", "dmc:cartpole-swingup")
    look = {"image_size": (8, 8), "supersample": 2, "channels": "red", "camera": "fixed", "renderer": "rays"}
    env = make_env("dmc:cartpole-swingup", time_limit=1.6, **look)

    def again(obs, is_first, number):
        return torch.from_numpy(recorded.action[number or 1][None]), (number or 1) + 1

    seed = int(np.random.SeedSequence([3, 1]).generate_state(1)[0])
    played = run_episode(env, again, seed=seed)
    env.close()
    assert np.array_equal(played.reward, recorded.reward)
    assert np.array_equal(played.obs, parts.seen(recorded, variant).obs)


def test_collected_pixels_are_trained_on_for_the_time_given(collected, tmp_path):
    out = tmp_path / "out.json"
    small = f"small: {SMALL} obs=pixels image_size=16 depth=4"
    flags = ["--seconds", "0.05", "--marks", "0.02", "--out", str(out)]
    train(collected / "all", *flags, variants=[small], holdout=1)
    result = json.loads(out.read_text())
    early, late = result["rows"]
    assert 0.02 <= early["cpu_seconds"] < late["cpu_seconds"]
    assert late["cpu_seconds"] >= 0.05
    assert late["ms_per_update"] == pytest.approx(1000 * late["cpu_seconds"] / late["updates"])
    assert set(benchmark.COLUMNS) <= set(late)
    assert (result["facts"]["collected"]["seed"], result["facts"]["torch"]) == (3, version("torch"))
    assert (result["variants"]["small"]["camera"], result["facts"]["threads"]) == ("lookatcart", 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cameras", "state"], """--cameras must be different ones, none of them called "state", got state"""),
        (["--cameras", "fixed", "fixed"], "--cameras must be different ones"),
        (["--cameras", "back"], "lookatcart"),  # the environment's own message names those that there are
        (["--cameras", "fixed", "--episodes", "0"], "--episodes and --size must be at least 1"),
        (["--cameras", "fixed", "--task", "dmc:cartpole-swing"], "has no task 'swing'"),
    ],
)
def test_wrong_flags_of_collect_end_with_one_line(tmp_path, flags, message):
    pytest.importorskip("dm_control")
    with pytest.raises(SystemExit, match=r"model_trials\.py: ") as stop:
        benchmark.main(["collect", "--renderer", "rays", *flags, "--out", str(tmp_path / "new")])
    assert message in str(stop.value)
    assert not (tmp_path / "new").exists()


def test_a_folder_with_episodes_is_not_added_to(collected):
    with pytest.raises(SystemExit, match="--out must hold no episodes yet"):
        benchmark.main(["collect", "--cameras", "fixed", "--out", str(collected / "two")])

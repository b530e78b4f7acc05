"""What a run shows, fuzzed: what a model sees and foresees, its errors, pictures, curves and progress."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from empty_place import contents, emptied, empty_place  # noqa: F401 -- the fixture is used by itself
from fuzzing import Entry, finite, fuzz

from planet_lib import Episode
from planet_lib.training import (
    MetricsWriter,
    OpenLoopError,
    Progress,
    draw_episode,
    learning_curve,
    open_loop,
    open_loop_curve,
    open_loop_error,
    open_loop_strip,
    open_loop_video,
    reconstruct,
    reconstruction_video,
)
from planet_lib.training.presets import PRESETS, Preset, build_model

pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # a title may have letters that the font has not

SIZES = {"deter_dim": 4, "stoch_dim": 3, "hidden_dim": 5, "embed_dim": 4, "depth": 4, "reward_hidden_dim": 5}
PRESET = Preset.from_settings({**PRESETS["cpu"].settings(), **SIZES})
ROWS, FRAME = 6, (1, 16, 16)
_rows = np.arange(ROWS)


torch.manual_seed(0)
MODEL = build_model(PRESET, "rssm", FRAME, 2)


def make_episode():
    return Episode(
        obs=np.full((ROWS, *FRAME), 100, np.uint8),
        action=np.where(_rows[:, None] > 0, 0.5, np.zeros(2)).astype(np.float32),
        reward=_rows.astype(np.float32),
        is_first=_rows == 0,
        terminated=_rows < 0,
        truncated=_rows == ROWS - 1,
    )


def frames(count=3):
    return np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)


def make_error():
    half = np.array([0.5, 0.25])
    names = ("image", "image_median", "reconstruction", "last_frame", "mean_frame", "reward", "reward_reconstruction")
    return OpenLoopError(**dict.fromkeys(names, half), horizon=np.array([1, 2]), reward_variance=1.0, num_windows=3)


def frames_of(count):
    def check(given, answer):
        episode = given["episode"]
        assert answer.dtype == np.uint8
        assert answer.shape == (count(given), *np.shape(episode.obs)[1:])

    return check


def measured(given, answer):
    assert answer.horizon.tolist() == list(range(1, given["length"] - given["context"] + 1))
    assert finite(answer[1:-2])
    assert (answer.image >= 0).all()


def is_whole_file(given, answer):
    path = Path(given["path"])
    content = path.read_bytes()
    assert content[:4] == b"\x89PNG" or content[4:8] == b"ftyp"
    assert [each for each in contents() if ".partial" in each] == []


def metrics_file():
    names = [
        *("env_steps", "kind", "task", "episode_return", "eval_mean", "eval_std", "loss_obs", "loss_reward"),
        "kl",
        "kl_clipped",
    ]
    writer = MetricsWriter(".", names, tensorboard=False)
    for step, kind in enumerate(("seed", "train", "train", "eval")):
        numbers = {"episode_return": 2.0 * step, "loss_obs": 3.0, "loss_reward": 1.0, "kl": 4.0, "kl_clipped": 4.0}
        more = {"eval_mean": 2.0} if kind == "eval" else numbers if kind == "train" else {"episode_return": 1.0}
        writer.write({"env_steps": 100 * step, "kind": kind, "task": f"task{step % 2}", **more})
    return str(writer.path)


def shown(**given):
    """All that a progress can say, in a log."""
    progress = Progress(given["total"], stream=io.StringIO(), interval=given["interval"], done=given["done"])
    with progress.phase(given["name"], given["phase_total"], unit=given["unit"]) as bar:
        bar.update(given["count"], loss=given["loss"])
    progress.advance(given["advance"])
    progress.say(given["text"])
    progress.close()
    return progress._stream.getvalue()


ENTRIES = [
    Entry(
        "training.reconstruct",
        reconstruct,
        lambda: {"model": MODEL, "episode": make_episode(), "image": None},
        frames_of(lambda given: ROWS),
        also={"image": ["pixels"], "episode": [make_episode()._replace(obs={"pixels": make_episode().obs})]},
        known_as={"episode": ("obs", "action", "is_first", "images")},
    ),
    Entry(
        "training.open_loop",
        open_loop,
        lambda: {"model": MODEL, "episode": make_episode(), "context": 2, "length": 5, "start": 0, "image": None},
        frames_of(lambda given: min(given["length"], ROWS - given["start"])),
        also={"context": [6, 7, np.int64(2)], "start": [5, 6, 1], "length": [1, 100]},
        known_as={"episode": ("obs", "action", "is_first", "images"), "length": ("context",), "start": ("context",)},
    ),
    Entry(
        "training.open_loop_error",
        open_loop_error,
        lambda: {
            "model": MODEL,
            "episodes": [make_episode()],
            "context": 2,
            "length": 5,
            "every": 1,
            "num_samples": 1,
            "seed": 0,
            "image": None,
        },
        measured,
        also={"episodes": [make_episode(), [make_episode()] * 2], "length": [2, 3, 6, 7]},
        known_as={"episodes": ("episode", "obs", "action", "is_first", "images"), "length": ("context",)},
        slow=2,
    ),
    Entry(
        "training.draw_episode",
        draw_episode,
        lambda: {"stem": "first", "model": MODEL, "episode": make_episode(), "context": 2, "length": 4},
        lambda given, answer: [is_whole_file({"path": path}, None) for path in answer],
        state=contents,
        known_as={"episode": ("obs", "action", "is_first", "images"), "length": ("context",)},
        errors=(OSError,),
        slow=20,
    ),
    Entry(
        "training.reconstruction_video",
        reconstruction_video,
        lambda: {"path": "a.mp4", "truth": frames(), "prediction": frames(), "fps": 15.0, "scale": 2},
        is_whole_file,
        state=contents,
        errors=(OSError,),
        known_as={"truth": ("prediction",)},
        slow=10,
    ),
    Entry(
        "training.open_loop_video",
        open_loop_video,
        lambda: {"path": "a.mp4", "truth": frames(), "prediction": frames(), "context": 1, "fps": 15.0, "scale": 2},
        is_whole_file,
        state=contents,
        errors=(OSError,),
        known_as={"truth": ("prediction", "context")},
        slow=10,
    ),
    Entry(
        "training.open_loop_strip",
        open_loop_strip,
        lambda: {
            "path": "a.png",
            "truth": frames(),
            "prediction": frames(),
            "context": 1,
            "num_frames": 2,
            "scale": 2,
        },
        is_whole_file,
        state=contents,
        errors=(OSError,),
        known_as={"truth": ("prediction", "context")},
    ),
    Entry(
        "training.learning_curve",
        learning_curve,
        lambda: {
            "path": "a.png",
            "metrics_path": metrics_file(),
            "random_return": {"task0": 1.0, "task1": 2.0},
            "free_nats": 3.0,
            "title": "a run",
        },
        is_whole_file,
        state=contents,
        also={"title": ["$\\bad{", "100 $ a $ day"], "random_return": [2.0, None, {"task0": None}, {"task0": "x"}]},
        errors=(OSError,),
        slow=25,
    ),
    Entry(
        "training.open_loop_curve",
        open_loop_curve,
        lambda: {"path": "a.png", "errors": {"rssm": make_error(), "ssm": make_error()}, "title": "runs"},
        is_whole_file,
        state=contents,
        also={"title": ["$\\bad{"], "errors": [{"$\\bad{": make_error()}, {"": make_error()}, [make_error()]]},
        errors=(OSError,),
        slow=15,
    ),
    Entry(
        "training.Progress",
        Progress,
        lambda: {
            "stream": io.StringIO(),
            "clock": lambda: 0.0,
            "total": 10,
            "done": 2,
            "unit": "steps",
            "interval": 30.0,
        },
        lambda given, answer: answer.close(),
        keep=("clock",),
    ),
    Entry(
        "training.Progress.phase",
        shown,
        lambda: {
            "total": 10,
            "done": 2,
            "interval": 0.0,
            "name": "updates",
            "phase_total": 4,
            "unit": "updates",
            "count": 2,
            "loss": 0.5,
            "advance": 1,
            "text": "well",
        },
        lambda given, answer: answer.endswith(f"{given['text']}\n") or pytest.fail(answer),
        known_as={"phase_total": ("total",), "advance": ("count",)},
    ),
]
LEFT_OUT = {"training.progress.PhaseBar": "made by `Progress.phase`, which is fuzzed with it"}


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_answers_rightly_or_names_what_is_wrong(entry):
    fuzz(emptied(entry))

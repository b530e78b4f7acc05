import errno
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from planet_lib.training.curves import open_loop_curve
from planet_lib.training.foresight import OpenLoopError
from planet_lib.training.pictures import (
    difference,
    open_loop_strip,
    open_loop_video,
    reconstruction_video,
)

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
Image = pytest.importorskip("PIL.Image")
matplotlib_figure = pytest.importorskip("matplotlib.figure")

RED, GREEN, BLUE = (220, 30, 30), (30, 200, 60), (40, 60, 220)
AMBER, SKY = (245, 178, 66), (84, 160, 255)


def plain(colour, length=8, height=16, width=16):
    return np.broadcast_to(np.array(colour, np.uint8)[None, :, None, None], (length, len(colour), height, width)).copy()


def decoded(path):
    """What ffmpeg says about the video, and its frames."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    about = re.search(r"Video: .*", done.stderr.decode()).group()
    width, height = (int(size) for size in re.search(r", (\d+)x(\d+)", about).groups())
    return about, np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)


def near(pixel, colour, tolerance=14):
    return np.abs(pixel.astype(int) - np.array(colour)).max() <= tolerance


def panel_colours(page, count, size):
    """The middle pixel of each panel, from its place in the page: border outside, gap 18, label line 34."""
    return [page[34 + size // 2, 18 + panel * (size + 18) + size // 2] for panel in range(count)]


def test_a_reconstruction_video_shows_the_observation_left_and_the_reconstruction_right(tmp_path):
    reconstruction_video(tmp_path / "a.mp4", plain(RED), plain(GREEN), fps=10)
    about, frames = decoded(tmp_path / "a.mp4")
    assert frames.shape == (8, 256 + 2 * 34, 18 + 2 * (256 + 18), 3)
    assert re.search(r"h264.* yuv420p.* 10 fps", about)
    left, right = panel_colours(frames[3], 2, 256)
    assert near(left, RED)
    assert near(right, GREEN)


def test_an_open_loop_video_shows_truth_model_and_difference_and_marks_what_was_seen(tmp_path):
    open_loop_video(tmp_path / "a.mp4", plain(RED), plain(BLUE), context=3, scale=4)
    _, frames = decoded(tmp_path / "a.mp4")
    assert len(frames) == 8
    truth, model, gap = panel_colours(frames[5], 3, 64)
    assert near(truth, RED)
    assert near(model, BLUE)
    assert near(gap, [128 + (b - r) // 2 for r, b in zip(RED, BLUE, strict=True)])
    borders = [frame[34 + 32, 18 - 2] for frame in frames]
    assert all(near(border, AMBER, 40) for border in borders[:3])
    assert all(near(border, SKY, 40) for border in borders[3:])


def test_each_frame_of_a_video_is_its_own(tmp_path):
    greys = np.array([0, 60, 120, 180, 240], np.uint8)
    frames = np.broadcast_to(greys[:, None, None, None], (5, 1, 16, 16)).copy()
    reconstruction_video(tmp_path / "a.mp4", frames, frames, scale=4)
    _, back = decoded(tmp_path / "a.mp4")
    assert [round(float(panel_colours(page, 1, 64)[0].mean()) / 60) * 60 for page in back] == [0, 60, 120, 180, 240]


def test_grey_images_of_odd_size_get_a_video_of_even_size(tmp_path):
    frames = plain((90,), height=21, width=33)
    open_loop_video(tmp_path / "a.mp4", frames, frames, context=0, scale=3)
    _, back = decoded(tmp_path / "a.mp4")
    assert back.shape == (8, 2 * 34 + 63 + 1, 18 + 3 * (99 + 18) + 1, 3)
    assert near(back[0][34 + 30, 18 + 50], (90, 90, 90))


def test_pixels_are_enlarged_without_smoothing_and_the_right_way_up(tmp_path):
    frames = np.zeros((1, 3, 2, 2), np.uint8)
    frames[0, :, 0, 0], frames[0, :, 0, 1], frames[0, :, 1, 0] = RED, GREEN, BLUE
    open_loop_strip(tmp_path / "a.png", frames, frames, context=1, scale=8)
    with Image.open(tmp_path / "a.png") as picture:
        page = np.asarray(picture)
    shown = page[34 : 34 + 16, 110 : 110 + 16]
    np.testing.assert_array_equal(shown, frames[0].transpose(1, 2, 0).repeat(8, 0).repeat(8, 1))


def test_a_strip_has_ten_columns_over_the_whole_time_and_three_rows(tmp_path):
    truth, model = plain(RED, 50), plain(BLUE, 50)
    truth[-1] = np.array(GREEN, np.uint8)[:, None, None]
    open_loop_strip(tmp_path / "a.png", truth, model, context=5, scale=2)
    with Image.open(tmp_path / "a.png") as picture:
        page = np.asarray(picture)
    assert page.shape == (34 + 3 * (32 + 18), 110 + 10 * (32 + 18), 3)
    columns = [110 + n * (32 + 18) for n in range(10)]
    assert [tuple(page[34 + 16, x + 16]) for x in columns] == [RED] * 9 + [GREEN]
    assert [tuple(page[34 + 32 + 18 + 16, x + 16]) for x in columns] == [BLUE] * 10
    assert [tuple(page[34 + 16, x - 2]) for x in columns] == [AMBER] + [SKY] * 9


def test_the_difference_is_grey_where_they_agree_and_never_wraps_around():
    truth = np.array([0, 255, 7, 100, 100], np.uint8)
    model = np.array([255, 0, 7, 110, 90], np.uint8)
    assert difference(truth, model).tolist() == [255, 0, 128, 133, 123]


FRAMES = plain(RED)


@pytest.mark.parametrize("draw", [reconstruction_video, open_loop_video, open_loop_strip])
@pytest.mark.parametrize(
    ("truth", "prediction", "error", "message"),
    [
        (
            FRAMES.astype(np.float32),
            FRAMES,
            TypeError,
            r"truth must be a uint8 array \[T, C, Y, X\], got float32 array",
        ),
        (FRAMES, [1], TypeError, r"prediction must be a uint8 array \[T, C, Y, X\], got list"),
        (FRAMES[:, :2], FRAMES[:, :2], ValueError, r"truth must be .* C=1 .* or 3 .*, got \[8, 2, 16, 16\]"),
        (FRAMES[0], FRAMES[0], ValueError, r"truth must be .*, got \[3, 16, 16\]"),
        (FRAMES[:0], FRAMES[:0], ValueError, r"truth must be .*, got \[0, 3, 16, 16\]"),
        (FRAMES, FRAMES[:4], ValueError, r"prediction must be \[8, 3, 16, 16\] like truth, got \[4, 3, 16, 16\]"),
    ],
)
def test_frames_that_cannot_be_shown_are_refused(tmp_path, draw, truth, prediction, error, message):
    ending = "png" if draw is open_loop_strip else "mp4"
    with pytest.raises(error, match=message):
        draw(tmp_path / f"a.{ending}", truth, prediction)
    assert os.listdir(tmp_path) == []


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="context must be between 0 and the number of frames T=8, got 9"):
        open_loop_video(tmp_path / "a.mp4", FRAMES, FRAMES, context=9)
    with pytest.raises(ValueError, match=r"path must end in \.mp4, got '.*a\.gif'"):
        reconstruction_video(tmp_path / "a.gif", FRAMES, FRAMES)
    with pytest.raises(ValueError, match="scale must be greater than 0, got 0"):
        reconstruction_video(tmp_path / "a.mp4", FRAMES, FRAMES, scale=0)
    with pytest.raises(ValueError, match="fps must be greater than 0, got 0"):
        reconstruction_video(tmp_path / "a.mp4", FRAMES, FRAMES, fps=0)
    with pytest.raises(ValueError, match="num_frames must be greater than 0, got 0"):
        open_loop_strip(tmp_path / "a.png", FRAMES, FRAMES, num_frames=0)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_video_and_no_litter(tmp_path, monkeypatch, failing):
    (tmp_path / "a.mp4").write_bytes(b"old")

    def full_disk(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, full_disk)
    with pytest.raises(OSError, match="No space left"):
        reconstruction_video(tmp_path / "a.mp4", FRAMES, FRAMES, scale=2)
    assert (tmp_path / "a.mp4").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_a_video_that_lost_frames_does_not_replace_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"old")
    monkeypatch.setattr(imageio_ffmpeg, "count_frames_and_secs", lambda path: (7, 0.5))
    with pytest.raises(OSError, match=r"a\.mp4 could not be encoded: 7 of 8 frames were written"):
        reconstruction_video(tmp_path / "a.mp4", FRAMES, FRAMES, scale=2)
    assert (tmp_path / "a.mp4").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_an_encoder_that_fails_is_one_line_and_does_not_replace_the_old_video(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"old")

    def fail(path):
        raise RuntimeError("FFMPEG call failed with 183:\nffmpeg version 9\nbuilt with gcc")

    monkeypatch.setattr(imageio_ffmpeg, "count_frames_and_secs", fail)
    with pytest.raises(OSError, match=r"a\.mp4 could not be encoded: ffmpeg failed \(is the disk full\?\)$"):
        reconstruction_video(tmp_path / "a.mp4", FRAMES, FRAMES, scale=2)
    assert (tmp_path / "a.mp4").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_a_missing_encoder_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match=r"the video needs imageio_ffmpeg.*pip install 'planet-worldmodel\[train\]'"):
        reconstruction_video(tmp_path / "a.mp4", FRAMES, FRAMES)
    assert os.listdir(tmp_path) == []


def error_of(model, worst=0.02):
    """Errors over three horizons; the model's as given, the others fixed."""
    fixed = {"last_frame": [0.01, 0.015, worst], "mean_frame": [0.01] * 3, "reconstruction": [0.001] * 3}
    rewards = {"reward": 100 * np.array(model), "reward_reconstruction": np.full(3, 0.1)}
    arrays = {name: np.array(value) for name, value in fixed.items()}
    return OpenLoopError(
        horizon=np.arange(1, 4),
        image=np.array(model),
        image_median=np.array(model),
        **arrays,
        **rewards,
        reward_variance=2.0,
        num_windows=9,
    )


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, as matplotlib knows them."""
    figures = []
    save = matplotlib_figure.Figure.savefig

    def keep(figure, *args, **settings):
        figures.append(figure)
        save(figure, *args, **settings)

    monkeypatch.setattr(matplotlib_figure.Figure, "savefig", keep)
    return figures


def test_the_curve_has_a_line_for_each_model_its_limit_and_the_predictors(tmp_path, drawn):
    errors = {"rssm": error_of([0.002, 0.003, 0.004]), "ssm": error_of([0.005, 0.006, 0.007])}
    open_loop_curve(tmp_path / "a.png", errors, title="a task")
    left, right = ({line.get_label(): line for line in axes.lines} for axes in drawn[0].axes)
    names = [f"{run}, {what}" for run in errors for what in ("imagined", "reconstructed")]
    assert list(left) == [*names, "last frame seen", "mean frame"]
    assert list(right) == [*names, "mean reward"]
    assert left["ssm, imagined"].get_xdata().tolist() == [1, 2, 3]
    assert left["ssm, imagined"].get_ydata().tolist() == [0.005, 0.006, 0.007]
    assert left["last frame seen"].get_ydata().tolist() == [0.01, 0.015, 0.02]
    assert left["mean frame"].get_ydata().tolist() == [0.01, 0.01, 0.01]
    assert right["rssm, imagined"].get_ydata().tolist() == pytest.approx([0.2, 0.3, 0.4])
    assert set(right["mean reward"].get_ydata()) == {2.0}
    assert left["rssm, imagined"].get_color() == left["rssm, reconstructed"].get_color() != "C1"
    assert drawn[0].get_suptitle() == "a task"
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 1000


def test_a_model_that_explodes_does_not_flatten_the_others(tmp_path, drawn):
    open_loop_curve(tmp_path / "a.png", {"rssm": error_of([0.002, 0.003, 0.004]), "wild": error_of([1e3, 1e9, np.inf])})
    left, right = drawn[0].axes
    assert (left.get_ylim()[1], right.get_ylim()[1]) == pytest.approx((0.2, 20.0))
    assert left.get_yscale() == "log"
    labels = [line.get_label() for line in left.lines]
    assert [label for label in labels if "above" in label] == ["wild, imagined (above the picture)"]


def test_a_perfect_model_is_drawn_too(tmp_path, drawn):
    open_loop_curve(tmp_path / "a.png", {"perfect": error_of([0.0, 0.0, 0.0])})
    assert [axes.get_yscale() for axes in drawn[0].axes] == ["linear", "linear"]


def test_a_curve_of_nothing_or_of_another_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match="errors must hold at least one model's, got none"):
        open_loop_curve(tmp_path / "a.png", {})
    with pytest.raises(ValueError, match=r"path must end in \.png, got '.*a\.pdf'"):
        open_loop_curve(tmp_path / "a.pdf", {"rssm": error_of([0.1, 0.1, 0.1])})
    assert os.listdir(tmp_path) == []

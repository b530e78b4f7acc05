"""A few of the ends that `torture.py` brings upon real training processes, and faults that its checks must find."""

import copy
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("the torture of training runs needs Linux", allow_module_level=True)
pytest.importorskip("dm_control")
pytest.importorskip("imageio_ffmpeg")
sys.path.insert(0, str(Path(__file__).parent))  # as for a program that is started in its folder

import torture
from lives import NOTHING, check_end, check_whole, live, look_at

from planet_lib.envs import select_backend

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("torture")


@pytest.fixture(scope="module")
def reference(folder):
    """A run that nothing happens to: six episodes from pixels, and an evaluation with its videos."""
    if select_backend(required=False) == "disabled":
        pytest.skip("no OpenGL on this machine")
    return torture.reference_run(folder)


def row_missing(state):
    del state.rows[3]


def row_twice(state):
    state.rows.append(state.rows[-1])


def episode_lost(state):
    del state.episodes[2]


def episode_changed(state):
    state.episodes[1] += 1


def weight_changed(state):
    next(iter(state.checkpoint["model"].values())).view(-1)[0] += 1e-6


def moment_changed(state):
    state.checkpoint["optimizer"]["state"][0]["exp_avg"].view(-1)[-1] += 1e-6


def randomness_changed(state):
    state.checkpoint["rng"]["torch"][40] ^= 1


def left_over(state):
    state.files["episodes/.episode-000003-0021.partial.tmp"] = 0


def picture_old(state):
    state.files["learning_curve.png"] ^= 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (row_missing, "rows of metrics are not those"),
        (row_twice, "rows of metrics are not those"),
        (episode_lost, r"finished episodes \[2\] are lost"),
        (episode_changed, r"episodes \[1\] are not those of the reference"),
        (weight_changed, r"differs from the reference in \['checkpoint.model"),
        (moment_changed, r"differs from the reference in \['checkpoint.optimizer.state.0.exp_avg'\]"),
        (randomness_changed, r"differs from the reference in \['checkpoint.rng.torch'\]"),
        (left_over, "files too many: {'episodes/.episode-000003-0021.partial.tmp'}"),
        (picture_old, r"pictures \['learning_curve.png'\] are not those"),
    ],
)
def test_no_fault_in_a_run_escapes_the_comparison_at_its_end(reference, fault, message):
    state = copy.deepcopy(reference.state)
    check_end(state, reference.state)
    fault(state)
    with pytest.raises(AssertionError, match=message):
        check_end(state, reference.state)


def test_a_run_killed_five_times_and_resumed_equals_one_that_never_was_bit_for_bit(folder, reference):
    random = np.random.default_rng(0)
    assert torture.kill(folder, reference, 5, random, print).total() == 5


@pytest.mark.parametrize(
    "plan",
    [
        {"how": "half", "what": "checkpoint", "count": 3, "size": 100_000},
        {"how": "half", "what": "row", "count": 4, "size": 30},
        {"how": "kill", "what": "previous checkpoint", "count": 4},
    ],
    ids=["within a checkpoint", "within a row", "between two checkpoints"],
)
def test_a_process_killed_while_it_writes_goes_on_to_the_same_end(folder, reference, plan):
    run = folder / "planned"
    life = live(run, plan=plan)
    assert life.code in (-signal.SIGKILL, -signal.SIGXFSZ)
    assert life.moment == plan["what"]
    check_whole(look_at(run), NOTHING, reference.state)
    assert live(run).code == 0
    check_end(look_at(run), reference.state)
    shutil.rmtree(run)


def test_a_start_where_a_run_was_killed_before_its_first_checkpoint_says_what_to_do(folder, reference):
    run = folder / "early"
    life = live(run, plan={"how": "kill", "what": "checkpoint", "count": 3})  # before it is moved into its place
    assert life.code == -signal.SIGKILL
    assert look_at(run).checkpoint is None
    torture.begin_again(run)
    assert not run.exists()


def test_a_full_disk_costs_one_line_and_once_it_is_larger_the_run_goes_on_to_the_same_end(folder, reference):
    try:
        moments = torture.fill_disk(folder, reference, (400_000,), torture.FILLS, print)
    except torture.NoDiskError as error:
        pytest.skip(str(error))
    assert moments.keys() >= {"episode", "checkpoint", "row"}


def test_a_directory_that_cannot_be_written_to_costs_one_line_and_nothing_else(folder, reference):
    torture.lock(folder, reference, torture.LOCKS[:1], print)


def test_ctrl_c_once_and_twice_leaves_a_run_that_goes_on_to_the_same_end(folder, reference):
    assert torture.interrupt(folder, reference, 2, np.random.default_rng(1), print).total() == 2

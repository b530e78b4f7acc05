"""What a training run is made of: one update, the run directory, checkpoints, metrics, pictures.

The loop itself stands in `examples/train_planet.py`, since it is what every user changes. `presets` is imported by
examples and users by its own name.
"""

from planet_lib.training.checkpoint import (
    check_compatible,
    load_checkpoint,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from planet_lib.training.curves import learning_curve, open_loop_curve
from planet_lib.training.determinism import make_deterministic
from planet_lib.training.diagnostics import open_loop, reconstruct
from planet_lib.training.foresight import OpenLoopError, open_loop_error
from planet_lib.training.metrics import MetricsWriter, read_metrics
from planet_lib.training.pictures import open_loop_strip, open_loop_video, reconstruction_video
from planet_lib.training.programs import ending_in_one_line, run_program
from planet_lib.training.progress import Progress
from planet_lib.training.run_dir import RunDirectory
from planet_lib.training.run_state import RunState
from planet_lib.training.settings import check_extras, check_renderer, check_settings, choose_device
from planet_lib.training.show import draw_episode
from planet_lib.training.skipping import SkipNonFinite
from planet_lib.training.transfer import transfer_weights
from planet_lib.training.update import Objective, UpdateResult, update, warm_up

__all__ = [
    "MetricsWriter",
    "Objective",
    "OpenLoopError",
    "Progress",
    "RunDirectory",
    "RunState",
    "SkipNonFinite",
    "UpdateResult",
    "check_compatible",
    "check_extras",
    "check_renderer",
    "check_settings",
    "choose_device",
    "draw_episode",
    "ending_in_one_line",
    "learning_curve",
    "load_checkpoint",
    "make_deterministic",
    "open_loop",
    "open_loop_curve",
    "open_loop_error",
    "open_loop_strip",
    "open_loop_video",
    "read_metrics",
    "reconstruct",
    "reconstruction_video",
    "rng_state",
    "run_program",
    "save_checkpoint",
    "set_rng_state",
    "transfer_weights",
    "update",
    "warm_up",
]

"""MuJoCo pixels on machines with and without a GPU or GL: what draws them, and settings that suit a CPU.

MuJoCo reads the variable MUJOCO_GL when it is imported, and a wrong choice there spoils the process for good. So
`select_backend` tries the candidates in a subprocess first. This module imports no extra and knows no environment.

The suite's settings are meant for a GPU: rasterised in software, most of a frame is the 2048 x 2048 shadow map and
the fine tessellation. `tune` lowers both, hardly visible at 64 x 64;
`benchmarks/where_time_goes.py` shows what it saves.

Where no GL works, the ray caster of `planet_lib.envs.rays` draws, and says so once (`announce_rays`).
"""

import atexit
import contextlib
import importlib
import importlib.util
import os
import subprocess
import sys
import warnings
import weakref
from collections.abc import Sequence
from typing import Any, Literal, get_args

from planet_lib._shapes import check_choice, check_flag, is_whole, shown

Quality = Literal["tuned", "fast", "suite"]
RendererChoice = Literal["auto", "gl", "rays"]

_DISABLED = ("disabled", "disable", "off", "false", "0")
# What to run on Debian and its kin where no GL works.
INSTALL_GL = "apt-get install -y --no-install-recommends libegl1 libgl1 (or libosmesa6)"
_drawing: "weakref.WeakSet[Any]" = weakref.WeakSet()
_announced: set[str] = set()
_LOADED_WITH_GL = {"mujoco", "dm_control", "OpenGL", "glfw"}
_compiles = True  # whether somebody may compile or train in this process
_PROBE = """
import mujoco
context = mujoco.GLContext(8, 8)
context.make_current()
renderer = mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_150)
renderer.free()
context.free()
"""


class RendererWarning(UserWarning):
    """MuJoCo's pixels are drawn in another way than usual."""


def select_backend(*, required: bool = True) -> str:
    """Choose how MuJoCo renders, by setting MUJOCO_GL unless it is set, and return the choice.

    The order: MUJOCO_GL where it is set; egl; osmesa; glfw where DISPLAY is set. Each candidate is tried in a
    subprocess (about 0.4 s, once: child processes inherit the variable). `make_env` calls this by itself; call it
    first in a constructor of your own that uses MuJoCo.

    Where MuJoCo is imported already, or the system is not Linux (whose drivers need no choice), nothing is changed.

    Args:
        required: whether GL is needed. Without, a machine that has none gets MUJOCO_GL=disabled, with which states
            and the ray caster work; on any other machine GL remains possible in the same process.

    Returns:
        The value of MUJOCO_GL, or "default" where it is left unset.

    Raises:
        RuntimeError: GL is required and none works, or MUJOCO_GL forbids it. Nothing was changed.

    Example:
        >>> select_backend(required=False) in ("egl", "osmesa", "glfw", "disabled", "default")
        True
    """
    check_flag(required=required)
    _load_compiler()
    chosen = os.environ.get("MUJOCO_GL", "").strip()
    if not chosen:
        if "mujoco" in sys.modules or sys.platform != "linux":
            return "default"
        candidates = ["egl", "osmesa", *(["glfw"] if os.environ.get("DISPLAY") else [])]
        chosen = next((name for name in candidates if probe_backend(name)), "disabled")
        if chosen == "disabled" and required:
            raise RuntimeError(no_gl_message(f"none of {', '.join(candidates)} works"))
        os.environ["MUJOCO_GL"] = chosen
    if chosen.lower() in _DISABLED and required:
        raise RuntimeError(no_gl_message(f"MUJOCO_GL={chosen} (unset it once GL is there)"))
    if chosen.lower() == "osmesa":
        # Otherwise dm_control hands drawing to a thread, which complains at every interpreter exit.
        os.environ.setdefault("DISABLE_RENDER_THREAD_OFFLOADING", "1")
    return chosen


def draw_only() -> None:
    """Say that this process draws and trains nothing, so that it needs not hold what only training would need."""
    global _compiles  # noqa: PLW0603 -- it is about the process
    _compiles = False


def _load_compiler() -> None:
    """Load triton, torch's compiler in PyPI's builds for Linux, if it is there and nothing of OpenGL is yet.

    triton and Mesa's software renderer each bring an LLVM. With Mesa's loaded first, the process crashes as soon as
    triton is imported, which making any optimizer of torch.optim does; in this order both work (triton 3.9, Mesa 22.3).
    """
    early = sys.platform == "linux" and not sys.modules.keys() & _LOADED_WITH_GL
    if early and _compiles and importlib.util.find_spec("triton") is not None:
        with contextlib.suppress(Exception):  # what is wrong with it, torch says where it is needed
            importlib.import_module("triton")


def probe_backend(name: str, *, timeout: float = 30.0) -> bool:
    """Tell whether MuJoCo can draw with MUJOCO_GL=`name`, by trying it in a subprocess of at most `timeout` seconds."""
    command = [sys.executable, "-P", "-c", _PROBE]
    try:
        result = subprocess.run(
            command,
            env={**os.environ, "MUJOCO_GL": name},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return result.returncode == 0


def no_gl_message(reason: str) -> str:
    """Return the one line that tells somebody without a working GL what to do."""
    remedy = 'or use renderer="rays" or obs="state"'
    return f"MuJoCo cannot render pixels here: {reason}; run {INSTALL_GL}, {remedy}"


def drawing_error(error: Exception, *, image_size: tuple[int, int]) -> Exception:
    """Return what to raise where GL cannot draw: a `ValueError` where it works but not at this size, or a RuntimeError.

    To be called while what failed still holds its GL context, which knows the limit.
    """
    text = str(error).splitlines()[0] if str(error) else repr(error)
    if "framebuffer" not in text.lower():
        return RuntimeError(no_gl_message(text))
    limit = _largest_side()
    is_over = limit is not None and max(image_size) > limit
    most = f"at most {limit} each (OpenGL's limit here)" if is_over else "less (more than OpenGL's limit or memory)"
    return ValueError(f"image_size must be {most}, got {image_size}: {text}; draw smaller frames")


def _largest_side() -> int | None:
    """Return the largest side of a picture in the current GL context, or None where that cannot be asked."""
    try:
        from OpenGL import GL  # type: ignore[import-untyped]  # noqa: PLC0415 -- comes with mujoco

        GL.glGetError()  # what failed left its error behind, and the next call would raise it
        limit = int(GL.glGetIntegerv(GL.GL_MAX_RENDERBUFFER_SIZE))
    except Exception:  # no context, no library, no such query: the message does without
        return None
    return limit or None


def check_renderer(renderer: str) -> None:
    """Raise a `ValueError` unless `renderer` is one of "auto", "gl", "rays"."""
    check_choice("renderer", renderer, get_args(RendererChoice))


def resolve_renderer(renderer: str) -> str:
    """Return what draws: "gl" or "rays". To be called after `select_backend`.

    "auto" is rays where MUJOCO_GL is disabled (which `select_backend` sets where no GL works), and GL elsewhere.
    """
    if renderer != "auto":
        return renderer
    return "rays" if os.environ.get("MUJOCO_GL", "").strip().lower() in _DISABLED else "gl"


def announce_rays() -> None:
    """Warn, once a process, that the ray caster draws in place of GL; to be called before its first picture."""
    if _announced:
        return
    _announced.add("rays")
    warnings.warn(
        f"MuJoCo's pixels are drawn by planet_lib's ray caster, since OpenGL is not available "
        f"(MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}). They differ slightly from OpenGL's: train and evaluate with "
        f'the same renderer. For OpenGL unset MUJOCO_GL and run {INSTALL_GL}; renderer="rays" silences this',
        RendererWarning,
        stacklevel=2,
    )


def camera_index(names: Sequence[str | None], camera: int | str) -> int:
    """Return the index of a model's camera, -1 for the free one, or raise a `ValueError` with those there are.

    Args:
        names: of the model's cameras, in their order; None or "" for one without.
        camera: an index or a name.

    Example:
        >>> camera_index(["fixed", "lookatcart"], "lookatcart")
        1
    """
    known = [name for name in names if name]
    index = names.index(camera) if isinstance(camera, str) and camera in known else camera
    if isinstance(index, str) or not is_whole(index, -1, len(names) - 1):
        expected = f"-1 to {len(names) - 1}" if names else "-1 (the model has no cameras)"
        raise ValueError(
            f"camera must be {expected}{' or one of ' if known else ''}{', '.join(known)}, got {shown(camera)}"
        )
    return int(index)


def check_quality(quality: str) -> None:
    """Raise a `ValueError` unless `quality` is one of "tuned", "fast", "suite"."""
    check_choice("quality", quality, get_args(Quality))


def tune(model: Any, *, image_size: tuple[int, int], quality: Quality) -> None:
    """Set what a MuJoCo model says about drawing, before its first frame: the GL context reads it once.

    tuned: a shadow map twice the image, between 128 and 256, slices, stacks and quads 12, 8, 1, a framebuffer of the
    image's size, and rasterising in the calling thread (LP_NUM_THREADS=0 unless set; Mesa's software driver alone reads
    it). Shadows, reflections, sky and antialiasing stay. fast: also without antialiasing, where thin lines break up.
    suite: all as the model says.

    Settings are only ever lowered, but for the framebuffer, which grows to the image where it has to.

    Args:
        model: an MjModel, of the mujoco package or wrapped by dm_control; changed in place.
        image_size: (Y, X) of the frames.
        quality: see above.
    """
    height, width = image_size
    vis = model.vis
    if quality == "suite":
        vis.global_.offwidth = max(vis.global_.offwidth, width)
        vis.global_.offheight = max(vis.global_.offheight, height)
        return
    os.environ.setdefault("LP_NUM_THREADS", "0")
    vis.global_.offwidth, vis.global_.offheight = width, height
    limits = {"shadowsize": min(256, max(128, 2 * height, 2 * width)), "numslices": 12, "numstacks": 8, "numquads": 1}
    if quality == "fast":
        limits["offsamples"] = 0
    for name, limit in limits.items():
        owner = vis.quality
        setattr(owner, name, min(getattr(owner, name), limit))


def close_at_exit(env: Any) -> None:
    """Close `env` when the interpreter exits, if it still lives; to be called when its GL context has been made.

    The driver's exit handlers, which come with the first context, must run after this, or exit prints errors that
    nobody can act on. Handlers run last in, first out, so this one is moved to the end for each context.
    """
    _drawing.add(env)
    atexit.unregister(_close_all)
    atexit.register(_close_all)


def _close_all() -> None:
    """Close what still draws."""
    for env in list(_drawing):
        env.close()

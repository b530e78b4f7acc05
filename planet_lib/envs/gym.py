"""Gymnasium environments by id, and MuJoCo ones that share a process with other renderers or need no OpenGL.

It knows gymnasium only. `planet_lib.envs.wrappers.StandardEnv` gives what it makes the common contract.
"""

import difflib
import importlib
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import DependencyNotInstalled, Error, ResetNeeded

from planet_lib.envs._fresh_world import FreshWorld
from planet_lib.envs.extras import require
from planet_lib.envs.rendering import (
    Quality,
    RendererChoice,
    announce_rays,
    camera_index,
    close_at_exit,
    drawing_error,
    no_gl_message,
    resolve_renderer,
    select_backend,
    tune,
)


def make_gym(
    name: str,
    *,
    obs: str,
    image_size: tuple[int, int],
    camera: int | str | None,
    renderer: RendererChoice = "auto",
    **kwargs: Any,
) -> gymnasium.Env[Any, Any]:
    """Return `gymnasium.make(name, **kwargs)`, ready to render unless `obs` is "state".

    MuJoCo environments of Gymnasium draw at `image_size` and take a `camera` (name or index; None is their own
    moving one); the others draw at their own size and know no camera. Without pixels nothing that draws is loaded.

    As in Gymnasium, "module:id" imports `module` first, which registers the id: so an environment of one's own has a
    name too.

    Raises:
        ValueError: an unknown id, with the nearest ones, a camera that the environment has not, or settings that
            it refuses.
        ImportError: the id needs a package, such as mujoco, which is not installed.
        RuntimeError: a MuJoCo environment shall be drawn by OpenGL, and none works here.
    """
    module, _, name = name.rpartition(":")
    if module:
        _import_registering(module, name)
    try:
        spec = gymnasium.spec(name)
    except Error as error:
        near = difflib.get_close_matches(name, list(gymnasium.registry), n=3, cutoff=0.5)
        hint = f"nearest: {', '.join('gym:' + each for each in near)}" if near else "see gymnasium.pprint_registry()"
        raise ValueError(
            f"env must be an id that is there, got {f'gym:{name}'!r}: gymnasium has no environment {name!r}; {hint}"
        ) from error
    is_mujoco = "mujoco" in str(spec.entry_point)
    if camera is not None and not is_mujoco:
        raise ValueError(f"camera must be None for gym:{name}, which has no cameras, got {camera!r}")
    if is_mujoco:
        _load_mujoco(needs_gl=obs != "state" and renderer == "gl")
    settings: dict[str, Any] = {"disable_env_checker": True}
    if obs != "state":
        settings["render_mode"] = "rgb_array"
        if is_mujoco:
            settings.update(height=image_size[0], width=image_size[1])
    if camera is not None:
        settings["camera_name" if isinstance(camera, str) else "camera_id"] = camera
    try:
        made = gymnasium.make(name, **{**settings, **kwargs})
    except (DependencyNotInstalled, ImportError) as error:
        raise ImportError(f"gym:{name} needs a package that is not installed: {_one_line(error)}") from error
    except Error as error:
        raise ValueError(f"gym:{name} cannot be made: {_one_line(error)}") from error
    if "bipedal_walker" in str(spec.entry_point):
        made = FreshWorld(made)
    if camera is not None:
        try:
            _check_camera(made, camera)
        except ValueError:
            made.close()
            raise
    return made


class MujocoFrames(gymnasium.Wrapper[Any, Any, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """A Gymnasium MuJoCo environment whose frames are tuned or cast by rays, and right beside any other renderer.

    Gymnasium makes a viewer's GL context current only when it makes the viewer, so that drawing or closing one
    environment spoils the frames of the next. Here it is made current before each frame, and everything of it is
    freed in `close`, which also happens at exit. Rays show what Gymnasium's camera would show.

    The free camera looks at the middle of where the geoms are when an episode starts. Gymnasium aims it once, at the
    first frame, so that the frames of an episode differ with what was played before it.

    Args:
        env: an environment whose `unwrapped` has Gymnasium's `mujoco_renderer`, before its first frame.
        quality: of OpenGL's pictures, see `planet_lib.envs.rendering.tune`.
        renderer: "gl", "rays", or "auto", which is rays only where no GL works.

    Attributes:
        renderer: what draws: "gl-tuned", "gl-fast", "gl-suite" or "rays".

    Raises:
        ValueError: on `render`, a model that rays cannot draw, or a size that OpenGL cannot.
        RuntimeError: on `render`, where GL shall draw and cannot.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, quality: Quality, renderer: RendererChoice = "auto") -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self, quality=quality, renderer=renderer)
        gymnasium.Wrapper.__init__(self, env)
        self._renderer = env.unwrapped.mujoco_renderer  # type: ignore[attr-defined]  # what MuJoCo environments have
        self._is_auto, self._draws_rays = renderer == "auto", resolve_renderer(renderer) == "rays"
        self._rays: Any = None
        self._ray_camera: Any = None
        self.renderer = "rays" if self._draws_rays else f"gl-{quality}"
        size = (self._renderer.height, self._renderer.width)
        tune(self._renderer.model, image_size=size, quality="tuned" if self._draws_rays else quality)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode, and aim the free camera at its start."""
        result = self.env.reset(seed=seed, options=options)
        camera = self._ray_camera if self._draws_rays else getattr(self._renderer.viewer, "cam", None)
        if camera is not None:
            _aim(camera, self._renderer)
        return result

    def render(self) -> Any:
        """Return the present frame, uint8 [Y, X, 3]."""
        if self._draws_rays:
            return self._cast()
        if self._renderer.viewer is not None:
            self._renderer.viewer.make_context_current()
            return self.env.render()
        try:
            frame = self.env.render()
        except Error:
            raise
        except Exception as error:
            raise drawing_error(error, image_size=(self._renderer.height, self._renderer.width)) from error
        close_at_exit(self)
        return frame

    def close(self) -> None:
        """Free the viewer, its drawing resources first, while its own GL context is the current one."""
        self._rays = None
        viewer, self._renderer.viewer = self._renderer.viewer, None
        if viewer is not None:
            viewer.make_context_current()
            viewer.con.free()
        super().close()

    def _cast(self) -> Any:
        """Return the present frame from the ray caster, made at the first one."""
        if self.env.has_wrapper_attr("has_reset") and not self.env.get_wrapper_attr("has_reset"):
            raise ResetNeeded("render needs a running episode: call reset() first")
        if self._rays is None:
            from planet_lib.envs.rays import RayRenderer  # noqa: PLC0415 -- mujoco is an extra

            own = self._renderer
            self._ray_camera = _viewer_camera(own)
            self._rays = RayRenderer(own.model, own.data, own.height, own.width, self._ray_camera)
            if self._is_auto:
                announce_rays()
        return self._rays.render()


def _viewer_camera(renderer: Any) -> Any:
    """Return the camera that Gymnasium's viewer would use: its free one, set up for the task, or one of the model."""
    import mujoco  # noqa: PLC0415 -- an extra

    camera = mujoco.MjvCamera()
    _aim(camera, renderer)
    camera.distance = renderer.model.stat.extent
    for name, value in (renderer.default_cam_config or {}).items():
        if isinstance(value, np.ndarray):
            getattr(camera, name)[:] = value
        else:
            setattr(camera, name, value)
    free = renderer.camera_id == -1
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE if free else mujoco.mjtCamera.mjCAMERA_FIXED
    camera.fixedcamid = renderer.camera_id
    return camera


def _aim(camera: Any, renderer: Any) -> None:
    """Let the camera look where Gymnasium's free one looks in a viewer that is made now."""
    given = (renderer.default_cam_config or {}).get("lookat")
    camera.lookat[:] = np.median(renderer.data.geom_xpos, axis=0) if given is None else given


def _check_camera(env: gymnasium.Env[Any, Any], camera: int | str) -> None:
    """Raise unless the model has the camera: drawing an unknown name shows another view, an index ends the process."""
    import mujoco  # noqa: PLC0415 -- an extra

    model = env.unwrapped.model  # type: ignore[attr-defined]  # likewise
    kind = mujoco.mjtObj.mjOBJ_CAMERA
    camera_index([mujoco.mj_id2name(model, kind, index) for index in range(model.ncam)], camera)


def _import_registering(module: str, name: str) -> None:
    """Import the module that stands before an environment's id, or say where its name comes from."""
    if not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f'env must be "gym:id" or "gym:module:id", got {f"gym:{module}:{name}"!r}')
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"gym:{module}:{name} names the module {module!r}, which must be importable and register {name!r}, "
            f"got: {_one_line(error)}; install it, or put its folder on PYTHONPATH"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _load_mujoco(*, needs_gl: bool) -> None:
    """Import mujoco with a GL backend, or without any unless it is needed, or raise with the remedy."""
    require("mujoco", extra="gym")
    backend = select_backend(required=needs_gl)
    try:
        importlib.import_module("mujoco")
    except (AttributeError, RuntimeError) as error:
        raise RuntimeError(no_gl_message(f"MUJOCO_GL={backend} fails ({error})")) from error

"""Gymnasium environments by id, and MuJoCo ones that share a process with other renderers.

It knows gymnasium only. `planet_lib.envs.wrappers.StandardEnv` gives what it makes the common contract.
"""

import difflib
import importlib
from typing import Any

import gymnasium
from gymnasium.error import DependencyNotInstalled, Error

from planet_lib.envs.extras import require
from planet_lib.envs.rendering import Quality, close_at_exit, no_gl_message, select_backend, tune


def make_gym(
    name: str, *, obs: str, image_size: tuple[int, int], camera: int | str | None, **kwargs: Any
) -> gymnasium.Env[Any, Any]:
    """Return `gymnasium.make(name, **kwargs)`, ready to render unless `obs` is "state".

    MuJoCo environments of Gymnasium draw at `image_size` and take a `camera` (name or index; None is their own
    moving one); the others draw at their own size and know no camera. Without pixels nothing that draws is loaded.

    As in Gymnasium, "module:id" imports `module` first, which registers the id: so an environment of one's own has a
    name too.

    Raises:
        ValueError: an unknown id, with the nearest ones, a camera for an environment that has none, or settings that
            the environment refuses.
        ImportError: the id needs a package, such as mujoco, which is not installed.
        RuntimeError: a MuJoCo environment shall give pixels and nothing here can render.
    """
    module, _, name = name.rpartition(":")
    if module:
        importlib.import_module(module)
    try:
        spec = gymnasium.spec(name)
    except Error as error:
        near = difflib.get_close_matches(name, list(gymnasium.registry), n=3, cutoff=0.5)
        hint = f"nearest: {', '.join('gym:' + each for each in near)}" if near else "see gymnasium.pprint_registry()"
        raise ValueError(f"gymnasium has no environment {name!r}; {hint}") from error
    is_mujoco = "mujoco" in str(spec.entry_point)
    if camera is not None and not is_mujoco:
        raise ValueError(f"camera must be None for gym:{name}, which has no cameras, got {camera!r}")
    if is_mujoco:
        _load_mujoco(obs)
    settings: dict[str, Any] = {"disable_env_checker": True}
    if obs != "state":
        settings["render_mode"] = "rgb_array"
        if is_mujoco:
            settings.update(height=image_size[0], width=image_size[1])
    if camera is not None:
        settings["camera_name" if isinstance(camera, str) else "camera_id"] = camera
    try:
        return gymnasium.make(name, **{**settings, **kwargs})
    except (DependencyNotInstalled, ImportError) as error:
        raise ImportError(f"gym:{name} needs a package that is not installed: {_one_line(error)}") from error
    except Error as error:
        raise ValueError(f"gym:{name} cannot be made: {_one_line(error)}") from error


class MujocoFrames(gymnasium.Wrapper[Any, Any, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """A Gymnasium MuJoCo environment whose frames are tuned, and right beside any other renderer of the process.

    Gymnasium makes a viewer's GL context current only when it makes the viewer, so that drawing or closing one
    environment spoils the frames of the next. Here it is made current before each frame, and everything of it is
    freed in `close`, which also happens at exit.

    Args:
        env: an environment whose `unwrapped` has Gymnasium's `mujoco_renderer`, before its first frame.
        quality: see `planet_lib.envs.rendering.tune`.

    Raises:
        RuntimeError: on `render`, where nothing here can.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, quality: Quality) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self, quality=quality)
        gymnasium.Wrapper.__init__(self, env)
        base: Any = env.unwrapped
        self._renderer = base.mujoco_renderer
        tune(base.model, image_size=(self._renderer.height, self._renderer.width), quality=quality)

    def render(self) -> Any:
        """Return the present frame, uint8 [Y, X, 3]."""
        if self._renderer.viewer is not None:
            self._renderer.viewer.make_context_current()
            return self.env.render()
        try:
            frame = self.env.render()
        except Error:
            raise
        except Exception as error:
            raise RuntimeError(no_gl_message(str(error).splitlines()[0] if str(error) else repr(error))) from error
        close_at_exit(self)
        return frame

    def close(self) -> None:
        """Free the viewer, its drawing resources first, while its own GL context is the current one."""
        viewer, self._renderer.viewer = self._renderer.viewer, None
        if viewer is not None:
            viewer.make_context_current()
            viewer.con.free()
        super().close()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _load_mujoco(obs: str) -> None:
    """Import mujoco with the GL backend that `obs` needs, or raise with the remedy."""
    require("mujoco", extra="gym")
    backend = select_backend(required=obs != "state")
    try:
        importlib.import_module("mujoco")
    except (AttributeError, RuntimeError) as error:
        raise RuntimeError(no_gl_message(f"MUJOCO_GL={backend} fails ({error})")) from error

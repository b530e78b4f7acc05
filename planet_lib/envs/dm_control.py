"""The DeepMind Control Suite as Gymnasium environments, drawn by one persistent camera, of OpenGL or of rays.

It knows dm_control and how to tune its pictures; names, action repeat and value checks live elsewhere. Importing it
imports dm_control, and so fixes how MuJoCo renders: `planet_lib.envs.select_backend` chooses just before.

Source: dm_control.suite 1.0.50. Different from other wrappers: the task is seeded afresh at every reset; an end with
discount 0 is a termination, any other a truncation; an axis without limits is not stretched to 1e10.
"""

import difflib
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from planet_lib._signals import ctrl_c_waits
from planet_lib.envs.images import Array
from planet_lib.envs.rendering import (
    INSTALL_GL,
    Quality,
    RendererChoice,
    announce_rays,
    camera_index,
    close_at_exit,
    drawing_error,
    resolve_renderer,
    select_backend,
    tune,
)

select_backend(required=False)

from dm_control import suite  # noqa: E402 -- MuJoCo reads the choice when it is imported
from dm_control.mujoco import engine  # noqa: E402 -- likewise

from planet_lib.envs.rays import RayRenderer  # noqa: E402 -- likewise

# What dm_control gives as the bound of an actuator that has none.
_UNLIMITED = 1e10


class DMControlEnv(gymnasium.Env[Array, Array]):
    """One task of the suite, one control step per step.

    Observations are the task's own, concatenated in its order, float64 [N]; `render` gives uint8 [Y, X, 3]. Actions
    [A] lie in the task's own box; an axis without limits (only lqr has them) is offered as [-1, 1].

    Every `reset` seeds the task afresh: from `seed` where given, else from the generator that the last seed started.
    What a task draws when it is built (the stiffnesses of lqr) is drawn with seed 0: a name is one and the same model.

    Args:
        domain: such as "cartpole".
        task: such as "balance".
        obs: with "pixels" or "both", the renderer is made now, and so fails now; with "state" only at the first
            `render`.
        image_size: (Y, X) of the frames.
        camera: a fixed camera by index or name, -1 for the free one; None is camera 0, as in the paper's code.
        quality: of OpenGL's pictures, see `planet_lib.envs.rendering.tune`.
        renderer: "gl", "rays", or "auto", which is rays only where no GL works.
        task_kwargs: settings of the task, such as {"time_limit": 20}.

    Attributes:
        renderer: what draws: "gl-tuned", "gl-fast", "gl-suite" or "rays".

    Raises:
        ValueError: an unknown domain, task or camera, a seed among the settings, a model that rays cannot draw, or an
            image_size that OpenGL cannot.
        RuntimeError: GL shall draw and cannot; also on `render`. On `reset`, a task that needs GL without any
            (quadruped-escape hands its terrain to it).

    Example:
        >>> env = DMControlEnv("cartpole", "balance", obs="state")
        >>> env.reset(seed=0)[0].shape, env.action_space.shape
        ((5,), (1,))
    """

    def __init__(
        self,
        domain: str,
        task: str,
        *,
        obs: str = "pixels",
        image_size: tuple[int, int] = (64, 64),
        camera: int | str | None = None,
        quality: Quality = "tuned",
        renderer: RendererChoice = "auto",
        task_kwargs: dict[str, Any] | None = None,
    ) -> None:
        check_task(domain, task)
        settings = dict(task_kwargs or {})
        if "random" in settings:
            raise ValueError("random must not be set: give the seed to env.reset(seed=...)")
        self._env = suite.load(domain, task, task_kwargs={**settings, "random": 0})
        self._image_size, self._quality = image_size, quality
        model = self.physics.model
        names = [model.id2name(index, "camera") for index in range(model.ncam)]
        self._camera_id = camera_index(names, 0 if camera is None else camera)
        self._camera: engine.Camera | RayRenderer | None = None
        self._is_auto, self._draws_rays = renderer == "auto", resolve_renderer(renderer) == "rays"
        self.renderer = "rays" if self._draws_rays else f"gl-{quality}"
        self.render_mode = "rgb_array"
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / self._env.control_timestep())}
        action, vector = self._env.action_spec(), self._env.observation_spec()
        unlimited = (action.minimum <= -_UNLIMITED) | (action.maximum >= _UNLIMITED)
        low, high = (np.where(unlimited, end, own) for end, own in ((-1.0, action.minimum), (1.0, action.maximum)))
        self.action_space = spaces.Box(low, high, action.shape, np.float64)
        size = sum(int(np.prod(spec.shape)) for spec in vector.values())
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float64)
        if obs != "state":
            self._open_camera()

    @property
    def physics(self) -> Any:
        """The task's `dm_control.mujoco.Physics`."""
        return self._env.physics

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode from `seed`, or from the next seed of the running generator."""
        super().reset(seed=seed, options=options)
        self._env.task.random.seed(int(self.np_random.integers(2**32)))
        self._make_current()
        try:
            start = self._env.reset()
        except RuntimeError as error:
            if "OpenGL" not in str(error):
                raise
            reason = "this task hands its terrain to OpenGL at each reset, and none works here"
            raise RuntimeError(f"{reason}; run {INSTALL_GL}") from error
        return _flatten(start.observation), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Make one control step with `action` [A] in the task's own box."""
        now = self._env.step(action)
        terminated = now.last() and now.discount == 0.0
        return _flatten(now.observation), float(now.reward), terminated, now.last() and not terminated, {}

    def render(self) -> Array:
        """Return the present frame, uint8 [Y, X, 3]."""
        camera = self._camera or self._open_camera()
        self._make_current()
        return np.array(camera.render())

    def close(self) -> None:
        """Free the renderer with its GL context, and the simulation: the environment is of no use after."""
        self._make_current()
        self._camera = None
        self.physics.free()

    def _open_camera(self) -> engine.Camera | RayRenderer:
        """Make the one camera that draws every frame."""
        if self._draws_rays:
            return self._open_rays()
        tune(self.physics.model, image_size=self._image_size, quality=self._quality)
        try:
            with ctrl_c_waits():  # a GL context that is half made cannot be freed
                self._camera = engine.Camera(self.physics, *self._image_size, camera_id=self._camera_id)
                close_at_exit(self)
        except Exception as error:
            raise drawing_error(error, image_size=self._image_size) from error
        return self._camera

    def _open_rays(self) -> RayRenderer:
        """Make the ray caster; the segments of a loose tendon are as many as in tuned pictures."""
        model = self.physics.model
        tune(model, image_size=self._image_size, quality="tuned")
        camera = RayRenderer(model.ptr, self.physics.data.ptr, *self._image_size, self._camera_id)
        if self._is_auto:
            announce_rays()
        self._camera = camera
        return camera

    def _make_current(self) -> None:
        """Make this environment's GL context current, really, where it has one.

        dm_control skips the call where it believes that its context is current. Another renderer of the process, such
        as Gymnasium's, may have changed that, and the frame would be drawn into the other's buffer.
        """
        if not isinstance(self._camera, engine.Camera):
            return
        gl = self.physics.contexts.gl
        with gl.make_current() as thread:
            thread.call(gl._platform_make_current)


def check_task(domain: str, task: str) -> None:
    """Raise a `ValueError` with the nearest names unless the suite has the task.

    Example:
        >>> check_task("pendulum", "balance")
        Traceback (most recent call last):
            ...
        ValueError: env must be a task of the suite, got 'dmc:pendulum-balance': dm_control's domain pendulum has no \
task 'balance'; it has swingup
    """
    tasks, got = suite.TASKS_BY_DOMAIN.get(domain), f"env must be a task of the suite, got {f'dmc:{domain}-{task}'!r}"
    if tasks is None:
        names = [f"dmc:{known}-{name}" for known, name in suite.ALL_TASKS]
        near = difflib.get_close_matches(f"dmc:{domain}-{task}", names, n=3, cutoff=0.6)
        hint = f"nearest: {', '.join(near)}" if near else f"domains: {', '.join(suite.TASKS_BY_DOMAIN)}"
        raise ValueError(f"{got}: dm_control has no domain {domain!r}; {hint}")
    if task not in tasks:
        raise ValueError(f"{got}: dm_control's domain {domain} has no task {task!r}; it has {', '.join(tasks)}")


def _flatten(observation: Any) -> Array:
    """Concatenate a task's observations in its own order."""
    return np.concatenate([np.ravel(value) for value in observation.values()]).astype(np.float64)

"""`make_env`: one entry for suite tasks, Gymnasium ids and environments of your own.

It reads names and checks arguments; what is behind a name is in `dm_control` and `gym`, imported only when asked for,
so that importing `planet_lib.envs` needs no extra.

Source: the action repeats of table 1 and appendix A of arXiv:1811.04551, and scripts/tasks.py of
google-research/planet.
"""

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from planet_lib._shapes import MOST, check_whole, shown
from planet_lib.envs._checks import size_of
from planet_lib.envs.extras import require
from planet_lib.envs.images import Channels, check_channels, check_obs
from planet_lib.envs.rendering import (
    Quality,
    RendererChoice,
    check_quality,
    check_renderer,
    no_gl_message,
    select_backend,
)

if TYPE_CHECKING:
    import gymnasium

    from planet_lib.envs.observations import Obs
    from planet_lib.envs.wrappers import StandardEnv

_PAPER_REPEATS = {"cartpole": 8, "reacher": 4, "cheetah": 4, "finger": 2, "ball_in_cup": 4, "walker": 2}


def make_env(
    env: "str | Callable[..., gymnasium.Env[Any, Any]]",
    *,
    obs: "Obs" = "pixels",
    image_size: Sequence[int] = (64, 64),
    action_repeat: int | None = None,
    camera: int | str | None = None,
    quality: Quality = "tuned",
    renderer: RendererChoice = "auto",
    supersample: int = 1,
    channels: Channels = "all",
    **kwargs: Any,
) -> "StandardEnv":
    """Return an environment under planet_lib's contract (`planet_lib.envs.wrappers.StandardEnv`).

    Whatever `env` is, the result observes uint8 [C, Y, X], float32 [N] or a dictionary of such, takes actions [A] in
    [-1, 1], sums the rewards over `action_repeat` steps, keeps terminated and truncated apart, plays exactly the same
    episode after `reset(seed=...)` with the same seed and actions, and frees its renderer in `close()`.

    Args:
        env: "dmc:domain-task" for dm_control's suite ("dmc:cartpole-balance", "dmc:ball_in_cup-catch"), "gym:id" for
            Gymnasium ("gym:Pendulum-v1", "gym:HalfCheetah-v5"), or a callable that returns a Gymnasium environment.
        obs: "pixels", "state" or "both", a dictionary of these two. Pixels of a callable's or Gymnasium's environment
            are its own observation where that is a uint8 image, and otherwise what it renders (a callable sets
            render_mode="rgb_array"). An environment that observes a dictionary with images in it gives its own entries.
        image_size: (Y, X) of the pixels.
        action_repeat: environment steps per decision; None for `default_action_repeat(env)`.
        camera: index or name, for MuJoCo environments by name; None is the suite's camera 0, Gymnasium's own view.
        quality: of OpenGL's pictures of MuJoCo: "tuned" for software rendering, "fast" (also without antialiasing),
            "suite" (as the model says; for a GPU). They differ slightly: train and evaluate with the same.
        renderer: of MuJoCo's pictures: "gl", "rays" (the ray caster of `planet_lib.envs.rays`, which needs no OpenGL),
            or "auto": GL where it works, else rays, with one warning a process. The result's `renderer` says what
            draws: "gl-tuned" (with the quality), "rays", "own" (the environment itself), "none" (no pixels).
        supersample: MuJoCo's pictures are drawn so many times higher and wider, and each pixel is the mean of what it
            covers: small frames in which thin things keep their place. Environments that draw themselves are asked for
            their own size, whatever this says.
        channels: kept of images of three channels: "all"; "red", which in the suite, where bodies are orange and floors
            blue, shows bodies with the strongest contrast at a third of the numbers; or "grey", their mean.
        **kwargs: for dmc the task's settings (time_limit=20), for gym those of `gymnasium.make`, else the callable's.

    Raises:
        ValueError: an unknown name (with the nearest ones), or an argument out of range.
        TypeError: an `env` of another kind, such as an environment instead of its constructor.
        ImportError: the extra that the name needs is not installed; the message names it.
        RuntimeError: OpenGL shall draw and cannot; the message says what to install.

    Example:
        >>> env = make_env("dmc:cartpole-balance", obs="state")
        >>> observation, info = env.reset(seed=1)
        >>> env.observation_space.shape, env.action_space.shape, env.action_repeat
        ((5,), (1,), 8)
        >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        >>> 0 <= reward <= 8, terminated, truncated
        (True, False, False)
        >>> env.close()
    """
    check_obs(obs)
    size = size_of(image_size)
    check_quality(quality)
    check_renderer(renderer)
    check_channels(channels)
    check_whole("supersample", supersample, least=1, most=MOST // max(size))
    drawn = (size[0] * int(supersample), size[1] * int(supersample))
    usual = default_action_repeat(env)
    repeat = usual if action_repeat is None else action_repeat
    check_whole("action_repeat", repeat, least=1)
    given: object = camera
    if not (given is None or isinstance(given, str | Integral)):
        raise ValueError(f"camera must be -1 to the last, a name, or None, got {shown(camera)}")
    if not isinstance(env, str):
        made = _from_callable(env, camera, kwargs)
    elif env.startswith("dmc:"):
        made = _from_suite(
            env, obs=obs, image_size=drawn, camera=camera, quality=quality, renderer=renderer, task_kwargs=kwargs
        )
    else:
        made = _from_gymnasium(env, obs=obs, image_size=drawn, camera=camera, renderer=renderer, **kwargs)
    seen: dict[str, Any] = {"obs": obs, "image_size": size, "channels": channels, "action_repeat": int(repeat)}
    return _standardise(made, quality=quality, renderer=renderer, **seen)


def default_action_repeat(env: "str | Callable[..., gymnasium.Env[Any, Any]]") -> int:
    """Return the action repeat of the paper for a suite task, 2 for the suite's other tasks, and 1 for all else.

    The paper's: cartpole 8, reacher 4, cheetah 4, finger 2, ball_in_cup 4, walker 2. Some ports use 6 for
    ball_in_cup, as the first release of the original code did.

    Raises:
        ValueError: a name without a known scheme.
        TypeError: neither a name nor a callable.

    Example:
        >>> default_action_repeat("dmc:cartpole-swingup"), default_action_repeat("gym:Pendulum-v1")
        (8, 1)
    """
    if isinstance(env, str):
        scheme, _, rest = env.partition(":")
        if scheme not in ("dmc", "gym") or not rest:
            likely = "" if ":" in env else f'; did you mean "{"gym" if "-v" in env else "dmc"}:{env}"?'
            raise ValueError(f'env must be "dmc:domain-task", "gym:id" or a callable, got {shown(env)}{likely}')
        return _PAPER_REPEATS.get(rest.partition("-")[0], 2) if scheme == "dmc" else 1
    if not callable(env):
        raise TypeError(f'env must be "dmc:domain-task", "gym:id" or a callable that makes one, got {shown(env)}')
    return 1


def _from_callable(
    make: "Callable[..., gymnasium.Env[Any, Any]]", camera: int | str | None, kwargs: dict[str, Any]
) -> "gymnasium.Env[Any, Any]":
    """Return what the user's constructor makes."""
    require("gymnasium", extra="gym")
    if camera is not None:
        raise ValueError(f"camera must be None for a callable, which chooses its own, got {camera!r}")
    return make(**kwargs)


def _from_suite(name: str, *, obs: str, **settings: Any) -> "gymnasium.Env[Any, Any]":
    """Return the suite's task `name`, with a GL backend chosen before dm_control is imported."""
    domain, dash, task = name.removeprefix("dmc:").partition("-")
    if not (domain and dash and task):
        raise ValueError(f'env must be "dmc:domain-task", such as "dmc:cartpole-balance", got {name!r}')
    require("gymnasium", "dm_control", "mujoco", extra="dmc")
    backend = select_backend(required=obs != "state" and settings["renderer"] == "gl")
    try:
        from planet_lib.envs.dm_control import DMControlEnv  # noqa: PLC0415 -- an extra, and after the choice of GL
    except ModuleNotFoundError:
        raise
    except (AttributeError, ImportError, RuntimeError) as error:
        raise RuntimeError(no_gl_message(f"MUJOCO_GL={backend} fails ({error})")) from error
    return DMControlEnv(domain, task, obs=obs, **settings)


def _from_gymnasium(name: str, **settings: Any) -> "gymnasium.Env[Any, Any]":
    """Return Gymnasium's environment `name`."""
    require("gymnasium", extra="gym")
    from planet_lib.envs.gym import make_gym  # noqa: PLC0415 -- gymnasium is an extra

    return make_gym(name.removeprefix("gym:"), **settings)


def _standardise(
    made: "gymnasium.Env[Any, Any]",
    *,
    obs: "Obs",
    image_size: tuple[int, int],
    channels: Channels,
    action_repeat: int,
    quality: Quality,
    renderer: RendererChoice,
) -> "StandardEnv":
    """Put an environment under the contract, or close it again and raise."""
    import gymnasium  # noqa: PLC0415 -- an extra

    from planet_lib.envs.gym import MujocoFrames  # noqa: PLC0415 -- gymnasium is an extra
    from planet_lib.envs.wrappers import StandardEnv  # noqa: PLC0415 -- gymnasium is an extra

    if not isinstance(made, gymnasium.Env):
        raise TypeError(f"env: the callable must return a gymnasium.Env, got {type(made).__name__}")
    try:
        if made.render_mode == "rgb_array" and hasattr(made.unwrapped, "mujoco_renderer"):
            made = MujocoFrames(made, quality=quality, renderer=renderer)
        name = _renderer_name(made, obs)
        if name == "own" and renderer != "auto":
            raise ValueError(f'renderer must be "auto" for an environment that draws itself, got {renderer!r}')
        return StandardEnv(
            made, obs=obs, image_size=image_size, channels=channels, action_repeat=action_repeat, renderer=name
        )
    except ValueError:
        made.close()
        raise


def _renderer_name(made: "gymnasium.Env[Any, Any]", obs: str) -> str:
    """Return what draws the pixels that `made` will show: "gl-tuned" and so on, "rays", "own", or "none"."""
    space = made.observation_space
    parts = space.values() if isinstance(space, Mapping) else [space] if obs == "pixels" else []
    if any(part.dtype == "uint8" and len(part.shape or ()) == 3 for part in parts):
        return "own"
    return "none" if obs == "state" else getattr(made, "renderer", "own")

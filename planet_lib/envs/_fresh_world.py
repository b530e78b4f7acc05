"""Gymnasium's BipedalWalker, whose episodes depend on those before it, made to begin each from nothing.

Source: gymnasium 1.4, `envs/box2d`. The physics engine Box2D keeps the order of contacts, and what it has learned of
them, from one episode to the next. LunarLander makes a new world at each reset; BipedalWalker goes on with the old one,
so that the same seed and actions give another episode in an environment that has been played before.
"""

from typing import Any

import gymnasium


class FreshWorld(gymnasium.Wrapper[Any, Any, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """An environment whose `world` of Box2D is a new one at each reset.

    Args:
        env: an environment whose `unwrapped` has a `world` that is made without arguments, and BipedalWalker's
            `_destroy`, which takes everything out of it.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self)
        gymnasium.Wrapper.__init__(self, env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode in a new world."""
        env: Any = self.unwrapped
        env._destroy()
        env.world = type(env.world)()
        return self.env.reset(seed=seed, options=options)

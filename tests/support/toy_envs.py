"""Environments of a few numbers, for tests of what wraps them."""

import contextlib

import gymnasium
import numpy as np

LENGTH = 60
STEPS = [0]  # of all environments here: an error in an action must come before any


class Toy(gymnasium.Env):
    """Three numbers and a picture of 8 x 8, two actions, sixty steps."""

    observation_space = gymnasium.spaces.Box(-1.0, 9.0, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float32)
    render_mode = "rgb_array"

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.count = self.np_random.uniform(-1, 1), 0
        return self.look(), {}

    def step(self, action):
        STEPS[0] += 1
        self.count += 1
        return self.look(), float(action[0]), False, self.count == LENGTH, {}

    def look(self):
        return np.array([self.place, self.count, 1.0], np.float32)

    def render(self):
        return np.full((8, 8, 3), 4 * self.count, np.uint8)


class Answers(Toy):
    """Answers each step with what it is told to."""

    answers = None

    def step(self, action):
        return (*self.answers, {})


class Choices(Toy):
    action_space = gymnasium.spaces.Discrete(3)

    def step(self, action):
        return super().step(np.array([action]))


def played(env, num_envs=None):
    """Three steps of an environment, or of several, and what it says of itself; closed in the end."""
    with contextlib.closing(env):
        frames = [env.reset(seed=3)[0]]
        space = env.action_space
        action = np.zeros(space.shape, space.dtype)
        if env.num_actions:
            action[..., 0] = 1
        frames += [env.step(action)[0] for _ in range(2)]
        assert all(env.observation_space.contains(frame) for frame in frames)
        return env.observation_space, env.action_space, env.action_repeat, env.renderer

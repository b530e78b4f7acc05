"""Environments by name or constructor, all of them with the same contract.

`make_env` is what most users need: it returns a Gymnasium environment whose actions live in [-1, 1], whose
observations are uint8 images [C, Y, X], float32 vectors [N] or dictionaries of such, and whose rewards are summed over
the action repeat.
The contract itself is `planet_lib.envs.wrappers.StandardEnv`.

This package stands alone: it imports nothing else of planet_lib but checks, and the rest of planet_lib never imports
it. It imports neither gymnasium nor dm_control before `make_env` is called, since both are extras.

Source: the environments of PlaNet, arXiv:1811.04551 and google-research/planet.
"""

from planet_lib.envs.registry import default_action_repeat, make_env
from planet_lib.envs.rendering import RendererWarning, select_backend
from planet_lib.envs.tasks import widest_action
from planet_lib.envs.vector import make_vector_env

__all__ = ["RendererWarning", "default_action_repeat", "make_env", "make_vector_env", "select_backend", "widest_action"]

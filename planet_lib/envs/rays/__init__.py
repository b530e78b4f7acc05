"""Pixels of MuJoCo scenes without any OpenGL: rays cast on the CPU, with numpy and mujoco alone.

Importing this package imports mujoco, after the choice of its GL backend, so that OpenGL stays possible in the same
process where there is any.
"""

from planet_lib.envs.rendering import select_backend

select_backend(required=False)

from planet_lib.envs.rays.renderer import RayRenderer  # noqa: E402 -- MuJoCo reads the choice when it is imported

__all__ = ["RayRenderer"]

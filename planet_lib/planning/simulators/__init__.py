"""True simulators as dynamics: plan with the world itself instead of a model of it.

`MuJoCoDynamics` runs candidates in MuJoCo's own threads, for dm_control's suite and any other MuJoCo model;
`EnvDynamics` steps any Python environment that can save and restore its state. Importing this package imports neither
mujoco nor gymnasium nor dm_control: they are extras, and loaded when first used.
"""

from planet_lib.planning.simulators.kinematics import Kinematics
from planet_lib.planning.simulators.moments import Moments
from planet_lib.planning.simulators.mujoco import MuJoCoDynamics, MuJoCoState
from planet_lib.planning.simulators.python_env import EnvDynamics, EnvState

__all__ = ["EnvDynamics", "EnvState", "Kinematics", "Moments", "MuJoCoDynamics", "MuJoCoState"]

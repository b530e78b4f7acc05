"""World-model components for PyTorch, and the complete PlaNet agent.

Every part can be used alone; `planet_lib.envs` (environments) and `planet_lib.training` (updates, checkpoints, presets)
are imported by name. Importing this package prints nothing and changes no setting.
"""

from planet_lib._errors import NonFiniteError
from planet_lib.data import SequenceReplay, dequantise, to_uint8
from planet_lib.models import (
    Cell,
    ContinueHead,
    ConvEncoder,
    Decoder,
    DictDecoder,
    DictEncoder,
    PatchDecoder,
    PatchEncoder,
    RewardHead,
    RNNCell,
    RSSMCell,
    SSMCell,
    VectorEncoder,
    WorldModel,
    imagine,
    load_kaixhin_checkpoint,
    observe,
)
from planet_lib.objectives import elbo_loss, latent_overshooting
from planet_lib.planning import (
    AgentNoise,
    AgentState,
    CEMPlanner,
    CompiledPlanner,
    DiscreteCEMPlanner,
    Dynamics,
    EnvDynamics,
    FunctionDynamics,
    ICEMPlanner,
    LatentDynamics,
    MPPIPlanner,
    MuJoCoDynamics,
    Planner,
    PlanningAgent,
    RandomShootingPlanner,
    StepDynamics,
)
from planet_lib.types import Batch, Episode, Losses, Plan, State

__version__ = "0.1.0.dev0"

__all__ = [
    "AgentNoise",
    "AgentState",
    "Batch",
    "CEMPlanner",
    "Cell",
    "CompiledPlanner",
    "ContinueHead",
    "ConvEncoder",
    "Decoder",
    "DictDecoder",
    "DictEncoder",
    "DiscreteCEMPlanner",
    "Dynamics",
    "EnvDynamics",
    "Episode",
    "FunctionDynamics",
    "ICEMPlanner",
    "LatentDynamics",
    "Losses",
    "MPPIPlanner",
    "MuJoCoDynamics",
    "NonFiniteError",
    "PatchDecoder",
    "PatchEncoder",
    "Plan",
    "Planner",
    "PlanningAgent",
    "RNNCell",
    "RSSMCell",
    "RandomShootingPlanner",
    "RewardHead",
    "SSMCell",
    "SequenceReplay",
    "State",
    "StepDynamics",
    "VectorEncoder",
    "WorldModel",
    "dequantise",
    "elbo_loss",
    "imagine",
    "latent_overshooting",
    "load_kaixhin_checkpoint",
    "observe",
    "to_uint8",
]

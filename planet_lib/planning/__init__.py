"""How actions are chosen: planners over any dynamics, the learned model as dynamics, and the agent that acts."""

from planet_lib.planning.agent import AgentNoise, AgentState, PlanningAgent
from planet_lib.planning.cem import CEMPlanner
from planet_lib.planning.compiled import CompiledPlanner
from planet_lib.planning.discrete import DiscreteCEMPlanner
from planet_lib.planning.dynamics import LatentDynamics
from planet_lib.planning.functions import FunctionDynamics, StepDynamics
from planet_lib.planning.icem import ICEMPlanner
from planet_lib.planning.mppi import MPPIPlanner
from planet_lib.planning.planner import Planner
from planet_lib.planning.protocol import Dynamics
from planet_lib.planning.shooting import RandomShootingPlanner
from planet_lib.planning.simulators import EnvDynamics, Moments, MuJoCoDynamics

__all__ = [
    "AgentNoise",
    "AgentState",
    "CEMPlanner",
    "CompiledPlanner",
    "DiscreteCEMPlanner",
    "Dynamics",
    "EnvDynamics",
    "FunctionDynamics",
    "ICEMPlanner",
    "LatentDynamics",
    "MPPIPlanner",
    "Moments",
    "MuJoCoDynamics",
    "Planner",
    "PlanningAgent",
    "RandomShootingPlanner",
    "StepDynamics",
]

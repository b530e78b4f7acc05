"""How actions are chosen: a planner over any dynamics, the learned model as dynamics, and the agent that acts."""

from planet_lib.planning.agent import AgentNoise, AgentState, PlanningAgent
from planet_lib.planning.cem import CEMPlanner, Dynamics
from planet_lib.planning.dynamics import LatentDynamics

__all__ = ["AgentNoise", "AgentState", "CEMPlanner", "Dynamics", "LatentDynamics", "PlanningAgent"]

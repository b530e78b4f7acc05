"""Experience: pixels as bytes and floats, episodes collected, kept in memory and in files, and sampled as windows."""

from planet_lib.data._checks import check_episode
from planet_lib.data.collect import Environment, Policy, VectorEnvironment, random_policy, run_episode, run_episodes
from planet_lib.data.episodes import load_episode, load_episodes, save_episode
from planet_lib.data.pixels import dequantise, prepare, to_uint8
from planet_lib.data.replay import SequenceReplay
from planet_lib.data.sources import minari_episodes, read_episodes, shapes_of

__all__ = [
    "Environment",
    "Policy",
    "SequenceReplay",
    "VectorEnvironment",
    "check_episode",
    "dequantise",
    "load_episode",
    "load_episodes",
    "minari_episodes",
    "prepare",
    "random_policy",
    "read_episodes",
    "run_episode",
    "run_episodes",
    "save_episode",
    "shapes_of",
    "to_uint8",
]

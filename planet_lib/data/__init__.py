"""Experience: pixels as bytes and floats, episodes collected, kept in memory and in files, and sampled as windows."""

from planet_lib.data.collect import Environment, Policy, random_policy, run_episode
from planet_lib.data.episodes import load_episode, load_episodes, save_episode
from planet_lib.data.pixels import dequantise, prepare, to_uint8
from planet_lib.data.replay import SequenceReplay

__all__ = [
    "Environment",
    "Policy",
    "SequenceReplay",
    "dequantise",
    "load_episode",
    "load_episodes",
    "prepare",
    "random_policy",
    "run_episode",
    "save_episode",
    "to_uint8",
]

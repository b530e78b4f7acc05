"""What the world model is: encoders, cells, decoders and heads, and the time loops over any cell."""

from planet_lib.models.cells import Cell, RNNCell, RSSMCell, SSMCell
from planet_lib.models.decoders import ContinueHead, Decoder, DictDecoder, PatchDecoder, RewardHead
from planet_lib.models.encoders import ConvEncoder, DictEncoder, PatchEncoder, VectorEncoder
from planet_lib.models.initialise import init_glorot_
from planet_lib.models.kaixhin import load_kaixhin_checkpoint
from planet_lib.models.rollout import imagine, observe, step
from planet_lib.models.world_model import WorldModel

__all__ = [
    "Cell",
    "ContinueHead",
    "ConvEncoder",
    "Decoder",
    "DictDecoder",
    "DictEncoder",
    "PatchDecoder",
    "PatchEncoder",
    "RNNCell",
    "RSSMCell",
    "RewardHead",
    "SSMCell",
    "VectorEncoder",
    "WorldModel",
    "imagine",
    "init_glorot_",
    "load_kaixhin_checkpoint",
    "observe",
    "step",
]

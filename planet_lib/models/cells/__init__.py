"""Cells: one time step of a latent dynamics model. They know nothing of pixels, heads, losses or planning.

A cell answers five questions (`Cell`), so that observing, imagining, the losses and the planner take any of the three
here, or one of your own. Everything random is an argument: `noise=None` draws from torch's global generator.
"""

from planet_lib.models.cells.protocol import Cell
from planet_lib.models.cells.rnn import RNNCell
from planet_lib.models.cells.rssm import RSSMCell
from planet_lib.models.cells.ssm import SSMCell

__all__ = ["Cell", "RNNCell", "RSSMCell", "SSMCell"]

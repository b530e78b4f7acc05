import pytest
import torch
from torch import nn

import planet_lib as pl

CELLS = {"rssm": pl.RSSMCell, "ssm": pl.SSMCell, "rnn": pl.RNNCell}


@pytest.fixture(params=sorted(CELLS))
def model(request) -> pl.WorldModel:
    """A small world model in float64, of vectors of 5, for each kind of cell; its weights matter."""
    return make_model(CELLS[request.param])


@pytest.fixture
def rssm() -> pl.WorldModel:
    return make_model(pl.RSSMCell)


def make_model(kind: type[nn.Module]) -> pl.WorldModel:
    torch.manual_seed(0)
    encoder = pl.VectorEncoder(5, embed_dim=7)
    cell = kind(action_dim=2, embed_dim=7, stoch_dim=4, hidden_dim=8)
    decoder = pl.Decoder(cell.feature_dim, (5,), hidden_dim=8)
    model = pl.WorldModel(encoder, cell, decoder, pl.RewardHead(cell.feature_dim, hidden_dim=8)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model

"""Agreement with an independent implementation of the planner; where the numbers come from: tests/golden/README.md."""

from pathlib import Path

import numpy as np
import torch

import planet_lib as pl
from planet_lib.models.kaixhin import rename_kaixhin

GOLDEN = Path(__file__).parents[1] / "golden"


def load(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def weights(part: str, prefix: str, arrays: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return rename_kaixhin(part, {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)})


def test_the_first_action_agrees_to_1e_6_in_float64():
    golden, arrays = load("cem"), load("rssm_observe")
    cell = pl.RSSMCell(action_dim=2, embed_dim=7, deter_dim=6, stoch_dim=4, hidden_dim=5).double()
    cell.load_state_dict(weights("transition_model", "cell.", arrays))
    head = pl.RewardHead(10, hidden_dim=5).double()
    head.load_state_dict(weights("reward_model", "reward.", arrays))
    encoder, decoder = pl.VectorEncoder(3, embed_dim=7), pl.Decoder(10, (3,))  # no part of the plan
    model = pl.WorldModel(encoder, cell, decoder, head)
    stoch = golden["stoch"]
    planner = pl.CEMPlanner(
        pl.LatentDynamics(model),
        -1.0,
        1.0,
        action_dim=2,
        horizon=int(golden["horizon"]),
        num_candidates=int(golden["candidates"]),
        num_elites=int(golden["elites"]),
        num_iterations=int(golden["iterations"]),
    )
    plan = planner(
        pl.State(deter=golden["deter"], stoch=stoch, mean=stoch, std=stoch),
        noise=golden["action_noise"],
        dynamics_noise=golden["state_noise"],
    )
    torch.testing.assert_close(plan.action, golden["first_action"], atol=1e-6, rtol=0)

"""Use an installed planet_lib as a stranger would: without the checkout, and with whatever extras there are.

    cd ELSEWHERE && python smoke.py        # a copy of this file, so that Python finds nothing beside it

It imports every public module (but for those whose extra is not installed, which it lists), runs the example of the
README that the package carries, makes an update and a plan, and saves and loads episodes and a checkpoint. Ends with
status 0 and one line, or with the exception.
"""

import importlib
import importlib.metadata
import pkgutil
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import planet_lib as pl
from planet_lib import training
from planet_lib.data import load_episodes, save_episode


def import_all() -> tuple[list[str], list[str]]:
    """Import every public module; return those imported, and the packages of extras that the others asked for."""
    imported, absent = [], []
    for module in pkgutil.walk_packages(pl.__path__, "planet_lib."):
        if "._" in module.name:
            continue
        try:
            importlib.import_module(module.name)
            imported.append(module.name)
        except ModuleNotFoundError as error:
            if (error.name or "planet_lib").startswith("planet_lib"):
                raise
            absent.append(f"{module.name} ({error.name})")
    return imported, absent


def readme_example() -> str:
    """The one Python example of the README, from the package's own metadata."""
    text = importlib.metadata.metadata("planet-worldmodel").get_payload()
    (example,) = re.findall(r"^```python\n(.*?)^```", str(text), re.MULTILINE | re.DOTALL)
    return str(example)


def episode(rows: int = 12) -> pl.Episode:
    """An episode in which the state goes where the action points, and the reward is the state's first entry."""
    action = np.random.default_rng(0).uniform(-1, 1, (rows, 1)).astype(np.float32)
    obs = np.cumsum(action, axis=0).repeat(3, axis=1)
    flags = np.zeros(rows, bool)
    return pl.Episode(
        obs=obs,
        action=action * (np.arange(rows) > 0)[:, None],
        reward=obs[:, 0] * (np.arange(rows) > 0),
        is_first=np.arange(rows) == 0,
        terminated=flags,
        truncated=np.arange(rows) == rows - 1,
    )


def use(folder: Path) -> None:
    """Save and load episodes, learn from them, plan, and save and load the model."""
    for index in range(3):
        save_episode(folder, episode(), index)
    replay = pl.SequenceReplay(100, obs_shape=(3,), action_dim=1, obs_dtype=np.float32, seed=0)
    replay.extend(load_episodes(folder))
    assert all(np.array_equal(loaded.obs, episode().obs) for loaded in replay.episodes())
    assert replay.num_episodes == 3

    encoder = pl.VectorEncoder(3, embed_dim=16)
    cell = pl.RSSMCell(action_dim=1, embed_dim=16, deter_dim=16, stoch_dim=4, hidden_dim=16)
    head = pl.RewardHead(cell.feature_dim)
    model = pl.WorldModel(encoder, cell, pl.Decoder(cell.feature_dim, (3,)), head)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    batch = replay.sample(4, 6)
    losses = [float(training.update(model, optimizer, batch).losses.total) for _ in range(10)]
    assert losses[-1] < losses[0], losses

    planner = pl.CEMPlanner(pl.LatentDynamics(model), -1.0, 1.0, action_dim=1, num_candidates=20, num_elites=4)
    plan = planner(cell.initial(2))
    assert bool((plan.valid & (plan.action.abs() <= 1).all(-1)).all())

    place = folder / "checkpoint.pt"
    training.save_checkpoint(place, {"model": model.state_dict()})
    loaded = training.load_checkpoint(place)["model"]
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def main() -> int:
    """Run all of it, and say what was run."""
    location = Path(pl.__file__).resolve()
    assert Path(sys.prefix).resolve() in location.parents, f"{location} is not the installed package"
    assert pl.__version__ == importlib.metadata.version("planet-worldmodel")
    assert (location.parent / "py.typed").exists()
    imported, absent = import_all()
    exec(compile(readme_example(), "README.md", "exec"), {"__name__": "readme"})
    with tempfile.TemporaryDirectory() as folder:
        use(Path(folder))
    without = f", without {', '.join(absent)}" if absent else ""
    sys.stdout.write(f"planet_lib {pl.__version__}: {len(imported)} modules imported{without}; all works\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The example of a user's own cell: short, and it learns what it should."""

import importlib.util
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from planet_lib.testing import ContractError, check_cell

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own_cell.py"


@pytest.fixture(scope="module")
def own_cell():
    spec = importlib.util.spec_from_file_location("own_cell", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "own_cell", module)  # torch.compile looks globals up there
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def cell(own_cell):
    return own_cell.CategoricalCell(action_dim=2, embed_dim=5)


@pytest.mark.slow
def test_it_learns_and_the_page_about_it_predicts_and_plans_with_it(capsys):
    page = (ROOT / "docs" / "your-own-cell.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names = runpy.run_path(str(EXAMPLE), run_name="__main__")
        exec(block, names)
    losses = [float(line.split()[3].strip(",")) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 9
    assert losses[-1] < 0.2 * losses[0]
    angle = names["angle"][-1] + torch.arange(1, 11).unsqueeze(-1) * torch.pi / 4
    truth = torch.stack([angle.cos(), angle.sin()], -1)
    error = (names["predicted"].detach() - truth).square().mean()
    assert error < 0.3 * 0.5  # 0.5 is the error of the mean observation
    here = names["batch"].obs[-1, :, 1]
    # A plan leads home if it goes against the side one is on; at angle 0, and opposite, both ways are as good.
    home = (names["plan"].action[:, 0] * here < 0)[here.abs() > 0.5]
    assert home.float().mean() > 0.9


def test_it_has_less_than_sixty_lines():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 60


def test_noise_chooses_the_classes_by_their_probabilities(own_cell, cell):
    logits = torch.tensor([0.1, 0.2, 0.05, 0.05, 0.1, 0.3, 0.1, 0.1]).log().repeat(8).expand(20_000, 64)
    noise = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0))
    drawn = cell.draw(logits, noise).sample.reshape(-1, 8)
    assert torch.equal(drawn.sum(-1).round(), torch.ones(160_000))
    torch.testing.assert_close(drawn.mean(0), logits[0, :8].exp(), atol=0.005, rtol=0.0)


def test_its_divergence_is_the_sum_of_eight_categorical_ones(own_cell, cell):
    one, other = (cell.draw(torch.randn(4, 64, generator=torch.Generator().manual_seed(seed)), None) for seed in (0, 1))
    p, q = (torch.distributions.Categorical(logits=state.log_probs.reshape(4, 8, 8)) for state in (one, other))
    expected = torch.distributions.kl_divergence(p, q).sum(-1)
    torch.testing.assert_close(cell.divergence(one, other), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_keeps_the_contract_in_either_precision_and_at_any_seed(cell, dtype):
    for seed in range(3):
        check_cell(cell.to(dtype), seed=seed, compile=False)


def test_the_contract_notices_when_gradients_do_not_pass_the_samples(own_cell):
    class HardCell(own_cell.CategoricalCell):
        def draw(self, logits, noise):
            state = super().draw(logits, noise)
            return state._replace(sample=state.sample.detach())

    with pytest.raises(ContractError, match="a gradient must reach embed at row 0 from the last row, got none"):
        check_cell(HardCell(2, 5), compile=False)

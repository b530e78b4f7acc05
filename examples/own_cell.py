"""A cell of your own, with categorical latents: proved by `check_cell`, then trained on walks around a ring."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

import planet_lib as pl
from planet_lib.testing import check_cell
from planet_lib.training import Objective, update


class Symbols(NamedTuple):
    sample: Tensor  # eight one-hot variables of eight classes, side by side [..., 64]
    log_probs: Tensor  # [..., 64]


class CategoricalCell(nn.Module):
    def __init__(self, action_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.action_dim, self.embed_dim, self.feature_dim, self.noise_dim = action_dim, embed_dim, 64, 8
        self.predict = nn.Sequential(nn.Linear(64 + action_dim, 64), nn.ELU(), nn.Linear(64, 64))
        self.correct = nn.Sequential(nn.Linear(64 + embed_dim, 64), nn.ELU(), nn.Linear(64, 64))

    def draw(self, logits: Tensor, noise: Tensor | None) -> Symbols:
        log_probs = logits.reshape(*logits.shape[:-1], 8, 8).log_softmax(-1)
        uniform = torch.special.ndtr(torch.randn_like(log_probs[..., 0]) if noise is None else noise)
        chosen = (log_probs.exp().cumsum(-1)[..., :-1] < uniform.unsqueeze(-1)).sum(-1)
        straight_through = log_probs.exp() - log_probs.exp().detach()  # zero, with the gradient of the probabilities
        return Symbols((nn.functional.one_hot(chosen, 8) + straight_through).flatten(-2), log_probs.flatten(-2))

    def initial(self, batch_size: int) -> Symbols:
        return Symbols(*next(self.parameters()).new_zeros(2, batch_size, 64))

    def prior(self, state: Symbols, action: Tensor, noise: Tensor | None = None) -> Symbols:
        return self.draw(self.predict(torch.cat([state.sample, action], -1)), noise)

    def posterior(self, prior: Symbols, embed: Tensor, noise: Tensor | None = None) -> Symbols:
        return self.draw(self.correct(torch.cat([prior.log_probs, embed], -1)), noise)

    def features(self, state: Symbols) -> Tensor:
        return state.sample

    def divergence(self, posterior: Symbols, prior: Symbols) -> Tensor:
        return (posterior.log_probs.exp() * (posterior.log_probs - prior.log_probs)).sum(-1)


if __name__ == "__main__":
    check_cell(cell := CategoricalCell(action_dim=1, embed_dim=32))  # or a ContractError says what to mend
    model = pl.WorldModel(pl.VectorEncoder(2, embed_dim=32), cell, pl.Decoder(64, (2,)), pl.RewardHead(64))
    optimizer, no = torch.optim.Adam(model.parameters(), lr=4e-3), torch.zeros(6, 64, dtype=torch.bool)
    objective = Objective(free_nats=0.0, obs_scale=30.0, reward_scale=10.0, kl_balance=0.8, overshooting_distance=2)
    for number in range(401):
        action = torch.randint(2, (6, 64, 1)) * 2.0 - 1.0  # one place to the left or to the right, of eight
        angle = (torch.randint(8, (64,)) + action.squeeze(-1).cumsum(0)) * torch.pi / 4
        batch = pl.Batch(torch.stack([angle.cos(), angle.sin()], -1), action, angle.cos(), no, no, mask=~no)
        losses = update(model, optimizer, batch, objective).losses
        if number % 50 == 0:
            print(f"update {number}: loss {losses.total:.2f}, KL {losses.raw['kl']:.2f} nats")

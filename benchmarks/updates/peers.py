"""The other world models that take turns, each used as its own project ships it."""

import importlib
import runpy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from planet_lib.models.kaixhin import rename_kaixhin
from updates.problem import ACTION_DIM, Jobs, Problem, differentiate

_PAPER = (3, 64, 64)  # the images that their convolutions are made for


class Kaixhin:
    """Kaixhin/PlaNet: its models and planner, TorchScript; its update, a script, in our words.

    Its networks are the paper's and take images of 64x64 alone, whatever the problem's are; batch, window and the sizes
    of the latent state are the problem's. T rows are T posteriors, so its own chunk size would be T + 1.
    """

    def __init__(self, problem: Problem, checkout: Path) -> None:
        self.problem, preset, device = problem, problem.preset, problem.device
        self.port = runpy.run_path(str(checkout / "models.py"))
        sizes = (preset.deter_dim, preset.stoch_dim)
        self.modules: dict[str, Any] = {
            "transition_model": self.port["TransitionModel"](*sizes, ACTION_DIM, preset.hidden_dim, 1024),
            "observation_model": self.port["ObservationModel"](False, None, *sizes, 1024),
            "reward_model": self.port["RewardModel"](*sizes, preset.hidden_dim),
            "encoder": self.port["Encoder"](False, None, 1024),
        }
        for module in self.modules.values():
            module.to(device)
        self.parameters = [value for module in self.modules.values() for value in module.parameters()]
        rows = (problem.length, problem.batch_size)
        self.obs = problem.obs if problem.shape == _PAPER else torch.rand(*rows, *_PAPER, device=device) - 0.5
        self.embed = torch.randn(*rows, 1024, device=device).requires_grad_()
        self.features = [torch.randn(rows[0] * rows[1], size, device=device).requires_grad_() for size in sizes]
        self.start = [torch.zeros(problem.batch_size, size, device=device) for size in sizes]
        self.going = torch.ones(*rows, 1, device=device)
        planner_class = runpy.run_path(str(checkout / "planner.py"))["MPCPlanner"]
        counts = (preset.horizon, preset.num_iterations, preset.num_candidates, preset.num_elites)
        models = (self.modules["transition_model"], self.modules["reward_model"])
        self.planner = planner_class(ACTION_DIM, *counts, *models, -1.0, 1.0)

    def transplant(self) -> None:
        """Give our model, of the same sizes, its weights."""
        model = self.problem.model
        parts: list[Any] = [model.cell, model.decoder, model.reward_head, model.encoder]
        for (name, module), part in zip(self.modules.items(), parts, strict=True):
            part.load_state_dict(rename_kaixhin(name, module.state_dict()))

    def gradients(self) -> dict[str, Tensor]:
        """Its gradients by the names of our model's parameters."""
        ours = dict(zip(self.modules, ("cell", "decoder", "reward_head", "encoder"), strict=True))
        found: dict[str, Tensor] = {}
        for part, module in self.modules.items():
            grads = {name: value.grad for name, value in module.named_parameters()}
            found |= {f"{ours[part]}.{name}": grad for name, grad in rename_kaixhin(part, grads).items()}
        return found

    def observe(self, embed: Tensor) -> list[Tensor]:
        """Deter, then sample, mean and deviation of the prior, then of the posterior."""
        deter, stoch = self.start
        found: list[Tensor] = self.modules["transition_model"](
            stoch, self.problem.batch.action, deter, embed, self.going
        )
        return found

    def loss(self, *, free_nats: float = 3.0) -> Tensor:
        """Its loss without overshooting, as its default settings have it."""
        bottle, batch = self.port["bottle"], self.problem.batch
        deter, _, mean, std, sample, seen_mean, seen_std = self.observe(bottle(self.modules["encoder"], (self.obs,)))
        images = bottle(self.modules["observation_model"], (deter, sample))
        rewards = bottle(self.modules["reward_model"], (deter, sample))
        nats = kl_divergence(Normal(seen_mean, seen_std), Normal(mean, std)).sum(2)
        total: Tensor = functional.mse_loss(images, self.obs, reduction="none").sum((2, 3, 4)).mean()
        total = total + functional.mse_loss(rewards, batch.reward, reduction="none").mean()
        return total + torch.max(nats, nats.new_full((1,), free_nats)).mean()

    def act(self) -> Tensor:
        """Filter one frame and plan from it; its environment hands out floats."""
        image, (deter, stoch) = self.obs[0, :1], (value[:1] for value in self.start)
        action = self.problem.batch.action[:1, :1]
        with torch.no_grad():
            embed = self.modules["encoder"](image).unsqueeze(0)
            found = self.modules["transition_model"](stoch, action, deter, embed, None)
            planned: Tensor = self.planner(found[0][0], found[4][0])
        return planned

    def jobs(self) -> Jobs:
        """All that is measured of it."""
        preset = self.problem.preset
        optimizer = torch.optim.Adam(self.parameters, lr=preset.learning_rate, eps=preset.adam_eps)
        named = {name: [*module.parameters()] for name, module in self.modules.items()}
        encoder, decoder = self.modules["encoder"], self.modules["observation_model"]
        return {
            "update": partial(take_step, optimizer, self.loss, self.parameters, preset.grad_clip),
            "encoder": partial(differentiate, lambda: encoder(self.obs.flatten(0, 1)), named["encoder"]),
            "decoder": partial(
                differentiate, lambda: decoder(*self.features), [*self.features, *named["observation_model"]]
            ),
            "observe": partial(
                differentiate, lambda: self.observe(self.embed), [self.embed, *named["transition_model"]]
            ),
            "acting": self.act,
        }


def take_step(optimizer: torch.optim.Optimizer, loss: Any, parameters: Sequence[Tensor], grad_clip: float) -> None:
    """Loss, backward, clip, Adam."""
    total = loss()
    optimizer.zero_grad()
    torch.autograd.backward(total)
    nn.utils.clip_grad_norm_(parameters, grad_clip)
    optimizer.step()


def torchrl(problem: Problem) -> Jobs:
    """TorchRL: the world model of its Dreamer with the problem's sizes, and its loss; [B, T] as it has it.

    Its networks differ a little: relu behind the decoder's first layer, ELUs in the recurrent model, a floor instead of
    a sum under the deviations. It takes images of 64x64 alone. Its planner is measured by benchmarks/planner.py.
    """
    modules, nets = importlib.import_module("torchrl.modules"), importlib.import_module("tensordict.nn")
    specs, objectives = importlib.import_module("torchrl.data"), importlib.import_module("torchrl.objectives")
    tensordict, preset, device = importlib.import_module("tensordict"), problem.preset, problem.device
    wrap, chain = nets.TensorDictModule, nets.TensorDictSequential
    sizes = {"hidden_dim": preset.hidden_dim, "state_dim": preset.stoch_dim, "rnn_hidden_dim": preset.deter_dim}
    encoder = modules.ObsEncoder(in_channels=3)
    decoder = modules.ObsDecoder(latent_dim=preset.stoch_dim + preset.deter_dim)
    actions = specs.Bounded(-1.0, 1.0, (ACTION_DIM,))
    prior = wrap(
        modules.RSSMPrior(actions, **sizes, action_dim=ACTION_DIM),
        in_keys=["state", "belief", "action"],
        out_keys=[("next", "prior_mean"), ("next", "prior_std"), "_", ("next", "belief")],
    )
    posterior = wrap(
        modules.RSSMPosterior(**sizes, obs_embed_dim=1024),
        in_keys=[("next", "belief"), ("next", "encoded_latents")],
        out_keys=[("next", "posterior_mean"), ("next", "posterior_std"), ("next", "state")],
    )
    rollout = modules.RSSMRollout(prior, posterior)
    latent = [("next", "state"), ("next", "belief")]
    depth = preset.reward_num_hidden
    reward = modules.MLP(
        preset.stoch_dim + preset.deter_dim,
        1,
        depth=depth,
        num_cells=preset.reward_hidden_dim,
        activation_class=nn.ReLU,
    )
    world = modules.WorldModelWrapper(
        chain(
            wrap(encoder, in_keys=[("next", "pixels")], out_keys=[("next", "encoded_latents")]),
            rollout,
            wrap(decoder, in_keys=latent, out_keys=[("next", "reco_pixels")]),
        ),
        wrap(reward, in_keys=latent, out_keys=[("next", "reward")]),
    ).to(device)
    objective = objectives.DreamerModelLoss(world)
    rows = (problem.batch_size, problem.length)
    obs = problem.obs.transpose(0, 1).contiguous() if problem.shape == _PAPER else torch.rand(*rows, *_PAPER) - 0.5
    begin = {"state": torch.zeros(*rows, preset.stoch_dim), "belief": torch.zeros(*rows, preset.deter_dim)}
    begin["action"] = problem.batch.action.transpose(0, 1).contiguous()
    given = {**begin, "next": {"pixels": obs, "reward": problem.batch.reward.t().unsqueeze(2).contiguous()}}
    batch = tensordict.TensorDict(given, rows).to(device)
    embed = torch.randn(*rows, 1024, device=device).requires_grad_()
    features = [torch.randn(*rows, preset.stoch_dim), torch.randn(*rows, preset.deter_dim)]
    features = [each.to(device).requires_grad_() for each in features]

    def loss() -> Tensor:
        found, _ = objective(batch)
        total: Tensor = found["loss_model_kl"] + found["loss_model_reco"] + found["loss_model_reward"]
        return total.sum()

    def observed() -> list[Tensor]:
        found = rollout(tensordict.TensorDict({**begin, "next": {"encoded_latents": embed}}, rows).to(device))
        names = ("belief", "prior_mean", "prior_std", "posterior_mean", "posterior_std", "state")
        return [found["next", name] for name in names]

    parameters = [*world.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=preset.learning_rate, eps=preset.adam_eps)
    pixels = batch["next", "pixels"]
    return {
        "update": partial(take_step, optimizer, loss, parameters, preset.grad_clip),
        "encoder": partial(differentiate, lambda: encoder(pixels), [*encoder.parameters()]),
        "decoder": partial(differentiate, lambda: decoder(*features), [*features, *decoder.parameters()]),
        "observe": partial(differentiate, observed, [embed, *rollout.parameters()]),
    }

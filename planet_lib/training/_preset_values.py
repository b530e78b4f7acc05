"""The presets as tables: every value beside the source it comes from. `presets` makes `Preset`s of them.

A source begins with one of three words:

- `paper:` arXiv:1811.04551, version 5, and where in it;
- `code:` a file of google-research/planet below `planet/`: for `camera_ready` at its last commit (c04226b), for `v1`
  at its first (b33f0d5); a value that both commits share is written once, for both;
- `ours:` neither says it, and why we do so.

Loss weights are translated: the observation and reward terms here are half squared errors, as the log-densities of
the paper and of the last commit are. The first commit left the half out, so its weights count twice here.
"""

from typing import TypeAlias

Value: TypeAlias = int | float | str
Table: TypeAlias = dict[str, tuple[Value, str]]

_HEAD_OFF = "ours: no such head; the paper's tasks never end early (get_preset turns it on where tasks can)"
_PLAIN_KL = "ours: the plain KL, as in the paper's equation 3; balancing is younger than PlaNet"
_NO_OBS_OVERSHOOTING = "paper: section 4, figure 3: only latent overshooting; decoding every prediction costs too much"

PAPER: Table = {
    "num_episodes": (1000, "paper: table 1, figure 4"),
    "seed_episodes": (5, "paper: appendix A, S"),
    "updates_per_episode": (100, "paper: appendix A, C"),
    "eval_every": (25, "ours: the paper doesn't say; 40 evaluations in 1000 episodes"),
    "eval_episodes": (10, "paper: table 1, 10 trajectories"),
    "replay_capacity": (1_000_000, "ours: the paper keeps everything; its 1005 episodes are at most 503,505 rows"),
    "image_size": (64, "paper: section 5; the 5 bits of appendix A are the default of planet_lib.data.prepare"),
    "supersample": (1, "code: control/wrappers.py, drawn at its size"),
    "channels": ("all", "code: control/wrappers.py, red, green and blue"),
    "camera": ("", "code: scripts/tasks.py, camera 0"),
    "action_repeat": (0, "paper: appendix A, R, one for each task"),
    "batch_size": (50, "paper: appendix A, B"),
    "window": (50, "paper: appendix A, L"),
    "network": ("conv", "paper: appendix A, the networks of Ha & Schmidhuber (2018)"),
    "depth": (32, "code: networks/conv_ha.py, 32 to 256 channels"),
    "embed_dim": (0, "code: networks/conv_ha.py, the last feature map flattened: 1024"),
    "deter_dim": (200, "paper: appendix A"),
    "stoch_dim": (30, "paper: appendix A"),
    "hidden_dim": (200, "paper: appendix A"),
    "num_layers": (1, "code: models/rssm.py; with the output layer these are the two of the paper's appendix A"),
    "activation": ("relu", "paper: appendix A; appendix E: elu helps SSM and RNN, not the RSSM"),
    "min_std": (0.1, "code: scripts/configs.py, min_stddev; the paper doesn't say"),
    "min_std_mode": ("add", "code: models/rssm.py, added to the softplus"),
    "gru": ("reset_after", "ours: PyTorch's own; Cho et al. (2014), whom appendix A cites, reset before the product"),
    "init": ("torch", "ours: the paper doesn't say; PyTorch's own"),
    "reward_hidden_dim": (200, "paper: appendix A"),
    "reward_num_hidden": (2, "paper: appendix A, two layers of 200, and an output layer"),
    "free_nats": (3.0, "paper: appendix A"),
    "obs_scale": (1.0, "paper: section 3, a Gaussian of unit variance"),
    "reward_scale": (1.0, "paper: section 3, a Gaussian of unit variance"),
    "kl_scale": (1.0, "paper: appendix A, unscaled"),
    "kl_balance": (0.0, _PLAIN_KL),
    "global_kl_scale": (0.0, "paper: appendix A, found to be unnecessary"),
    "continue_scale": (0.0, _HEAD_OFF),
    "overshooting_distance": (1, "paper: appendices A and D, the RSSM is better without"),
    "overshooting_scale": (1.0, "ours: of no effect at distance 1"),
    "overshooting_reward_scale": (0.0, "paper: equation 7, overshooting of the latent state alone"),
    "overshooting_obs_scale": (0.0, _NO_OBS_OVERSHOOTING),
    "overshooting_chunk": (0, "ours: all columns at once, which fits where distance is 1"),
    "learning_rate": (1e-3, "paper: appendix A"),
    "warmup_updates": (0, "ours: the paper names no schedule"),
    "adam_eps": (1e-4, "paper: appendix A, taken as PyTorch's epsilon"),
    "grad_clip": (1000.0, "paper: appendix A"),
    "precision": ("float32", "ours: the paper doesn't say; what both codes compute in"),
    "planner": ("cem", "paper: section 3 and algorithm 2"),
    "warm_start": (0, "paper: section 3, the plan starts anew at each step to avoid local optima"),
    "horizon": (12, "paper: appendix A, H"),
    "num_candidates": (1000, "paper: appendix A, J"),
    "num_elites": (100, "paper: appendix A, K"),
    "deviation": ("mad", "paper: algorithm 2, line 10"),
    "start": ("sampled", "paper: algorithm 2, line 5, each candidate starts from its own sample of the posterior"),
    "transition": ("drawn", "paper: algorithm 2, line 7, a sample at each step"),
    "discount": (1.0, "paper: algorithm 2, line 8, a plain sum"),
    "num_iterations": (10, "paper: appendix A, I"),
    "exploration_std": (0.3, "paper: appendix A, Normal(0, 0.3); the code takes 0.3 as the deviation, too"),
}

CAMERA_READY: Table = {
    **PAPER,
    "num_episodes": (1000, "paper: table 1; scripts/configs.py would go on to 1,000,000 updates, 10,000 episodes"),
    "seed_episodes": (
        5,
        "code: scripts/configs.py, num_seed_episodes; 5 more there, for test batches, are not collected",
    ),
    "updates_per_episode": (100, "code: scripts/configs.py, collect_every: 5000 windows in batches of 50"),
    "eval_every": (25, "ours: as in the preset paper; the code runs one test episode every 1000 updates"),
    "eval_episodes": (10, "ours: as in the preset paper; the code runs one test episode every 1000 updates"),
    "replay_capacity": (1_000_000, "ours: the code keeps everything; 1005 episodes are at most 503,505 rows"),
    "image_size": (64, "code: scripts/tasks.py; image_bits, 5, are the default of planet_lib.data.prepare"),
    "supersample": (1, "code: control/wrappers.py, drawn at its size"),
    "channels": ("all", "code: control/wrappers.py, red, green and blue"),
    "action_repeat": (0, "code: scripts/tasks.py, one for each task"),
    "batch_size": (50, "code: scripts/configs.py, batch_shape"),
    "window": (
        50,
        "code: scripts/configs.py, batch_shape; its loader, recent (tools/numpy_episodes.py), draws half of the "
        "episodes from the newest: not copied, all count alike here",
    ),
    "network": ("conv", "code: networks/conv_ha.py"),
    "deter_dim": (200, "code: scripts/configs.py, model_size"),
    "stoch_dim": (30, "code: scripts/configs.py, state_size"),
    "hidden_dim": (200, "code: scripts/configs.py, model_size"),
    "num_layers": (1, "code: scripts/configs.py, model_layers"),
    "activation": ("relu", "code: scripts/configs.py, activation"),
    "min_std": (0.1, "code: scripts/configs.py, min_stddev"),
    "gru": ("reset_before", "code: models/rssm.py, GRUBlockCell resets before the product"),
    "init": ("glorot", "code: models/rssm.py, TensorFlow's defaults: Glorot kernels, zero biases, GRU gates at 1"),
    "reward_hidden_dim": (300, "code: scripts/configs.py, num_units"),
    "reward_num_hidden": (3, "code: scripts/configs.py, num_layers of the heads"),
    "free_nats": (3.0, "code: scripts/configs.py; training/utility.py takes max(0, KL - 3): 3 less, the same gradient"),
    "obs_scale": (
        1.0,
        "code: scripts/configs.py, image_loss_scale, of a log-density with the half (networks/conv_ha.py)",
    ),
    "reward_scale": (
        10.0,
        "code: scripts/configs.py, reward_loss_scale, of a log-density with the half (networks/basic.py)",
    ),
    "kl_scale": (1.0, "code: scripts/configs.py, divergence_scale"),
    "kl_balance": (0.0, "code: training/utility.py, the plain KL"),
    "global_kl_scale": (0.0, "code: scripts/configs.py, global_div_scale"),
    "overshooting_distance": (1, "code: scripts/configs.py, overshooting_distance 0: none"),
    "overshooting_scale": (1.0, "ours: of no effect at distance 1, where the code says 0"),
    "overshooting_reward_scale": (0.0, "code: training/utility.py, the divergence alone"),
    "overshooting_obs_scale": (0.0, "code: training/utility.py, the divergence alone"),
    "learning_rate": (1e-3, "code: scripts/configs.py, main_learning_rate"),
    "warmup_updates": (0, "code: scripts/configs.py, the schedule is commented out"),
    "adam_eps": (
        1e-4,
        "code: scripts/configs.py; TensorFlow adds it before the bias correction: worth 1 / sqrt(1 - 0.999^t) times as "
        "much at update t in PyTorch's form, 32 times at the first and 1.03 at the 3000th",
    ),
    "grad_clip": (1000.0, "code: scripts/configs.py, main_gradient_clipping"),
    "horizon": (12, "code: scripts/configs.py, planner_horizon; rewards are summed plainly (scripts/objectives.py)"),
    "num_candidates": (1000, "code: scripts/configs.py, planner_amount"),
    "planner": ("cem", "code: scripts/configs.py, planner"),
    "warm_start": (0, "code: control/planning.py, mean and deviation begin at 0 and 1"),
    "num_elites": (100, "code: scripts/configs.py, planner_topk"),
    "deviation": ("std", "code: control/planning.py, the root of tf.nn.moments"),
    "start": ("shared", "code: control/planning.py, the sample in the state is repeated"),
    "transition": ("drawn", "code: control/planning.py, the cell's sample at each step"),
    "discount": (1.0, "code: scripts/objectives.py, a plain sum"),
    "num_iterations": (10, "code: scripts/configs.py, planner_iterations"),
    "exploration_std": (0.3, "code: scripts/configs.py, train_action_noise, a deviation (control/mpc_agent.py)"),
}

V1: Table = {
    **CAMERA_READY,
    "num_episodes": (1000, "paper: table 1; scripts/configs.py would go on to 400,000 updates, 4000 episodes"),
    "eval_every": (25, "ours: as in the preset paper"),
    "eval_episodes": (10, "ours: as in the preset paper"),
    "image_size": (64, "code: control/wrappers.py, render_size"),
    "supersample": (1, "code: control/wrappers.py, drawn at its size"),
    "channels": ("all", "code: control/wrappers.py, red, green and blue"),
    "window": (50, "code: scripts/configs.py, batch_shape"),
    "camera": ("", "code: control/wrappers.py, camera 0"),
    "action_repeat": (
        0,
        "ours: the paper's; scripts/tasks.py differs in ball_in_cup, 6 instead of 4, and has no reacher",
    ),
    "num_layers": (
        1,
        "code: models/rssm.py; there the prior reads the layer before the GRU and never the GRU: a bug, not copied",
    ),
    "activation": ("relu", "code: models/rssm.py"),
    "reward_hidden_dim": (100, "code: networks/basic.py"),
    "reward_num_hidden": (2, "code: networks/basic.py"),
    "free_nats": (2.0, "code: scripts/configs.py, free_nats; max(2, KL) in training/utility.py"),
    "obs_scale": (
        2.0,
        "code: scripts/configs.py, image_loss_scale 1, of the squared error without the half "
        "(tools/mse_distribution.py). There, heads for positions and velocities, meant as diagnostics, trained the "
        "model too: not copied",
    ),
    "reward_scale": (
        20.0,
        "code: scripts/configs.py, reward_scale 10 of the squared error without the half (tools/mse_distribution.py)",
    ),
    "global_kl_scale": (0.1, "code: scripts/configs.py, global_divergence_scale"),
    "overshooting_distance": (
        49,
        "code: scripts/configs.py, overshooting, the window less 1; its rows 1 to 49 are our distances 2 to 50, whose "
        "last starts from the zero state alone and is left out here",
    ),
    "overshooting_scale": (1.0, "code: scripts/configs.py, divergence_scale"),
    "overshooting_reward_scale": (
        200.0,
        "code: scripts/configs.py, overshooting_reward_scale 100 without the half. There it reads stopped posteriors, "
        "which trains the reward head alone: a bug, not copied, here it reads the open-loop states. There, too, the "
        "mean counts masked cells, so that long distances weigh less",
    ),
    "overshooting_obs_scale": (0.0, "code: scripts/configs.py, no image among the overshooting losses"),
    "overshooting_chunk": (0, "ours: all at once takes about 0.6 GB at this size, and half the time of chunks of 10"),
    "learning_rate": (1e-3, "code: scripts/configs.py, learning_rate"),
    "warmup_updates": (
        200,
        "code: scripts/configs.py, linear over 10,000 windows in batches of 50; its first update has a rate of 0, ours "
        "1/200 of the full one",
    ),
    "grad_clip": (1000.0, "code: scripts/configs.py, gradient_clipping"),
    "horizon": (
        12,
        "code: scripts/configs.py, collect_horizons",
    ),
    "num_candidates": (1000, "code: scripts/configs.py, cem_amount"),
    "num_elites": (100, "code: scripts/configs.py, cem_topk"),
    "discount": (0.99, "code: control/planning.py, discount of cross_entropy_method"),
    "num_iterations": (10, "code: scripts/configs.py, cem_iterations"),
    "exploration_std": (0.3, "code: scripts/configs.py, exploration_noises, a deviation (control/mpc_agent.py)"),
}

_SMALL = "ours: many small updates get further in an hour on two cores than few large ones (docs/results/cpu-preset.md)"
_NARROW = "ours: half the paper's width, for faster plans; as good in trials (docs/results/cpu-preset.md)"
_TRIED = "ours: chosen by short trials (docs/results/cpu-preset.md)"
_PLANS_CHEAPLY = "ours: a plan in a twentieth of the paper's work"
_THIN = (
    "ours: a thin pole is worth few nats of image error; at the paper's scales the posterior leaves it out, and a "
    "divergence below the free nats would not train the prior at all"
)

CPU: Table = {
    **PAPER,
    "num_episodes": (300, "ours: more than cartpole's tasks need from pixels (docs/results/cpu-preset.md)"),
    "eval_every": (20, "ours: an evaluation takes as long as three episodes with their updates"),
    "eval_episodes": (5, "ours: half of the paper's, since planning is what takes the time"),
    "replay_capacity": (200_000, "ours: 0.2 GB of frames; a run at action repeat 2 has 152,805 rows"),
    "image_size": (32, "ours: a quarter of the pixels' work; supersampled, a thin pole keeps its angle"),
    "supersample": (2, "ours: drawn at 32x32, thin bodies break up"),
    "channels": (
        "red",
        "ours: bodies are orange and floors blue in the suite, so bodies have more of the image error in red, and a "
        "frame a third of the numbers",
    ),
    "camera": ("", "ours: the camera that get_preset knows for the body, else the first"),
    "batch_size": (12, _SMALL),
    "window": (30, _SMALL),
    "network": ("patch", "ours: matrix products alone, which a CPU is fast at"),
    "depth": (48, "ours: numbers per patch"),
    "embed_dim": (256, "ours: a quarter of the paper's, for speed"),
    "deter_dim": (100, _NARROW),
    "stoch_dim": (20, _NARROW),
    "hidden_dim": (100, _NARROW),
    "reward_hidden_dim": (100, _NARROW),
    "free_nats": (0.3, _THIN),
    "obs_scale": (20.0, _THIN),
    "reward_scale": (100.0, "ours: five times the observation's, as the planner reads nothing else"),
    "learning_rate": (2e-3, _TRIED),
    "adam_eps": (1e-7, _TRIED),
    "grad_clip": (100.0, _TRIED),
    "deviation": ("std", "ours: as in camera_ready; with few elites the other narrows too fast"),
    "start": ("shared", "ours: transitions by the mean start from the mean"),
    "transition": (
        "mean",
        "ours: no better than drawn ones (docs/results/planners-on-a-model.md), but nothing is left to luck",
    ),
    "warm_start": (1, "ours: better from pixels, mixed from vectors (docs/results/planners-on-a-model.md)"),
    "horizon": (16, "ours: the published runs have it; 12 may be better (docs/results/planners-on-a-model.md)"),
    "num_candidates": (80, _PLANS_CHEAPLY),
    "num_elites": (10, _PLANS_CHEAPLY),
    "num_iterations": (4, _PLANS_CHEAPLY),
}

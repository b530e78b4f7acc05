"""What a world model is trained for: pure functions of a model, a batch and latent states."""

from planet_lib.objectives.elbo import elbo_loss
from planet_lib.objectives.overshooting import latent_overshooting

__all__ = ["elbo_loss", "latent_overshooting"]

"""The frozen autoencoder as the diffusion stages use it."""

import dataclasses

import jax

from stablesr_jax.config import AutoencoderConfig, ComputeConfig
from stablesr_jax.models.kl_autoencoder import Autoencoder, sample_posterior
from stablesr_jax.models.parameters import Params, apply
from stablesr_jax.pixels import to_unit
from stablesr_jax.training.randomness import normal


class Latents:
  """Images (B, H, W, 3) in [-1, 1] to the diffusion's latents (B, h, w, 4) and back, CFW left out."""

  def __init__(self, config: AutoencoderConfig, compute: ComputeConfig):
    self.config = dataclasses.replace(config, cfw=False)
    self._module = Autoencoder(self.config, compute)

  def encode(self, params: Params, image: jax.Array, keys: jax.Array) -> jax.Array:
    """A sample of the posterior, scaled; a constant to differentiation."""
    moments, _ = apply(self._module, params, image, method="encode")
    noise = normal(keys, (*moments.shape[1:3], self.config.latent_channels))
    return jax.lax.stop_gradient(self.config.scale_factor * sample_posterior(moments, noise))

  def decode(self, params: Params, latent: jax.Array) -> jax.Array:
    """Pictures in [0, 1]."""
    return to_unit(apply(self._module, params, latent / self.config.scale_factor, method="decode"))

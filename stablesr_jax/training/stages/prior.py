"""Training a plain latent diffusion model, the prior."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from stablesr_jax.checkpoints.store import NULL_PROMPT
from stablesr_jax.diffusion import samplers
from stablesr_jax.diffusion.objective import prediction_target
from stablesr_jax.diffusion.schedule import add_noise
from stablesr_jax.errors import UserError
from stablesr_jax.models import components
from stablesr_jax.models.parameters import Params, apply, is_modulation
from stablesr_jax.pixels import to_unit
from stablesr_jax.training.config import TrainConfig
from stablesr_jax.training.logged import Means, loss_by_band
from stablesr_jax.training.randomness import keys_for, normal
from stablesr_jax.training.stage import Batch, Export
from stablesr_jax.training.stages.latents import Latents
from stablesr_jax.training.starting_model import load, load_latents, null_prompt, open_model

_POSTERIOR, _NOISE, _TIME = 1, 2, 3


class PriorTrainer:
  """Trains "unet", without what steers it; the autoencoder is frozen and there is no prompt but the null prompt."""

  def __init__(self, config: TrainConfig, mesh: jax.sharding.Mesh):
    if config.model.unet is None:
      raise UserError("model.unet: None, but it is what this stage trains")
    self._config, self._mesh = config, mesh
    self._manifest = open_model(config, ("autoencoder",))
    source = self._manifest.architecture
    assert source.autoencoder is not None
    self._unet_config = dataclasses.replace(config.model.unet, conditioning="none")
    self._architecture = dataclasses.replace(
      source, unet=self._unet_config, time_aware_encoder=None, diffusion=config.model.diffusion
    )
    self._unet = components.modules(self._architecture, config.compute)["unet"]
    self._latents = Latents(source.autoencoder, config.compute)

  @functools.cached_property
  def frozen(self) -> Params:
    return load_latents(self._config, self._manifest, self._unet_config.context_dim, self._mesh)

  def init(self, key: jax.Array) -> Params:
    return {"unet": components.init(self._architecture, "unet", key)}

  def pretrained(self) -> Params:
    if self._manifest.architecture.unet is None:
      return {}
    return load(self._config, self._manifest, ("unet",), self._mesh, lambda path: not is_modulation(path))

  def prepare(self, batch: Batch, keys: jax.Array) -> Batch:
    return {"hr": batch["hr"].astype(jnp.float32) / 127.5 - 1}

  def loss(
    self, params: Params, frozen: Params, batch: Batch, keys: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, Means]:
    diffusion = self._config.model.diffusion
    latent = self._latents.encode(frozen["autoencoder"], batch["hr"], keys_for(keys, _POSTERIOR))
    t = jax.vmap(lambda key: jax.random.randint(key, (), 0, diffusion.steps))(keys_for(keys, _TIME))
    noise = normal(keys_for(keys, _NOISE), latent.shape[1:])
    x, target = add_noise(diffusion, latent, noise, t), prediction_target(diffusion, latent, noise, t)
    losses = jnp.mean(jnp.square(self._predict(params, frozen, x, t) - target), axis=(1, 2, 3))
    return losses.mean(), {
      "loss": (losses.sum(), jnp.float32(len(losses))),
      **loss_by_band(diffusion, losses, t),
    }

  def validate(self, params: Params, frozen: Params, batch: Batch, keys: jax.Array) -> dict[str, jax.Array]:
    """Pictures from nothing, "samples"; there is no image to compare them with."""
    assert self._config.validation is not None
    f = self._latents.config.downsampling
    shape = (*(side // f for side in batch["hr"].shape[1:3]), self._latents.config.latent_channels)
    noise = lambda number: normal(keys_for(keys, number), shape)
    predict = lambda x, t: self._predict(params, frozen, x, jnp.broadcast_to(t, len(x)))
    steps = samplers.plan(self._config.model.diffusion, self._config.validation.sampling)
    latent = samplers.run(predict, noise(_NOISE), steps, lambda i: noise(10 + i))
    return {"samples": self._latents.decode(frozen["autoencoder"], latent), "hr": to_unit(batch["hr"])}

  def export(self, params: Params, batch: Callable[[], Batch]) -> Export:
    written = {"unet": params["unet"]}
    if self._manifest.architecture.unet is None:
      length, width = self._architecture.context_length, self._unet_config.context_dim
      written[NULL_PROMPT] = {NULL_PROMPT: null_prompt(length, width, self._mesh)}
    return Export(self._architecture, written)

  def _predict(self, params: Params, frozen: Params, x: jax.Array, t: jax.Array) -> jax.Array:
    return apply(self._unet, params["unet"], x, t, frozen[NULL_PROMPT][None])

"""Training the KL autoencoder."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from stablesr_jax.checkpoints.store import load_params
from stablesr_jax.config import ModelConfig
from stablesr_jax.errors import UserError
from stablesr_jax.models import components
from stablesr_jax.models.kl_autoencoder import posterior
from stablesr_jax.models.parameters import Params, apply, is_cfw, split
from stablesr_jax.parallel import replicated
from stablesr_jax.pixels import to_unit
from stablesr_jax.training.config import AutoencoderStage, TrainConfig
from stablesr_jax.training.logged import Means
from stablesr_jax.training.randomness import keys_for, normal
from stablesr_jax.training.stage import Batch, Export
from stablesr_jax.training.stages.reconstruction import ReconstructionLoss
from stablesr_jax.training.starting_model import open_model

_POSTERIOR = 1
_SPREADS = (1e-6, 1e4)  # of latents that can be brought to variance 1


class AutoencoderTrainer:
  """Trains "autoencoder" (without CFW) and, for its loss, "discriminator"."""

  def __init__(self, config: TrainConfig, mesh: jax.sharding.Mesh):
    assert isinstance(config.stage, AutoencoderStage)
    if config.model.autoencoder is None:
      raise UserError("model.autoencoder: None, but it is what this stage trains")
    self._config, self._stage, self._mesh = config, config.stage, mesh
    self._architecture = ModelConfig(
      unet=None,
      time_aware_encoder=None,
      autoencoder=dataclasses.replace(config.model.autoencoder, cfw=False),
      text_encoder=None,
      diffusion=config.model.diffusion,
    )
    self._manifest = open_model(config, ("autoencoder",)) if config.model_path else None
    self._module = components.modules(self._architecture, config.compute)["autoencoder"]
    self._reconstruction = ReconstructionLoss(config.stage, config.compute, mesh)
    self.frozen = self._reconstruction.frozen

  def init(self, key: jax.Array) -> Params:
    keys = jax.random.split(key)
    params = components.init(self._architecture, "autoencoder", keys[0])
    return {"autoencoder": params} | self._reconstruction.init(keys[1], self._config.data.crop_size)

  def pretrained(self) -> Params:
    if self._manifest is None:
      return {}
    params = load_params(str(self._config.model_path), self._manifest, ["autoencoder"], sharding=replicated(self._mesh))
    return {"autoencoder": split(params["autoencoder"], is_cfw)[1]}

  def prepare(self, batch: Batch, keys: jax.Array) -> Batch:
    return {"hr": batch["hr"].astype(jnp.float32) / 127.5 - 1}

  def loss(
    self, params: Params, frozen: Params, batch: Batch, keys: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, Means]:
    image, count = batch["hr"], jnp.float32(len(keys))
    moments = self._encode(params, image)
    mean, std = posterior(moments)
    z = mean + std * normal(keys_for(keys, _POSTERIOR), mean.shape[1:])
    loss, logged = self._reconstruction(params, frozen, self._decode(params, z), image, step)
    divergence = 0.5 * jnp.mean(mean**2 + std**2 - 1 - 2 * jnp.log(std))
    loss += self._stage.kl_weight * divergence
    return loss, {"loss": (loss * count, count), "kl": (divergence * count, count), **logged}

  def validate(self, params: Params, frozen: Params, batch: Batch, keys: jax.Array) -> dict[str, jax.Array]:
    mean, _ = posterior(self._encode(params, batch["hr"]))
    return {"ours": to_unit(self._decode(params, mean)), "hr": to_unit(batch["hr"])}

  def export(self, params: Params, batch: Callable[[], Batch]) -> Export:
    """The factor that brings latents to variance 1 is measured on the batch."""

    @jax.jit
    def spread(params: Params, image: jax.Array) -> jax.Array:
      mean, std = posterior(self._encode(params, image))
      return jnp.sqrt(jnp.mean(jnp.square(mean - jnp.mean(mean)) + std**2))

    measured = float(spread(params, batch()["hr"]))
    if not _SPREADS[0] < measured < _SPREADS[1]:
      raise UserError(
        f"training diverged: the latents' standard deviation is {measured:g}; "
        "lower optimizer.learning-rate, or set optimizer.clip-norm"
      )
    scale_factor = round(1 / measured, 5)
    assert self._architecture.autoencoder is not None
    autoencoder = dataclasses.replace(self._architecture.autoencoder, scale_factor=scale_factor)
    architecture = dataclasses.replace(self._architecture, autoencoder=autoencoder)
    return Export(architecture, {"autoencoder": params["autoencoder"]})

  def _encode(self, params: Params, image: jax.Array) -> jax.Array:
    return apply(self._module, params["autoencoder"], image, method="encode")[0]

  def _decode(self, params: Params, z: jax.Array) -> jax.Array:
    return apply(self._module, params["autoencoder"], z, method="decode")

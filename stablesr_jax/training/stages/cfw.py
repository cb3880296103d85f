"""Training controllable feature wrapping (3.2), all else frozen."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from stablesr_jax.errors import UserError
from stablesr_jax.models import components
from stablesr_jax.models.parameters import Params, apply, is_cfw, merge, split
from stablesr_jax.pixels import enlarge, to_unit
from stablesr_jax.training.config import CfwStage, TrainConfig
from stablesr_jax.training.logged import Means
from stablesr_jax.training.stage import Batch, Export
from stablesr_jax.training.stages.reconstruction import ReconstructionLoss
from stablesr_jax.training.starting_model import load, open_model


class CfwTrainer:
  """Trains of "autoencoder" the CFW blocks and, for their loss, "discriminator"."""

  def __init__(self, config: TrainConfig, mesh: jax.sharding.Mesh):
    assert isinstance(config.stage, CfwStage)
    if config.data.sources[0].kind != "cfw_set":
      raise UserError(f"data.sources: {config.data.sources[0].kind}, but CFW is trained on a cfw_set")
    if config.model.autoencoder is None or not config.model.autoencoder.cfw:
      raise UserError("model.autoencoder.cfw: must be true to train it")
    self._config, self._mesh = config, mesh
    self._manifest = open_model(config, ("autoencoder",))
    source = self._manifest.architecture
    assert source.autoencoder is not None
    self._autoencoder = dataclasses.replace(config.model.autoencoder, scale_factor=source.autoencoder.scale_factor)
    self._architecture = dataclasses.replace(source, autoencoder=self._autoencoder)
    self._module = components.modules(self._architecture, config.compute)["autoencoder"]
    self._goes_on = source.autoencoder == self._autoencoder
    self._reconstruction = ReconstructionLoss(config.stage, config.compute, mesh)

  @functools.cached_property
  def frozen(self) -> Params:
    return {"autoencoder": self._rest(self._config.compute.dtype)} | self._reconstruction.frozen

  def init(self, key: jax.Array) -> Params:
    keys = jax.random.split(key)
    params = components.init(self._architecture, "autoencoder", keys[0])
    trained = {"autoencoder": split(params, is_cfw)[0]}
    return trained | self._reconstruction.init(keys[1], self._config.data.crop_size)

  def pretrained(self) -> Params:
    return load(self._config, self._manifest, ("autoencoder",), self._mesh, is_cfw) if self._goes_on else {}

  def prepare(self, batch: Batch, keys: jax.Array) -> Batch:
    hr, low = (batch[name].astype(jnp.float32) / 255 for name in ("hr", "lr"))
    return {"hr": hr * 2 - 1, "lr": enlarge(low, hr.shape[1:3]) * 2 - 1, "latent": batch["latent"].astype(jnp.float32)}

  def loss(
    self, params: Params, frozen: Params, batch: Batch, keys: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, Means]:
    image, count = self._decode(params, frozen, batch, 1.0), jnp.float32(len(keys))
    loss, logged = self._reconstruction(params, frozen, image, batch["hr"], step)
    return loss, {"loss": (loss * count, count), **logged}

  def validate(self, params: Params, frozen: Params, batch: Batch, keys: jax.Array) -> dict[str, jax.Array]:
    decode = lambda w: to_unit(self._decode(params, frozen, batch, w))
    return {
      "lr, bicubic": to_unit(batch["lr"]),
      "w = 0": decode(0.0),
      "w = 0.5": decode(0.5),
      "ours": decode(1.0),
      "hr": to_unit(batch["hr"]),
    }

  def export(self, params: Params, batch: Callable[[], Batch]) -> Export:
    return Export(self._architecture, {"autoencoder": merge(self._rest("float32"), params["autoencoder"])})

  def _rest(self, dtype: str) -> Params:
    """The starting model's autoencoder without CFW."""
    chosen = lambda path: not is_cfw(path)
    return load(self._config, self._manifest, ("autoencoder",), self._mesh, chosen, dtype)["autoencoder"]

  def _decode(self, params: Params, frozen: Params, batch: Batch, weight: float) -> jax.Array:
    _, features = apply(self._module, frozen["autoencoder"], batch["lr"], method="encode")
    z = batch["latent"] / self._autoencoder.scale_factor
    whole = merge(frozen["autoencoder"], params["autoencoder"])
    return apply(self._module, whole, z, features, weight, method="decode")

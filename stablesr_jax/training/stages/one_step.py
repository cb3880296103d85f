"""Training a restorer of a single evaluation end to end: LR latent, network, decoder with CFW, loss in pixels."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from stablesr_jax.checkpoints.store import NULL_PROMPT
from stablesr_jax.config import SamplingConfig
from stablesr_jax.diffusion import samplers
from stablesr_jax.errors import UserError
from stablesr_jax.models import components
from stablesr_jax.models.kl_autoencoder import sample_posterior
from stablesr_jax.models.parameters import Params, apply, is_cfw, is_modulation, merge, split
from stablesr_jax.pixels import to_unit
from stablesr_jax.training.config import OneStepStage, TrainConfig
from stablesr_jax.training.logged import Means
from stablesr_jax.training.randomness import keys_for, normal
from stablesr_jax.training.stage import Batch, Export
from stablesr_jax.training.stages.low_resolution import prepare_pairs
from stablesr_jax.training.stages.reconstruction import ReconstructionLoss
from stablesr_jax.training.starting_model import load, open_model

PARTS = ("unet", "time_aware_encoder", "autoencoder")
_TEACHER = "teacher"
_POSTERIOR, _NOISE, _STEPS = 1, 2, 10


class OneStepTrainer:
  """Trains what `stage.trained` says of "unet", "time_aware_encoder" and "autoencoder", and a "discriminator"."""

  def __init__(self, config: TrainConfig, mesh: jax.sharding.Mesh):
    stage = config.stage
    assert isinstance(stage, OneStepStage)
    if config.sampling.steps != 1:
      raise UserError(f"sampling.steps {config.sampling.steps}: this stage trains a single one")
    if config.model.autoencoder is None or not config.model.autoencoder.cfw:
      raise UserError("model.autoencoder.cfw: this stage trains it; must be true")
    self._config, self._stage, self._mesh = config, stage, mesh
    self._manifest = open_model(config, PARTS, whole=True)
    source = self._manifest.architecture
    assert source.autoencoder is not None
    self._autoencoder = dataclasses.replace(config.model.autoencoder, scale_factor=source.autoencoder.scale_factor)
    self._architecture = dataclasses.replace(source, autoencoder=self._autoencoder)
    self._goes_on = source.autoencoder == self._autoencoder
    if stage.teacher_weight > 0 and not self._goes_on:
      raise UserError(f"stage.teacher-weight: {config.model_path} has no CFW as in model.autoencoder to teach with")
    self._modules = components.modules(self._architecture, config.compute)
    self._reconstruction = ReconstructionLoss(stage, config.compute, mesh)

  @functools.cached_property
  def frozen(self) -> Params:
    dtype = self._config.compute.dtype
    frozen = self._source(False, dtype) | load(self._config, self._manifest, (NULL_PROMPT,), self._mesh, dtype=dtype)
    if self._stage.teacher_weight > 0:
      frozen[_TEACHER] = self._source(True, dtype)  # with the parts that never change, the starting model
    return frozen | self._reconstruction.frozen

  def init(self, key: jax.Array) -> Params:
    keys = jax.random.split(key, len(PARTS) + 1)
    params = {part: components.init(self._architecture, part, k) for part, k in zip(PARTS, keys[1:], strict=True)}
    return self._trained(params) | self._reconstruction.init(keys[0], self._config.data.crop_size)

  def pretrained(self) -> Params:
    params = self._source(True, "float32")
    if not self._goes_on:  # CFW of another kind, or none
      params["autoencoder"] = split(params["autoencoder"], is_cfw)[1]
    return params

  def prepare(self, batch: Batch, keys: jax.Array) -> Batch:
    return prepare_pairs(batch, keys, self._stage.degradation, self._config.compute.platform)

  def loss(
    self, params: Params, frozen: Params, batch: Batch, keys: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, Means]:
    count, logged = jnp.float32(len(keys)), {}
    whole = _merged(frozen, params)
    latent, features = self._restore(whole, frozen, batch["lr"], keys, self._config.sampling)
    weight = self._config.sampling.fidelity_weight
    image = self._decode(whole, latent, features, weight)
    loss, logged = self._reconstruction(params, frozen, image, batch["hr"], step)
    if weight < 1:
      faithful = jnp.mean(jnp.abs(self._decode(whole, latent, features, 1.0) - batch["hr"]))
      loss += faithful
      logged["l1/w=1"] = (faithful * count, count)
    if self._stage.teacher_weight > 0:
      distance = jnp.mean(jnp.abs(image - self._teach(frozen, batch["lr"], keys)))
      loss += self._stage.teacher_weight * distance
      logged["teacher"] = (distance * count, count)
    return loss, {"loss": (loss * count, count), **logged}

  def validate(self, params: Params, frozen: Params, batch: Batch, keys: jax.Array) -> dict[str, jax.Array]:
    whole, sampling = _merged(frozen, params), self._config.sampling
    latent, features = self._restore(whole, frozen, batch["lr"], keys, sampling)
    weights = {f"w = {w:g}": w for w in (0.0, 1.0) if w != sampling.fidelity_weight} | {
      "ours": sampling.fidelity_weight
    }
    return {
      "lr, bicubic": to_unit(batch["lr"]),
      **{name: to_unit(self._decode(whole, latent, features, w)) for name, w in weights.items()},
      "hr": to_unit(batch["hr"]),
    }

  def export(self, params: Params, batch: Callable[[], Batch]) -> Export:
    rest = self._source(False, "float32")
    return Export(self._architecture, {part: merge(rest[part], params[part]) for part in PARTS})

  def _teach(self, frozen: Params, lr: jax.Array, keys: jax.Array) -> jax.Array:
    """The starting model's picture; a constant to differentiation."""
    whole, sampling = _merged(frozen, frozen[_TEACHER]), self._stage.teacher
    picture = self._decode(whole, *self._restore(whole, frozen, lr, keys, sampling), sampling.fidelity_weight)
    return jax.lax.stop_gradient(picture)

  def _restore(
    self, whole: Params, frozen: Params, lr: jax.Array, keys: jax.Array, sampling: SamplingConfig
  ) -> tuple[jax.Array, list[jax.Array]]:
    """LR images (B, H, W, 3) in [-1, 1], enlarged -> the diffusion's latents (B, h, w, 4), and features for CFW."""
    diffusion = self._architecture.diffusion
    moments, features = apply(self._modules["autoencoder"], whole["autoencoder"], lr, method="encode")
    shape = (*moments.shape[1:3], self._autoencoder.latent_channels)
    noise = lambda purpose: normal(keys_for(keys, purpose), shape)
    low = self._autoencoder.scale_factor * sample_posterior(moments, sampling.start_noise * noise(_POSTERIOR))

    def predict(x: jax.Array, t: jax.Array) -> jax.Array:
      t = jnp.broadcast_to(t, len(x))
      structure = apply(self._modules["time_aware_encoder"], whole["time_aware_encoder"], low, t)
      return apply(self._modules["unet"], whole["unet"], x, t, frozen[NULL_PROMPT][None], structure)

    start, steps = samplers.start(diffusion, sampling, low, noise(_NOISE))
    return samplers.run(predict, start, steps, lambda i: noise(_STEPS + i)), features

  def _decode(self, whole: Params, latent: jax.Array, features: list[jax.Array], weight: float) -> jax.Array:
    z = latent / self._autoencoder.scale_factor
    return apply(self._modules["autoencoder"], whole["autoencoder"], z, features, weight, method="decode")

  def _trained(self, params: Params) -> Params:
    return {part: split(params[part], lambda path, part=part: self._is_trained(part, path))[0] for part in PARTS}

  def _is_trained(self, part: str, path: str) -> bool:
    if self._stage.trained == "all" or part == "time_aware_encoder":
      return True
    return is_modulation(path) if part == "unet" else is_cfw(path)

  def _source(self, trained: bool, dtype: str) -> dict[str, Params]:
    """Of the starting model's parts what is trained, or what is not."""

    def read(part: str) -> Params:
      chosen = lambda path: self._is_trained(part, path) == trained
      return load(self._config, self._manifest, (part,), self._mesh, chosen, dtype)[part]

    return {part: read(part) for part in PARTS}


def _merged(frozen: Params, trained: Params) -> Params:
  """Each part's parameters, those that are trained and those that are not."""
  return {part: merge(frozen[part], trained[part]) for part in PARTS}

"""Training the time-aware encoder and SFT on the frozen prior (3.1), the paper's first stage."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from stablesr_jax.checkpoints.store import NULL_PROMPT
from stablesr_jax.config import SamplingConfig
from stablesr_jax.diffusion import samplers
from stablesr_jax.diffusion.objective import prediction_target
from stablesr_jax.diffusion.schedule import add_noise
from stablesr_jax.errors import UserError
from stablesr_jax.models import components
from stablesr_jax.models.parameters import Params, apply, is_modulation, merge, split
from stablesr_jax.pixels import to_unit
from stablesr_jax.training.config import CfwDataStage, RestorerStage, TrainConfig
from stablesr_jax.training.logged import Means, loss_by_band
from stablesr_jax.training.randomness import keys_for, normal
from stablesr_jax.training.stage import Batch, Export
from stablesr_jax.training.stages.latents import Latents
from stablesr_jax.training.stages.low_resolution import prepare_pairs
from stablesr_jax.training.starting_model import load, load_latents, open_model

_HR_POSTERIOR, _LR_POSTERIOR, _NOISE, _TIME, _STEPS = 1, 2, 3, 4, 10


class RestorerTrainer:
  """Trains "time_aware_encoder" and of "unet" what steers it, or all of it with `train_prior`."""

  def __init__(self, config: TrainConfig, mesh: jax.sharding.Mesh):
    stage = config.stage
    assert isinstance(stage, RestorerStage | CfwDataStage)
    if config.model.unet is None or config.model.time_aware_encoder is None:
      raise UserError("model: this stage needs a unet and a time_aware_encoder")
    if config.model.unet.conditioning == "none":
      raise UserError("model.unet.conditioning 'none': a restorer needs sft or add")
    self._config, self._stage, self._mesh = config, stage, mesh
    self._train_prior = isinstance(stage, RestorerStage) and stage.train_prior
    needed = ("autoencoder",) if self._train_prior else ("autoencoder", "unet")
    trained = isinstance(stage, CfwDataStage)
    self._manifest = open_model(config, (*needed, "time_aware_encoder") if trained else needed, whole=trained)
    source = self._manifest.architecture
    assert source.autoencoder is not None
    self.architecture = dataclasses.replace(
      source,
      unet=config.model.unet,
      time_aware_encoder=config.model.time_aware_encoder,
      diffusion=config.model.diffusion,
    )
    modules = components.modules(self.architecture, config.compute)
    self._unet, self._encoder = modules["unet"], modules["time_aware_encoder"]
    self.latents = Latents(source.autoencoder, config.compute)

  @functools.cached_property
  def frozen(self) -> Params:
    loaded = load_latents(self._config, self._manifest, self._unet.config.context_dim, self._mesh)
    return loaded | {"unet": {} if self._train_prior else self._prior(self._config.compute.dtype)}

  def init(self, key: jax.Array) -> Params:
    keys = jax.random.split(key)
    unet = components.init(self.architecture, "unet", keys[0])
    return {
      "time_aware_encoder": components.init(self.architecture, "time_aware_encoder", keys[1]),
      "unet": split(unet, self._is_trained)[0],
    }

  def pretrained(self) -> Params:
    source = self._manifest.architecture
    params: Params = {}
    if source.unet is not None and source.unet == self.architecture.unet:
      params |= load(self._config, self._manifest, ("unet",), self._mesh, self._is_trained)
    elif source.unet is not None and self._train_prior:
      params["unet"] = self._prior("float32")
    if source.time_aware_encoder is not None:
      params |= load(self._config, self._manifest, ("time_aware_encoder",), self._mesh)
    return params

  def prepare(self, batch: Batch, keys: jax.Array) -> Batch:
    return prepare_pairs(batch, keys, self._stage.degradation, self._config.compute.platform)

  def loss(
    self, params: Params, frozen: Params, batch: Batch, keys: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, Means]:
    diffusion = self._config.model.diffusion
    latent = self.latents.encode(frozen["autoencoder"], batch["hr"], keys_for(keys, _HR_POSTERIOR))
    low = self.latents.encode(frozen["autoencoder"], batch["lr"], keys_for(keys, _LR_POSTERIOR))
    t = jax.vmap(lambda key: jax.random.randint(key, (), 0, diffusion.steps))(keys_for(keys, _TIME))
    noise = normal(keys_for(keys, _NOISE), latent.shape[1:])
    x, target = add_noise(diffusion, latent, noise, t), prediction_target(diffusion, latent, noise, t)
    losses = jnp.mean(jnp.square(self._predict(params, frozen, x, t, low) - target), axis=(1, 2, 3))
    return losses.mean(), {
      "loss": (losses.sum(), jnp.float32(len(losses))),
      **loss_by_band(diffusion, losses, t),
    }

  def validate(self, params: Params, frozen: Params, batch: Batch, keys: jax.Array) -> dict[str, jax.Array]:
    assert self._config.validation is not None
    latent = self.sample(params, frozen, batch["lr"], keys, self._config.validation.sampling)
    return {
      "lr, bicubic": to_unit(batch["lr"]),
      "ours": self.latents.decode(frozen["autoencoder"], latent),
      "hr": to_unit(batch["hr"]),
    }

  def sample(
    self, params: Params, frozen: Params, lr: jax.Array, keys: jax.Array, sampling: SamplingConfig
  ) -> jax.Array:
    """Restores images as single tiles.

    Args:
      lr: (B, H, W, 3) in [-1, 1], enlarged.

    Returns:
      The diffusion's latents (B, h, w, 4).
    """
    diffusion = self._config.model.diffusion
    low = self.latents.encode(frozen["autoencoder"], lr, keys_for(keys, _LR_POSTERIOR))
    noise = lambda purpose: normal(keys_for(keys, purpose), low.shape[1:])
    predict = lambda x, t: self._predict(params, frozen, x, jnp.broadcast_to(t, len(x)), low)
    x, steps = samplers.start(diffusion, sampling, low, noise(_NOISE))
    return samplers.run(predict, x, steps, lambda i: noise(_STEPS + i))

  def export(self, params: Params, batch: Callable[[], Batch]) -> Export:
    unet = params["unet"]
    if not self._train_prior:
      exact = self._config.compute.dtype == "float32"
      unet = merge(self.frozen["unet"] if exact else self._prior("float32"), unet)
    written = {"unet": unet, "time_aware_encoder": params["time_aware_encoder"]}
    if self._manifest.architecture.unet is None:
      written[NULL_PROMPT] = {NULL_PROMPT: self.frozen[NULL_PROMPT].astype(jnp.float32)}
    return Export(self.architecture, written)

  def _is_trained(self, path: str) -> bool:
    return self._train_prior or is_modulation(path)

  def _prior(self, dtype: str) -> Params:
    """The starting model's UNet without what steers it."""
    return load(self._config, self._manifest, ("unet",), self._mesh, lambda path: not is_modulation(path), dtype)[
      "unet"
    ]

  def _predict(self, params: Params, frozen: Params, x: jax.Array, t: jax.Array, low: jax.Array) -> jax.Array:
    structure = apply(self._encoder, params["time_aware_encoder"], low, t)
    unet = merge(frozen["unet"], params["unet"])
    return apply(self._unet, unet, x, t, frozen[NULL_PROMPT][None], structure)

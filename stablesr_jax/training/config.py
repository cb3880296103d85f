"""What a training run is: a stage, its model and data, and how it is optimised, logged and kept."""

import dataclasses
from typing import Any, Literal

from stablesr_jax.config import ComputeConfig, DiscriminatorConfig, ModelConfig, SamplingConfig
from stablesr_jax.data.config import DataConfig
from stablesr_jax.degradation.settings import DegradationSettings
from stablesr_jax.errors import UserError


def _check(config: Any, field: str, ok: bool, wanted: str) -> None:
  if not ok:
    raise UserError(f"{field.replace('_', '-')} {getattr(config, field)!r}: {wanted}")


@dataclasses.dataclass(frozen=True)
class AutoencoderStage:
  """The KL autoencoder, for people who have no Stable Diffusion (Rombach et al. 2022, section 3.1).

  Attributes:
    kl_weight: of the posterior's divergence from a standard normal, a mean over the latent's values as the L1 loss is
      one over the image's. (Published: 1e-6 with sums in place of means, which is 2e-8 here.)
    perceptual_weight: of LPIPS; above 0 needs `lpips`.
    lpips: folder that `convert_weights.py` made from VGG16 and LPIPS's heads.
    adversarial_weight: of the discriminator's verdict, before the adaptive factor; 0 trains none.
    adversarial_start: first step with it.
  """

  kl_weight: float = 2e-8
  perceptual_weight: float = 1.0
  lpips: str | None = None
  adversarial_weight: float = 0.5
  adversarial_start: int = 50_000
  discriminator: DiscriminatorConfig = DiscriminatorConfig()


@dataclasses.dataclass(frozen=True)
class PriorStage:
  """Plain latent diffusion with the null prompt, for people who have no Stable Diffusion."""


@dataclasses.dataclass(frozen=True)
class RestorerStage:
  """Time-aware encoder and SFT on the frozen prior (3.1), the paper's first stage.

  Attributes:
    degradation: how LR images are made; data that comes in pairs is not degraded.
    train_prior: trains the whole UNet, from nothing unless `model_path` has one: the paper's ablation "from scratch".
  """

  degradation: DegradationSettings = DegradationSettings()
  train_prior: bool = False


@dataclasses.dataclass(frozen=True)
class CfwDataStage:
  """Makes the set that CFW is trained on (3.2): LR and HR images, and the latents that the restorer gives for them.

  The restorer samples as the run's `sampling` says (the paper: 200 steps).

  Attributes:
    count: samples of the whole set (the paper: 100,000).
  """

  degradation: DegradationSettings = DegradationSettings()
  count: int = 100_000


@dataclasses.dataclass(frozen=True)
class CfwStage:
  """Controllable feature wrapping (3.2), all else frozen. Its data is a `cfw_set` source."""

  perceptual_weight: float = 1.0
  lpips: str | None = None
  adversarial_weight: float = 0.025
  adversarial_start: int = 501
  discriminator: DiscriminatorConfig = DiscriminatorConfig()


Stage = AutoencoderStage | PriorStage | RestorerStage | CfwDataStage | CfwStage


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW (defaults: the published restorer's).

  Attributes:
    learning_rate: after `warmup_steps` of linear growth.
    schedule: afterwards "constant", or "cosine" down to 0 at the last step.
    clip_norm: longest gradient over all parameters; None is no limit.
    accumulation: parts that a batch is computed in, one after the other, to save memory.
    ema_decay: of the average of the parameters that is exported in their place; None keeps none.
  """

  learning_rate: float = 5e-5
  schedule: Literal["constant", "cosine"] = "constant"
  warmup_steps: int = 0
  betas: tuple[float, float] = (0.9, 0.999)
  weight_decay: float = 0.01
  clip_norm: float | None = None
  accumulation: int = 1
  ema_decay: float | None = None

  def __post_init__(self):
    _check(self, "learning_rate", self.learning_rate > 0, "must be positive")
    _check(self, "schedule", self.schedule in ("constant", "cosine"), "choose constant or cosine")
    _check(self, "warmup_steps", self.warmup_steps >= 0, "must not be negative")
    _check(self, "betas", len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "must be two of 0 to below 1")
    _check(self, "weight_decay", self.weight_decay >= 0, "must not be negative")
    _check(self, "clip_norm", self.clip_norm is None or self.clip_norm > 0, "must be positive, or None")
    _check(self, "accumulation", self.accumulation >= 1, "must be at least 1")
    _check(self, "ema_decay", self.ema_decay is None or 0 < self.ema_decay < 1, "must be within 0 and 1, or None")


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
  """Restoring a fixed set of images now and then.

  Attributes:
    data: where the images are from; cropped and degraded as in training, with random numbers that never change.
    images: how many of them.
    every: steps from one validation to the next.
    sampling: for the stages that sample.
  """

  data: DataConfig
  images: int = 8
  every: int = 5_000
  sampling: SamplingConfig = SamplingConfig(steps=20)

  def __post_init__(self):
    _check(self, "images", self.images >= 1, "must be at least 1")
    _check(self, "every", self.every >= 1, "must be at least 1")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """A training run.

  Attributes:
    stage: what is trained, and its own settings.
    model: the architecture; parts the stage does not use are passed over.
    data: the training images.
    model_path: converted model folder that the frozen parts come from, and initial values of trained parts it has.
    sampling: the defaults that the trained model carries.
    steps: updates of the parameters.
    batch_size: samples of an update, on all devices of all hosts together.
    seed: of initial values and of all that is drawn in training.
    compute: how it is computed; master weights and updates are float32 always.
    sharding: "replicated": every device has the whole training state; "fsdp": trained parameters and the optimiser's
      state are divided among the devices.
    log_every: steps from one line of metrics to the next.
    checkpoint_every: steps from one checkpoint to the next.
    keep_last: how many checkpoints are kept.
    keep_every: steps from one checkpoint that is kept for good to the next; None keeps none so.
    max_bad_steps: stop after so many steps in a row whose loss or gradient was not finite; such steps change nothing.
    validation: None never validates.
  """

  stage: Stage
  data: DataConfig
  model: ModelConfig = ModelConfig()
  model_path: str | None = None
  sampling: SamplingConfig = SamplingConfig()
  steps: int = 100_000
  batch_size: int = 192
  seed: int = 0
  optimizer: OptimizerConfig = OptimizerConfig()
  compute: ComputeConfig = ComputeConfig(dtype="bfloat16", remat=True)
  sharding: Literal["replicated", "fsdp"] = "replicated"
  log_every: int = 50
  checkpoint_every: int = 1_000
  keep_last: int = 3
  keep_every: int | None = None
  max_bad_steps: int = 20
  validation: ValidationConfig | None = None

  def __post_init__(self):
    for field in ("steps", "batch_size", "log_every", "checkpoint_every", "keep_last", "max_bad_steps"):
      _check(self, field, getattr(self, field) >= 1, "must be at least 1")
    _check(self, "keep_every", self.keep_every is None or self.keep_every >= 1, "must be at least 1, or None")
    ok = self.checkpoint_every % self.log_every == 0  # or a resumed run would log other means
    _check(self, "checkpoint_every", ok, f"must be a multiple of log-every {self.log_every}")
    _check(self, "seed", 0 <= self.seed < 2**32, "must be 0 to 2^32 - 1")
    accumulation = self.optimizer.accumulation
    _check(
      self, "batch_size", self.batch_size % accumulation == 0, f"must be a multiple of accumulation {accumulation}"
    )

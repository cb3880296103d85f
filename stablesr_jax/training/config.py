"""What a training run is: a stage, its model and data, and how it is optimised, logged and kept."""

from typing import Annotated, Literal

from pydantic import Field

from stablesr_jax.config import ComputeConfig, DiscriminatorConfig, LPIPSConfig, ModelConfig, SamplingConfig
from stablesr_jax.data.config import DataConfig
from stablesr_jax.degradation.settings import DegradationSettings
from stablesr_jax.settings import Count, Name, Natural, NotNegative, Positive, Seed, require, settings

_Decay = Annotated[float, Field(gt=0, lt=1)]
_Scaling = Literal["adaptive", "fixed"]
_Beta = Annotated[float, Field(ge=0, lt=1)]


@settings
class AutoencoderStage:
  """The KL autoencoder, for people who have no Stable Diffusion (Rombach et al. 2022, section 3.1).

  Attributes:
    kl_weight: The weight of the posterior's divergence from a standard normal, a mean over the latent's values as the
      L1 loss is one over the image's. (Published: 1e-6 with sums in place of means, which is 2e-8 here.)
    perceptual_weight: The weight of LPIPS; above 0 needs `lpips`.
    lpips: The folder that `convert_weights.py` made from VGG16 and LPIPS's heads.
    adversarial_weight: The weight of the discriminator's verdict; 0 trains none.
    adversarial_scaling: What that weight is of: "adaptive": of the weight that makes the verdict pull as hard at the
      image as the other losses do (published); "fixed": of the verdict as it is. While a discriminator cannot tell
      the images apart its pull is small and says nothing, and the adaptive weight makes it large.
    adversarial_start: The first step with it.
  """

  kl_weight: NotNegative = 2e-8
  perceptual_weight: NotNegative = 1.0
  lpips: Name | None = None
  adversarial_weight: NotNegative = 0.5
  adversarial_scaling: _Scaling = "adaptive"
  adversarial_start: Natural = 50_000
  discriminator: DiscriminatorConfig = DiscriminatorConfig()


@settings
class PriorStage:
  """Plain latent diffusion with the null prompt, for people who have no Stable Diffusion."""


@settings
class RestorerStage:
  """Time-aware encoder and SFT on the frozen prior (3.1), the paper's first stage.

  Attributes:
    degradation: How LR images are made; data that comes in pairs is not degraded.
    train_prior: Whether the whole UNet is trained, from nothing unless `model_path` has one: the paper's ablation "from
      scratch".
  """

  degradation: DegradationSettings = DegradationSettings()
  train_prior: bool = False


@settings
class CfwDataStage:
  """Makes the set that CFW is trained on (3.2): LR and HR images, and the latents that the restorer gives for them.

  The restorer samples as the run's `sampling` says (the paper: 200 steps).

  Attributes:
    count: The samples of the whole set (the paper: 100,000).
  """

  degradation: DegradationSettings = DegradationSettings()
  count: Count = 100_000


@settings
class CfwStage:
  """Controllable feature wrapping (3.2), all else frozen. Its data is a `cfw_set` source."""

  perceptual_weight: NotNegative = 1.0
  lpips: Name | None = None
  adversarial_weight: NotNegative = 0.025
  adversarial_scaling: _Scaling = "adaptive"
  adversarial_start: Natural = 501
  discriminator: DiscriminatorConfig = DiscriminatorConfig()


@settings
class OneStepStage:
  """A trained restorer made to need a single evaluation, end to end and judged in pixels.

  The LR latent enters at the run's `sampling.start_step` with `sampling.start_noise`, and what the network makes of it
  is decoded with CFW. The picture with w = `sampling.fidelity_weight` has the whole loss: L1, perceptual, adversarial.
  Where that is below 1, w = 1 is trained beside it with L1 alone, and stays the faithful end.

  Attributes:
    trained: What is trained: "steering": time-aware encoder, SFT and CFW, on a frozen prior and autoencoder; "all": the
      whole UNet and autoencoder, too.
    teacher_weight: The weight of the L1 distance to what the starting model makes of the same LR image by `teacher`; 0
      asks none.
  """

  degradation: DegradationSettings = DegradationSettings()
  trained: Literal["steering", "all"] = "steering"
  perceptual_weight: NotNegative = 1.0
  lpips: Name | None = None
  adversarial_weight: NotNegative = 0.1
  adversarial_scaling: _Scaling = "fixed"
  adversarial_start: Natural = 301
  discriminator: DiscriminatorConfig = DiscriminatorConfig()
  teacher_weight: NotNegative = 0.0
  teacher: SamplingConfig = SamplingConfig(sampler="ddim", steps=20)


Stage = AutoencoderStage | PriorStage | RestorerStage | CfwDataStage | CfwStage | OneStepStage


@settings
class OptimizerConfig:
  """AdamW (defaults: the published restorer's).

  Attributes:
    learning_rate: The rate after `warmup_steps` of linear growth.
    schedule: The rate's course afterwards: "constant", or "cosine" down to 0 at the last step.
    clip_norm: The longest gradient over all parameters; None is no limit.
    accumulation: The number of parts that a batch is computed in, one after the other, to save memory.
    ema_decay: The decay of the parameters' average, which is exported in their place; None keeps none.
  """

  learning_rate: Positive = 5e-5
  schedule: Literal["constant", "cosine"] = "constant"
  warmup_steps: Natural = 0
  betas: tuple[_Beta, _Beta] = (0.9, 0.999)
  weight_decay: NotNegative = 0.01
  clip_norm: Positive | None = None
  accumulation: Count = 1
  ema_decay: _Decay | None = None


@settings
class ValidationConfig:
  """Restoring a fixed set of images now and then.

  Attributes:
    data: Where the images are from; cropped and degraded as in training, with random numbers that never change.
    images: The number of images.
    every: The steps from one validation to the next.
    sampling: How the stages that sample do it.
  """

  data: DataConfig
  images: Count = 8
  every: Count = 5_000
  sampling: SamplingConfig = SamplingConfig(steps=20)


@settings
class TrainConfig:
  """A training run.

  Attributes:
    stage: What is trained, and its own settings.
    model: The architecture; parts the stage does not use are passed over.
    data: The training images.
    model_path: The converted model folder that the frozen parts come from, and initial values of trained parts it has.
    sampling: The defaults that the trained model carries.
    steps: The number of updates of the parameters.
    batch_size: The samples of an update, on all devices of all hosts together.
    seed: The seed of initial values and of all that is drawn in training.
    compute: How it is computed; master weights and updates are float32 always.
    sharding: Where the state lies: "replicated": every device has the whole training state; "fsdp": trained parameters
      and the optimiser's state are divided among the devices.
    log_every: The steps from one line of metrics to the next.
    checkpoint_every: The steps from one checkpoint to the next.
    keep_last: The number of checkpoints that are kept.
    keep_every: The steps from one checkpoint that is kept for good to the next; None keeps none so.
    max_bad_steps: The number of steps in a row whose loss or gradient was not finite, after which training stops; such
      steps change nothing.
    validation: The validation; None is none.
  """

  stage: Stage
  data: DataConfig
  model: ModelConfig = ModelConfig()
  model_path: Name | None = None
  sampling: SamplingConfig = SamplingConfig()
  steps: Count = 100_000
  batch_size: Count = 192
  seed: Seed = 0
  optimizer: OptimizerConfig = OptimizerConfig()
  compute: ComputeConfig = ComputeConfig(dtype="bfloat16", remat=True)
  sharding: Literal["replicated", "fsdp"] = "replicated"
  log_every: Count = 50
  checkpoint_every: Count = 1_000
  keep_last: Count = 3
  keep_every: Count | None = None
  max_bad_steps: Count = 20
  validation: ValidationConfig | None = None

  def __post_init__(self):
    whole = self.checkpoint_every % self.log_every == 0  # or a resumed run would log other means
    require(whole, "checkpoint_every", self.checkpoint_every, f"must be a multiple of log-every {self.log_every}")
    parts = self.optimizer.accumulation
    divides = self.batch_size % parts == 0
    require(divides, "batch_size", self.batch_size, f"must be a multiple of accumulation {parts}")
    self.sampling.require_within(self.model.diffusion, "sampling.start_step")
    if self.validation is not None:
      self.validation.sampling.require_within(self.model.diffusion, "validation.sampling.start_step")
      _require_no_prompt("validation.sampling", self.validation.sampling)
      self._require_fitting("validation.data", self.validation.data)
    self._require_fitting("data", self.data)
    self._require_judged("data.crop_size", self.data.crop_size)
    if isinstance(self.stage, CfwDataStage | OneStepStage):
      _require_no_prompt("sampling", self.sampling)
    if isinstance(self.stage, OneStepStage):
      _require_no_prompt("stage.teacher", self.stage.teacher)

  def _require_fitting(self, name: str, data: DataConfig) -> None:
    self._require_crop(f"{name}.crop_size", data.crop_size)
    if isinstance(self.stage, CfwDataStage) or (
      isinstance(self.stage, RestorerStage | OneStepStage) and not data.paired
    ):
      scale = self.stage.degradation.scale
      require(data.scale == scale, f"{name}.scale", data.scale, f"must be {scale}, stage.degradation's")

  def _require_crop(self, field: str, side: int) -> None:
    """The networks halve an image and its latent as often as they have levels, and join what they double again."""
    multiple = self.model.autoencoder.downsampling if self.model.autoencoder else 1
    if self.model.unet is not None and not isinstance(self.stage, AutoencoderStage | CfwStage):
      multiple *= 2 ** (len(self.model.unet.channel_multipliers) - 1)
    require(side % multiple == 0, field, side, f"must be a multiple of {multiple}, by the levels of the model's parts")

  def _require_judged(self, field: str, side: int) -> None:
    """What judges images needs some pixels to see anything."""
    stage = self.stage
    if isinstance(stage, AutoencoderStage | CfwStage | OneStepStage):
      for weight, judge, smallest in (
        (stage.adversarial_weight, "the discriminator", stage.discriminator.smallest_image),
        (stage.perceptual_weight, "LPIPS", LPIPSConfig.smallest_image),
      ):
        require(weight == 0 or side >= smallest, field, side, f"must be at least {smallest} for {judge}")


def _require_no_prompt(name: str, sampling: SamplingConfig) -> None:
  """Training samples with the null prompt and without guidance."""
  wanted = "must be left as it is: training knows the null prompt alone"
  require(sampling.prompt == "", f"{name}.prompt", sampling.prompt, wanted)
  require(sampling.negative_prompt == "", f"{name}.negative_prompt", sampling.negative_prompt, wanted)
  require(sampling.guidance_scale == 1, f"{name}.guidance_scale", sampling.guidance_scale, wanted)

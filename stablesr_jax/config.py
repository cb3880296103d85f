"""Frozen dataclasses that name every size of the system.

An architecture (`ModelConfig`) is written into a converted model's `model.json`; how it is computed
(`ComputeConfig`) is chosen anew on each machine; how a picture is sampled (`SamplingConfig`) has its defaults
in the model and may be overridden on the command line.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from stablesr_jax.settings import Count, Fraction, Natural, require, settings

Conditioning = Literal["sft", "add", "none"]
Prediction = Literal["eps", "v"]
AttentionImplementation = Literal["auto", "chunked", "xla"]
Platform = Literal["cpu", "gpu", "tpu"]

# Far beyond any network: what is absurd is told before a machine tries it.
_WIDEST, _DEEPEST, _MOST_LEVELS = 2**16, 100, 8
_Width = Annotated[int, Field(ge=1, le=_WIDEST)]
"""A number of channels, heads, groups or tokens."""
_Depth = Annotated[int, Field(ge=1, le=_DEEPEST)]
"""A number of layers or blocks."""
_Multipliers = Annotated[tuple[_Depth, ...], Field(min_length=1, max_length=_MOST_LEVELS)]
"""The width of each level, in multiples of `channels`."""
_Levels = tuple[Natural, ...]
_Beta = Annotated[float, Field(gt=0, lt=1)]
# Far beyond any use, and within what float32 computes.
_ScaleFactor = Annotated[float, Field(ge=1e-6, le=1e6)]
_Guidance = Annotated[float, Field(ge=0, le=1000)]


def _attending(multipliers: tuple[int, ...], levels: tuple[int, ...]) -> tuple[int, ...]:
  """Multipliers of the levels that have attention, and of the last one, whose width the middle has."""
  return (*(multiplier for level, multiplier in enumerate(multipliers) if level in levels), multipliers[-1])


def _require_divisor(field: str, value: int, channels: int, multipliers: tuple[int, ...] = (1,)) -> None:
  for multiplier in multipliers:
    width = channels * multiplier
    require(width % value == 0, field, value, f"must divide the {width} channels of a level")


@settings
class ComputeConfig:
  """How networks are computed; changes speed and rounding, never the parameters.

  Attributes:
    dtype: The dtype of activations and matrix products, "float32" or "bfloat16". Norms, softmax and the sampler stay
      float32. "float32" is all of its 24 bits on every device: no TF32 on a GPU, several passes on a TPU.
    attention: The implementation of attention: "chunked" (scores of some queries at a time), "xla" (all scores in
      memory), or "auto": flash attention where the devices have it, otherwise chunked.
    remat: Whether each block's activations are recomputed in the backward pass instead of kept (training).
    platform: The kind of device that computes. None is filled in from the devices (`parallel.for_devices`), as are the
      two below; networks that are made with None take the ways that run everywhere.
    devices: The number of devices that a batch is divided among.
    flash_channels: The most channels of a head that their flash attention takes; 0 where there is none.
  """

  dtype: Literal["float32", "bfloat16"] = "float32"
  attention: AttentionImplementation = "auto"
  remat: bool = False
  platform: Platform | None = None
  devices: Count = 1
  flash_channels: Natural = 0

  @property
  def jax_dtype(self):
    import jax.numpy as jnp  # Late: reading settings needs no JAX.

    return jnp.dtype(self.dtype)

  @property
  def precision(self) -> str:
    """Of products and convolutions, as `jax.default_matmul_precision` takes it."""
    return "highest" if self.dtype == "float32" else "default"


@settings
class UNetConfig:
  """Stable Diffusion's denoising UNet (defaults: 2.1), with what steers it in every residual block (3.1).

  Attributes:
    attention_levels: The levels with transformer blocks; the middle block always has one.
    conditioning: What steers it: "sft" (the paper), "add" (the ablation: the encoder's map is added), "none" (plain
      Stable Diffusion).
    structure_channels: The channels of the time-aware encoder's maps.
    norm_groups: The number of groups of every GroupNorm. Narrow networks need fewer than 32: groups of one or two
      channels forget how bright and how strong each feature is.
  """

  channels: _Width = 320
  channel_multipliers: _Multipliers = (1, 2, 4, 4)
  blocks_per_level: _Depth = 2
  attention_levels: _Levels = (0, 1, 2)
  head_channels: _Width = 64
  context_dim: _Width = 1024
  latent_channels: _Width = 4
  conditioning: Conditioning = "sft"
  structure_channels: _Width = 256
  sft_hidden_channels: _Width = 128
  norm_groups: _Width = 32

  def __post_init__(self):
    _require_divisor("norm_groups", self.norm_groups, self.channels, self.channel_multipliers)
    attending = _attending(self.channel_multipliers, self.attention_levels)
    _require_divisor("head_channels", self.head_channels, self.channels, attending)


@settings
class TimeAwareEncoderConfig:
  """The trainable encoder of the low-resolution latent (3.1, appendix A).

  Attributes:
    time_aware: Whether timesteps are embedded; False is the paper's ablation: no time embedding anywhere in the
      encoder.
    norm_groups: The number of groups of every GroupNorm.
  """

  channels: _Width = 256
  channel_multipliers: _Multipliers = (1, 1, 2, 2)
  blocks_per_level: _Depth = 2
  attention_levels: _Levels = (0, 1, 2)
  heads: _Width = 4
  latent_channels: _Width = 4
  out_channels: _Width = 256
  time_aware: bool = True
  norm_groups: _Width = 32

  def __post_init__(self):
    _require_divisor("norm_groups", self.norm_groups, self.channels, self.channel_multipliers)
    _require_divisor("norm_groups", self.norm_groups, self.out_channels)
    attending = _attending(self.channel_multipliers, self.attention_levels)
    _require_divisor("heads", self.heads, self.channels, attending)


@settings
class AutoencoderConfig:
  """The KL autoencoder; with `cfw`, controllable feature wrapping in its decoder (3.2).

  Attributes:
    scale_factor: The factor of the diffusion's latents, which are `scale_factor * z`; 1e-6 to 1e6.
    attention: Whether all pixels of a latent attend to each other in the middle of encoder and decoder; without it the
      cost grows only linearly with the picture.
    norm_groups: The number of groups of every GroupNorm.
    cfw: Whether the decoder has CFW blocks.
    cfw_growth: The growth channels of the RRDB blocks in each of them.
    cfw_blocks: The number of these.
  """

  channels: _Width = 128
  channel_multipliers: _Multipliers = (1, 2, 4, 4)
  blocks_per_level: _Depth = 2
  latent_channels: _Width = 4
  scale_factor: _ScaleFactor = 0.18215
  attention: bool = True
  norm_groups: _Width = 32
  cfw: bool = True
  cfw_growth: _Width = 32
  cfw_blocks: _Depth = 2

  def __post_init__(self):
    _require_divisor("norm_groups", self.norm_groups, self.channels, self.channel_multipliers)

  @property
  def downsampling(self) -> int:
    """Pixels of the image for each latent pixel, along a side."""
    return 2 ** (len(self.channel_multipliers) - 1)


@settings
class TextEncoderConfig:
  """OpenCLIP's text tower (defaults: ViT-H/14), read out after `layers_used` of its layers."""

  vocabulary: _Width = 49408
  context_length: Annotated[int, Field(ge=2, le=_WIDEST)] = 77  # the start and the end of a text, at least
  width: _Width = 1024
  layers: _Depth = 23
  heads: _Width = 16

  def __post_init__(self):
    _require_divisor("heads", self.heads, self.width)


@settings
class RRDBNetConfig:
  """Real-ESRGAN's generator (defaults: x4plus), used as a pre-cleaner."""

  features: _Width = 64
  blocks: _Depth = 23
  growth: _Width = 32
  scale: Annotated[int, Field(ge=4, le=4)] = 4


@settings
class DiscriminatorConfig:
  """The patch discriminator of the autoencoder's and CFW's training (defaults: 70x70 pixels a patch).

  Attributes:
    layers: The number of strided convolutions, each of which halves the resolution.
    max_multiplier: How many times `width` channels the widest layer has.
  """

  width: _Width = 64
  layers: _Depth = 3
  max_multiplier: _Depth = 8

  @property
  def smallest_image(self) -> int:
    """The shortest side in pixels that leaves a patch to judge."""
    return 3 * 2**self.layers


@settings
class LPIPSConfig:
  """The perceptual distance's VGG16, `width` channels in its first stage and 8 times as many in its last.

  Attributes:
    stages: The number of the five stages that are compared; the first three cost 60 % of all.
  """

  width: _Width = 64
  stages: Annotated[int, Field(ge=1, le=5)] = 5

  smallest_image: ClassVar[int] = 16
  """The shortest side in pixels: four halvings."""


@settings
class DiffusionConfig:
  """The forward process and what the network predicts."""

  steps: Annotated[int, Field(ge=2, le=100_000)] = 1000
  beta_start: _Beta = 0.00085
  beta_end: _Beta = 0.0120
  prediction: Prediction = "eps"

  def __post_init__(self):
    require(self.beta_start <= self.beta_end, "beta_end", self.beta_end, f"is below beta_start, {self.beta_start}")


@settings
class ModelConfig:
  """A whole StableSR model. Parts that are None are absent: a model without a text tower still has its null prompt."""

  unet: UNetConfig | None = UNetConfig()
  time_aware_encoder: TimeAwareEncoderConfig | None = TimeAwareEncoderConfig()
  autoencoder: AutoencoderConfig | None = AutoencoderConfig()
  text_encoder: TextEncoderConfig | None = TextEncoderConfig()
  precleaner: RRDBNetConfig | None = None
  diffusion: DiffusionConfig = DiffusionConfig()

  @property
  def context_length(self) -> int:
    """Tokens of a prompt's embedding; the null prompt of a model without a text encoder has as many as CLIP's."""
    return (self.text_encoder or TextEncoderConfig()).context_length

  def __post_init__(self):
    unet, encoder, autoencoder, text = self.unet, self.time_aware_encoder, self.autoencoder, self.text_encoder
    if unet is None:
      return

    def same(field: str, value: int, other: str, wanted: int):
      require(value == wanted, field, value, f"must be {wanted}, {other}")

    if autoencoder is not None:
      same("unet.latent_channels", unet.latent_channels, "the autoencoder's", autoencoder.latent_channels)
    if text is not None:
      same("text_encoder.width", text.width, "the UNet's context_dim", unet.context_dim)
    if encoder is not None:
      same("time_aware_encoder.latent_channels", encoder.latent_channels, "the UNet's", unet.latent_channels)
      if unet.conditioning != "none":
        levels, wanted = len(encoder.channel_multipliers), len(unet.channel_multipliers)
        require(
          levels == wanted,
          "time_aware_encoder.channel_multipliers",
          encoder.channel_multipliers,
          f"must be of {wanted} levels, as the UNet's are",
        )
        same("unet.structure_channels", unet.structure_channels, "the encoder's out_channels", encoder.out_channels)


@settings
class SamplingConfig:
  """How a picture is restored; the defaults are the paper's.

  Attributes:
    sampler: The sampler: "ddpm" (ancestral) or "ddim" (deterministic unless `eta` > 0).
    steps: The number of respaced denoising steps, 1 to start_step + 1. A single one leads from `start_step` to x0.
    start_step: The timestep at which the noised LR latent starts, at most the diffusion's steps - 1; 999 is the
      paper's. Lower keeps more of the input.
    start_noise: The factor of the noise in the start, the forward process's and the posterior's, 0 to 1; 1 is the
      paper's, 0 starts from the mean LR latent, scaled as it is at `start_step`.
    eta: The share of noise in DDIM's steps, 0 to 1.
    guidance_scale: The s of eq. 8, 0 to 1000; 1 is no guidance.
    prompt: The text that describes the picture; "" is the null prompt.
    negative_prompt: The text that guidance leads away from; "" is the null prompt.
    fidelity_weight: The w of CFW in [0, 1]: 0 is most generative, 1 keeps closest to the input.
    color_fix: The colour correction against the enlarged input: "adain", "wavelet" (3.3), "lab" or "none".
    color_fix_weight: How far colours are corrected, 0 (as "none") to 1.
    reference_weight: The factor of the gradient by which a reference picture, where there is one, guides each step at a
      timestep from 100 on, 0 to 0.5; x0 goes twice this share of its way to the reference.
    tile_size: The side of a tile of aggregation sampling, in latent pixels, a multiple of 8.
    tile_overlap: How many latent pixels neighbouring tiles share; None is the paper's 32, or half of a tile below 64.
  """

  sampler: Literal["ddpm", "ddim"] = "ddpm"
  steps: Count = 200
  start_step: Count = 999
  start_noise: Fraction = 1.0
  eta: Fraction = 0.0
  guidance_scale: _Guidance = 1.0
  prompt: str = ""
  negative_prompt: str = ""
  fidelity_weight: Fraction = 0.5
  color_fix: Literal["adain", "wavelet", "lab", "none"] = "adain"
  color_fix_weight: Fraction = 1.0
  reference_weight: Annotated[float, Field(ge=0, le=0.5)] = 0.05
  tile_size: Annotated[int, Field(ge=8, multiple_of=8, le=4096)] = 64
  tile_overlap: Natural | None = None

  def __post_init__(self):
    timesteps = self.start_step + 1
    require(self.steps <= timesteps, "steps", self.steps, f"is more than the {timesteps} timesteps from start-step")
    overlap = self.tile_overlap
    require(overlap is None or overlap < self.tile_size, "tile_overlap", overlap, f"must be 0 to {self.tile_size - 1}")

  @property
  def overlap(self) -> int:
    """`tile_overlap`, or what None stands for."""
    return min(32, self.tile_size // 2) if self.tile_overlap is None else self.tile_overlap

  def require_within(self, diffusion: DiffusionConfig, field: str) -> None:
    """Raises UserError, which calls `start_step` by the name `field`, if sampling starts beyond the forward process."""
    last = diffusion.steps - 1
    require(self.start_step <= last, field, self.start_step, f"must be at most {last}, the diffusion's last timestep")


def stablesr_512() -> ModelConfig:
  """The published 512 model, and by its layout also Turbo and the face model."""
  return ModelConfig()


def stablesr_768v() -> ModelConfig:
  """The published 768 model: v-prediction; no CFW was trained for it."""
  return ModelConfig(autoencoder=AutoencoderConfig(cfw=False), diffusion=DiffusionConfig(prediction="v"))


def tiny() -> ModelConfig:
  """The same family, small enough to ship and to run fast on a CPU: the embedded model."""
  return ModelConfig(
    unet=UNetConfig(
      channels=64,
      channel_multipliers=(1, 2, 2),
      blocks_per_level=1,
      attention_levels=(2,),
      head_channels=32,
      context_dim=64,
      latent_channels=16,
      structure_channels=64,
      sft_hidden_channels=64,
      norm_groups=8,
    ),
    time_aware_encoder=TimeAwareEncoderConfig(
      channels=64,
      channel_multipliers=(1, 2, 2),
      blocks_per_level=1,
      attention_levels=(2,),
      latent_channels=16,
      out_channels=64,
      norm_groups=8,
    ),
    autoencoder=AutoencoderConfig(
      channels=32,
      channel_multipliers=(1, 1, 2),
      blocks_per_level=1,
      latent_channels=16,
      attention=False,
      norm_groups=1,
      cfw_growth=16,
    ),
    text_encoder=None,
    # Of nearly pure noise, eps says next to nothing about the picture, and a small network's error drowns it.
    diffusion=DiffusionConfig(prediction="v"),
  )


NAMED = {"stablesr_512": stablesr_512, "stablesr_768v": stablesr_768v, "tiny": tiny}

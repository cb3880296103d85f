"""Frozen dataclasses that name every size of the system.

An architecture (`ModelConfig`) is written into a converted model's `model.json`; how it is computed
(`ComputeConfig`) is chosen anew on each machine; how a picture is sampled (`SamplingConfig`) has its defaults
in the model and may be overridden on the command line.
"""

import dataclasses
import typing
from typing import Any, Literal

from stablesr_jax.errors import UserError

Conditioning = Literal["sft", "add", "none"]
Prediction = Literal["eps", "v"]
AttentionImplementation = Literal["auto", "cudnn", "xla", "chunked"]


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
  """How networks are computed; changes speed and rounding, never the parameters.

  Attributes:
    dtype: of activations and matrix products, "float32" or "bfloat16". Norms, softmax and the sampler stay float32.
    attention: "cudnn" (flash attention on GPU), "xla" (scores in memory), "chunked" (scores of a few queries at a
      time), or "auto": cudnn where it can run, otherwise chunked.
    remat: recompute each block's activations in the backward pass instead of keeping them (training).
  """

  dtype: Literal["float32", "bfloat16"] = "float32"
  attention: AttentionImplementation = "auto"
  remat: bool = False

  @property
  def jax_dtype(self):
    import jax.numpy as jnp  # Late: reading settings needs no JAX.

    return jnp.dtype(self.dtype)


@dataclasses.dataclass(frozen=True)
class UNetConfig:
  """Stable Diffusion's denoising UNet (defaults: 2.1), with what steers it in every residual block (3.1).

  Attributes:
    attention_levels: levels with transformer blocks; the middle block always has one.
    conditioning: "sft" (the paper), "add" (the ablation: the encoder's map is added), "none" (plain Stable Diffusion).
    structure_channels: channels of the time-aware encoder's maps.
    norm_groups: of every GroupNorm. Narrow networks need fewer than 32: groups of one or two channels forget how
      bright and how strong each feature is.
  """

  channels: int = 320
  channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)
  blocks_per_level: int = 2
  attention_levels: tuple[int, ...] = (0, 1, 2)
  head_channels: int = 64
  context_dim: int = 1024
  latent_channels: int = 4
  conditioning: Conditioning = "sft"
  structure_channels: int = 256
  sft_hidden_channels: int = 128
  norm_groups: int = 32


@dataclasses.dataclass(frozen=True)
class TimeAwareEncoderConfig:
  """The trainable encoder of the low-resolution latent (3.1, appendix A).

  Attributes:
    time_aware: False is the paper's ablation: no time embedding anywhere in the encoder.
    norm_groups: of every GroupNorm.
  """

  channels: int = 256
  channel_multipliers: tuple[int, ...] = (1, 1, 2, 2)
  blocks_per_level: int = 2
  attention_levels: tuple[int, ...] = (0, 1, 2)
  heads: int = 4
  latent_channels: int = 4
  out_channels: int = 256
  time_aware: bool = True
  norm_groups: int = 32


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
  """The KL autoencoder; with `cfw`, controllable feature wrapping in its decoder (3.2).

  Attributes:
    scale_factor: the diffusion's latent is `scale_factor * z`.
    attention: whether all pixels of a latent attend to each other in the middle of encoder and decoder; without it
      the cost grows only linearly with the picture.
    norm_groups: of every GroupNorm.
    cfw: whether the decoder has CFW blocks.
    cfw_growth, cfw_blocks: growth channels and number of the RRDB blocks in each.
  """

  channels: int = 128
  channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)
  blocks_per_level: int = 2
  latent_channels: int = 4
  scale_factor: float = 0.18215
  attention: bool = True
  norm_groups: int = 32
  cfw: bool = True
  cfw_growth: int = 32
  cfw_blocks: int = 2

  @property
  def downsampling(self) -> int:
    """Pixels of the image for each latent pixel, along a side."""
    return 2 ** (len(self.channel_multipliers) - 1)


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
  """OpenCLIP's text tower (defaults: ViT-H/14), read out after `layers_used` of its layers."""

  vocabulary: int = 49408
  context_length: int = 77
  width: int = 1024
  layers: int = 23
  heads: int = 16


@dataclasses.dataclass(frozen=True)
class RRDBNetConfig:
  """Real-ESRGAN's generator (defaults: x4plus), used as a pre-cleaner."""

  features: int = 64
  blocks: int = 23
  growth: int = 32
  scale: int = 4


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
  """The patch discriminator of the autoencoder's and CFW's training (defaults: 70x70 pixels a patch).

  Attributes:
    layers: strided convolutions, each of which halves the resolution.
    max_multiplier: the widest layer has this many times `width` channels.
  """

  width: int = 64
  layers: int = 3
  max_multiplier: int = 8


@dataclasses.dataclass(frozen=True)
class LPIPSConfig:
  """The perceptual distance's VGG16, `width` channels in its first stage and 8 times as many in its last."""

  width: int = 64


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
  """The forward process and what the network predicts."""

  steps: int = 1000
  beta_start: float = 0.00085
  beta_end: float = 0.0120
  prediction: Prediction = "eps"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A whole StableSR model. Parts that are None are absent: a model without a text tower still has its null prompt."""

  unet: UNetConfig | None = UNetConfig()
  time_aware_encoder: TimeAwareEncoderConfig | None = TimeAwareEncoderConfig()
  autoencoder: AutoencoderConfig | None = AutoencoderConfig()
  text_encoder: TextEncoderConfig | None = TextEncoderConfig()
  precleaner: RRDBNetConfig | None = None
  diffusion: DiffusionConfig = DiffusionConfig()


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How a picture is restored; the defaults are the paper's.

  Attributes:
    sampler: "ddpm" (ancestral) or "ddim" (deterministic unless `eta` > 0).
    steps: respaced denoising steps, 2 to 1000.
    start_step: timestep at which the noised LR latent starts; 999 is the paper's. Lower keeps more of the input.
    eta: DDIM's noise, 0 to 1.
    guidance_scale: s of eq. 8; 1 is no guidance.
    prompt, negative_prompt: "" is the null prompt.
    fidelity_weight: w of CFW in [0, 1]: 0 is most generative, 1 keeps closest to the input.
    color_fix: colour correction against the enlarged input (3.3): "adain", "wavelet" or "none".
    tile_size, tile_overlap: of aggregation sampling, in latent pixels.
  """

  sampler: Literal["ddpm", "ddim"] = "ddpm"
  steps: int = 200
  start_step: int = 999
  eta: float = 0.0
  guidance_scale: float = 1.0
  prompt: str = ""
  negative_prompt: str = ""
  fidelity_weight: float = 0.5
  color_fix: Literal["adain", "wavelet", "none"] = "adain"
  tile_size: int = 64
  tile_overlap: int = 32

  def __post_init__(self):
    def check(ok: bool, field: str, wanted: str):
      if not ok:
        raise UserError(f"{field.replace('_', '-')} {getattr(self, field)!r}: {wanted}")

    check(self.sampler in ("ddpm", "ddim"), "sampler", "choose ddpm or ddim")
    check(2 <= self.steps <= 1000, "steps", "must be 2 to 1000")
    check(0 < self.start_step <= 999, "start_step", "must be 1 to 999")
    check(
      self.steps <= self.start_step + 1, "steps", f"is more than the {self.start_step + 1} timesteps from start-step"
    )
    check(0 <= self.eta <= 1, "eta", "must be 0 to 1")
    check(self.guidance_scale >= 0, "guidance_scale", "must not be negative")
    check(0 <= self.fidelity_weight <= 1, "fidelity_weight", "must be 0 to 1")
    check(self.color_fix in ("adain", "wavelet", "none"), "color_fix", "choose adain, wavelet or none")
    check(self.tile_size > 0 and self.tile_size % 8 == 0, "tile_size", "must be a multiple of 8 latent pixels")
    check(0 <= self.tile_overlap < self.tile_size, "tile_overlap", f"must be 0 to {self.tile_size - 1}")


def stablesr_512() -> ModelConfig:
  """The published 512 model, and by its layout also Turbo and the face model."""
  return ModelConfig()


def stablesr_768v() -> ModelConfig:
  """The published 768 model: v-prediction; no CFW was trained for it."""
  return ModelConfig(autoencoder=AutoencoderConfig(cfw=False), diffusion=DiffusionConfig(prediction="v"))


def small() -> ModelConfig:
  """The published architecture at small width, as the reference answers have it (no text tower)."""
  return ModelConfig(
    unet=UNetConfig(channels=32, head_channels=16, context_dim=64, structure_channels=32),
    time_aware_encoder=TimeAwareEncoderConfig(channels=32, out_channels=32),
    autoencoder=AutoencoderConfig(channels=32),
    text_encoder=None,
  )


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


NAMED = {"stablesr_512": stablesr_512, "stablesr_768v": stablesr_768v, "small": small, "tiny": tiny}


def to_json(config: Any) -> dict[str, Any]:
  """A dataclass as plain JSON values."""
  return dataclasses.asdict(config)


def from_json(cls: type, values: Any, where: str = "model.json") -> Any:
  """The dataclass `cls` from plain JSON values; fields that are left out keep their defaults.

  Raises:
    UserError: a key is unknown or a value does not fit its field; the message names the key.
  """
  if not isinstance(values, dict):
    raise UserError(f"{where}: expected an object, found {type(values).__name__}")
  hints = typing.get_type_hints(cls)
  arguments = {}
  for key, value in values.items():
    if key not in hints:
      raise UserError(f"{where}: unknown key {key!r} (known: {', '.join(hints)})")
    nested = [t for t in (hints[key], *typing.get_args(hints[key])) if dataclasses.is_dataclass(t)]
    if nested and value is not None:
      value = from_json(typing.cast(type, nested[0]), value, f"{where}: {key}")
    elif isinstance(value, list):
      value = tuple(value)
    if not _fits(value, hints[key]):
      raise UserError(f"{where}: {key}: {value!r} is not {_describe(hints[key])}")
    arguments[key] = value
  return cls(**arguments)


def _fits(value: Any, hint: Any) -> bool:
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is Literal:
    return value in args
  if origin is tuple:
    return isinstance(value, tuple) and all(_fits(v, args[0]) for v in value)
  if origin is dict:
    return isinstance(value, dict) and all(_fits(v, args[1]) for v in value.values())
  if args:  # a union
    return any(_fits(value, a) for a in args)
  if hint is float:
    return isinstance(value, int | float) and not isinstance(value, bool)
  if hint is int:
    return isinstance(value, int) and not isinstance(value, bool)
  return isinstance(value, hint)


def _describe(hint: Any) -> str:
  if typing.get_origin(hint) is Literal:
    return "one of " + ", ".join(map(repr, typing.get_args(hint)))
  return getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint)

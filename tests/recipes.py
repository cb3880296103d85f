"""The recipes of configs/ at a size that takes seconds."""

import dataclasses
import importlib
from typing import Any

from stablesr_jax.config import (
  ComputeConfig,
  DiscriminatorConfig,
  ModelConfig,
  SamplingConfig,
  TimeAwareEncoderConfig,
  UNetConfig,
)
from stablesr_jax.data import DataConfig, SourceConfig
from stablesr_jax.training.config import (
  AutoencoderStage,
  CfwDataStage,
  CfwStage,
  OneStepStage,
  OptimizerConfig,
  TrainConfig,
  ValidationConfig,
)
from tests.micro import AUTOENCODER, MODEL, UNET

CROP = 64

# In the folder that train.py is run in.
PAIRS = SourceConfig("pairs", ("pictures/hr",), ("pictures/lr",))
PICTURES = SourceConfig("folder", ("pictures/hr",))


def micro(name: str) -> TrainConfig:
  """The recipe configs/NAME.py, its stage, optimiser and paths as they are, its sizes micro, its images in pairs."""
  config = importlib.import_module(f"configs.{name}").get_config()
  validation = config.validation
  if validation is not None:
    sampling = dataclasses.replace(validation.sampling, steps=2)
    data = _micro_data(validation.data)
    validation = dataclasses.replace(validation, data=data, images=2, every=2, sampling=sampling)
  return dataclasses.replace(
    config,
    stage=_micro_stage(config.stage),
    model=_micro_model(config.model),
    data=_micro_data(config.data),
    steps=2,
    batch_size=2,
    log_every=1,
    checkpoint_every=2,
    sampling=dataclasses.replace(config.sampling, steps=min(2, config.sampling.steps)),
    validation=validation,
  )


def source_of(config: TrainConfig) -> list[str]:
  """Names of the recipes whose results a recipe uses."""
  paths = [*config.data.sources[0].path, config.model_path or ""]
  return [path.split("/")[1] for path in paths if path.startswith("runs/")]


def _micro_stage(stage: Any) -> Any:
  if isinstance(stage, CfwDataStage):
    return dataclasses.replace(stage, count=4)
  if isinstance(stage, AutoencoderStage | CfwStage | OneStepStage):
    return dataclasses.replace(stage, perceptual_weight=0.0, lpips=None, discriminator=DiscriminatorConfig(4, 2))
  return stage


def _micro_model(model: ModelConfig) -> ModelConfig:
  autoencoder = model.autoencoder and dataclasses.replace(AUTOENCODER, cfw=model.autoencoder.cfw)
  unet = model.unet and dataclasses.replace(UNET, conditioning=model.unet.conditioning)
  return dataclasses.replace(MODEL, autoencoder=autoencoder, unet=unet, diffusion=model.diffusion)


def _micro_data(data: DataConfig) -> DataConfig:
  sources = data.sources if data.sources[0].kind == "cfw_set" else (PAIRS,)
  return dataclasses.replace(data, sources=sources, crop_size=CROP, scale_range=(1.0, 1.0), workers=0, prefetch=1)


def restorer(source: SourceConfig = PAIRS, **changes: Any) -> TrainConfig:
  """Twenty steps of the restorer from models/prior, large enough to be seen in the loss."""
  optimizer = OptimizerConfig(learning_rate=3e-4, clip_norm=1.0, ema_decay=0.9)
  base = dataclasses.replace(
    micro("tiny_restorer"), model_path="models/prior", optimizer=optimizer, steps=20, batch_size=8, checkpoint_every=20
  )
  data = dataclasses.replace(base.data, sources=(source,))
  model = dataclasses.replace(base.model, diffusion=MODEL.diffusion)  # as models/prior predicts
  return dataclasses.replace(base, data=data, model=model, validation=None, **changes)


CROPS = SourceConfig("pairs", ("crops/hr",), ("crops/lr",))


def learned(stage: Any, **changes: Any) -> TrainConfig:
  """A run that learns four pictures by heart."""
  # Two levels, and wide enough to learn.
  unet = UNetConfig(
    channels=64,
    channel_multipliers=(1, 2),
    blocks_per_level=1,
    attention_levels=(1,),
    head_channels=32,
    context_dim=16,
    structure_channels=32,
    sft_hidden_channels=32,
    norm_groups=4,
  )
  encoder = TimeAwareEncoderConfig(
    channels=16,
    channel_multipliers=(1, 2),
    blocks_per_level=1,
    attention_levels=(1,),
    out_channels=32,
    norm_groups=4,
  )
  autoencoder = dataclasses.replace(AUTOENCODER, channels=32, norm_groups=4, cfw=False)
  model = dataclasses.replace(MODEL, autoencoder=autoencoder, unet=unet, time_aware_encoder=encoder)
  data = DataConfig((CROPS,), crop_size=64, flips=False, prefetch=1)
  optimizer = OptimizerConfig(
    learning_rate=2e-3, schedule="cosine", warmup_steps=20, weight_decay=0.0, clip_norm=1.0, ema_decay=0.99
  )
  return dataclasses.replace(
    TrainConfig(stage, data, model, optimizer=optimizer, compute=ComputeConfig(), log_every=20, checkpoint_every=1_000),
    validation=ValidationConfig(data, images=4, every=1_000, sampling=SamplingConfig(steps=20)),
    **changes,
  )

"""Rules between the settings of a training run."""

from typing import Any

import pytest

from stablesr_jax.config import DiscriminatorConfig, ModelConfig
from stablesr_jax.data import DataConfig, SourceConfig
from stablesr_jax.errors import UserError
from stablesr_jax.training.config import (
  AutoencoderStage,
  CfwStage,
  OneStepStage,
  PriorStage,
  RestorerStage,
  TrainConfig,
  ValidationConfig,
)

FOLDER = SourceConfig("folder", ("photos",))


def config(stage: Any, crop: int = 512, **changes: Any) -> TrainConfig:
  return TrainConfig(stage, DataConfig((FOLDER,), crop_size=crop), **changes)


@pytest.mark.parametrize(
  "stage, crop, message",
  [
    (AutoencoderStage(), 500, "must be a multiple of 8, by the levels"),
    (CfwStage(), 500, "must be a multiple of 8, by the levels"),
    (PriorStage(), 480, "must be a multiple of 64, by the levels"),
    (RestorerStage(), 480, "must be a multiple of 64, by the levels"),
    (OneStepStage(), 480, "must be a multiple of 64, by the levels"),
    (CfwStage(discriminator=DiscriminatorConfig(layers=5)), 64, "must be at least 96 for the discriminator"),
    (AutoencoderStage(adversarial_weight=0.0), 8, "must be at least 16 for LPIPS"),
  ],
)
def test_a_crop_that_the_networks_cannot_take(stage, crop, message):
  with pytest.raises(UserError, match=f"^data.crop-size {crop}: {message}"):
    config(stage, crop)


def test_a_crop_for_validation_that_the_networks_cannot_take():
  validation = ValidationConfig(DataConfig((FOLDER,), crop_size=100))
  with pytest.raises(UserError, match="^validation.data.crop-size 100: must be a multiple of 64"):
    config(RestorerStage(), validation=validation)


def test_crops_as_small_as_the_stage_can_take():
  assert config(AutoencoderStage(adversarial_weight=0.0), 16).data.crop_size == 16
  assert config(AutoencoderStage(adversarial_weight=0.0, perceptual_weight=0.0), 8).data.crop_size == 8
  assert config(CfwStage(), 24).data.crop_size == 24
  assert config(AutoencoderStage(), 24, model=ModelConfig(unet=None)).data.crop_size == 24

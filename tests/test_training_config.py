"""Rules between the settings of a training run."""

from typing import Any

import pytest

from stablesr_jax.config import DiscriminatorConfig, ModelConfig, SamplingConfig
from stablesr_jax.data import DataConfig, SourceConfig
from stablesr_jax.degradation.settings import DegradationSettings
from stablesr_jax.errors import UserError
from stablesr_jax.training.config import (
  AutoencoderStage,
  CfwDataStage,
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


@pytest.mark.parametrize("stage", [RestorerStage, CfwDataStage, OneStepStage])
def test_two_scales_that_contradict_each_other(stage):
  with pytest.raises(UserError, match="^data.scale 4: must be 2, stage.degradation's$"):
    config(stage(degradation=DegradationSettings(scale=2)))
  data = DataConfig((FOLDER,), scale=2)
  assert TrainConfig(stage(degradation=DegradationSettings(scale=2)), data).data.scale == 2
  with pytest.raises(UserError, match="^validation.data.scale 2: must be 4, stage.degradation's$"):
    config(stage(), validation=ValidationConfig(data))


def test_the_scale_of_pairs_is_the_datas():
  pairs = DataConfig((SourceConfig("pairs", ("hr",), ("lr",)),), scale=2)
  assert TrainConfig(RestorerStage(), pairs).data.scale == 2


@pytest.mark.parametrize(
  "change, name",
  [
    ({"prompt": "Good."}, "prompt 'Good.'"),
    ({"negative_prompt": "Bad."}, "negative-prompt 'Bad.'"),
    ({"guidance_scale": 7.0}, "guidance-scale 7.0"),
  ],
)
def test_training_takes_no_prompts(change, name):
  sampling = SamplingConfig(**change)
  for stage in (CfwDataStage(), OneStepStage()):
    with pytest.raises(UserError, match=f"^sampling.{name}: must be left as it is"):
      config(stage, sampling=sampling)
  with pytest.raises(UserError, match=f"^stage.teacher.{name}: "):
    config(OneStepStage(teacher=sampling))
  with pytest.raises(UserError, match=f"^validation.sampling.{name}: "):
    config(RestorerStage(), validation=ValidationConfig(DataConfig((FOLDER,)), sampling=sampling))
  assert config(RestorerStage(), sampling=sampling).sampling == sampling  # what the model carries

"""The embedded model's last stage: a single evaluation, trained end to end; its result is the embedded model.

    python train.py --config configs/tiny_one_step.py --workdir runs/tiny_one_step

Any machine: 2 CPU cores and 4 GB of memory. Not in the paper, whose restorer is trained on latents and takes 200 steps.
"""

import dataclasses

from configs import tiny_restorer
from stablesr_jax.config import SamplingConfig
from stablesr_jax.degradation import PRESETS, SharpenSettings
from stablesr_jax.training.config import OneStepStage, TrainConfig


def get_config() -> TrainConfig:
  base = tiny_restorer.get_config()
  assert base.validation is not None
  degradation = dataclasses.replace(PRESETS["stablesr_512"], sharpen=SharpenSettings(target=False))
  return dataclasses.replace(
    base,
    stage=OneStepStage(degradation=degradation, trained="all", perceptual_weight=0.0, adversarial_weight=0.0),
    model_path="runs/tiny_cfw/model",
    data=dataclasses.replace(base.data, crop_size=192),
    sampling=SamplingConfig(
      sampler="ddim",
      steps=1,
      start_step=250,
      start_noise=0.0,
      fidelity_weight=1.0,
      color_fix="none",
      tile_size=72,
      tile_overlap=16,
    ),
    batch_size=4,
  )

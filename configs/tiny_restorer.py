"""The embedded model's time-aware encoder and SFT, the third of its four stages (the paper's first).

    python train.py --config configs/tiny_restorer.py --workdir runs/tiny_restorer

Any machine: 2 CPU cores and 4 GB of memory. As in the paper but for the size: crops of 128 in place of 512.
"""

import dataclasses

from configs import tiny_prior
from stablesr_jax.config import SamplingConfig
from stablesr_jax.degradation import PRESETS
from stablesr_jax.training.config import RestorerStage, TrainConfig


def get_config() -> TrainConfig:
  base = tiny_prior.get_config()
  return dataclasses.replace(
    base,
    stage=RestorerStage(degradation=PRESETS["stablesr_512"]),
    model_path="runs/tiny_prior/model",
    # Few steps from a little noise: from more, a model of this size strays from the picture and gains no detail; from
    # less, noise and blocks stay. Its colours stray slowly over the picture, which AdaIN's means do not see.
    sampling=SamplingConfig(
      sampler="ddim",
      steps=4,
      start_step=120,
      fidelity_weight=0.05,
      color_fix="wavelet",
      tile_size=72,
      tile_overlap=16,
    ),
    steps=1_000,
  )

"""The set that the embedded model's CFW is trained on.

    python train.py --config configs/tiny_cfw_data.py --workdir runs/tiny_cfw_data

Any machine: 2 CPU cores and 4 GB of memory. The paper makes 100,000 samples of 512x512 with 200 steps, and its CFW
leads back to sharpened photographs as the restorer does; here w = 1 is to be faithful to the photographs as they are.

Time and result: 14 minutes for 1,024 samples on two CPU cores.
"""

import dataclasses

from stablesr_jax import config as sizes
from stablesr_jax.config import ComputeConfig, SamplingConfig
from stablesr_jax.data import DataConfig, SourceConfig
from stablesr_jax.degradation import PRESETS, SharpenSettings
from stablesr_jax.training.config import CfwDataStage, TrainConfig

TRAIN = (SourceConfig("packed", ("photos/tiles_train.array_record",)),)


def get_config() -> TrainConfig:
  degradation = dataclasses.replace(PRESETS["stablesr_512"], sharpen=SharpenSettings(target=False))
  return TrainConfig(
    stage=CfwDataStage(degradation=degradation, count=1_024),
    model=sizes.tiny(),
    model_path="runs/tiny_restorer/model",
    sampling=SamplingConfig(
      sampler="ddim",
      steps=4,
      start_step=120,
      fidelity_weight=0.05,
      color_fix="wavelet",
      tile_size=72,
      tile_overlap=16,
    ),
    # The autoencoder's norms look at the whole picture: in small crops they see other means than in a photograph, and
    # what is learned there lets colours stray. Soft photographs, since CFW else adds a grain to them.
    data=DataConfig(TRAIN, crop_size=256, scale_range=(0.5, 2.5)),
    batch_size=8,
    seed=1,  # other crops and degradations than in the restorer's training
    compute=ComputeConfig(),
  )

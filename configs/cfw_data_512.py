"""The set that CFW is trained on, made by the trained 512 restorer: 100,000 samples of 512x512, 200 steps each.

    python train.py --config configs/cfw_data_512.py --workdir runs/cfw_data_512

Hardware: any number of devices of 16 GiB or more; the work is 100,000 x 200 steps of the denoiser, so use all there
are. It takes about 46 GB of disk. As in the paper, except that each sample has its own degradation.

Time and result: never run at full size; by arithmetic about 14 hours of one H100.
"""

from stablesr_jax import config as sizes
from stablesr_jax.config import ComputeConfig
from stablesr_jax.data import DataConfig, SourceConfig
from stablesr_jax.degradation import PRESETS
from stablesr_jax.training.config import CfwDataStage, TrainConfig

SOURCES = (SourceConfig("folder", ("data/DIV2K", "data/DIV8K", "data/Flickr2K", "data/OST", "data/FFHQ_5k")),)


def get_config() -> TrainConfig:
  return TrainConfig(
    stage=CfwDataStage(degradation=PRESETS["stablesr_512"], count=100_000),
    model=sizes.stablesr_512(),
    model_path="runs/stablesr_512/model",
    data=DataConfig(SOURCES, crop_size=512, workers=16),
    batch_size=64,
    seed=1,  # other crops and degradations than in the restorer's training
    compute=ComputeConfig(dtype="bfloat16"),
  )

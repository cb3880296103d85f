"""StableSR Turbo: 4 steps. No training is needed: the 512 model's encoder and SFT work on SD-Turbo's UNet.

    python convert_weights.py --input stablesr_turbo.ckpt vqgan_cfw_00011.ckpt --output models/stablesr_turbo
    python infer.py --model models/stablesr_turbo --input photo.jpg --output restored.png

This recipe is for training them further on SD-Turbo (the paper does not), starting from that model:

    python train.py --config configs/stablesr_turbo.py --workdir runs/stablesr_turbo

Hardware: as stablesr_512.

Time and result: never run at full size; by arithmetic about 1.2 hours of one H100 (2,000 of the 16,500 steps of
stablesr_512). The paper reports of the untrained combination that it takes 0.83 s instead of 15.16 s for a picture on a
V100, and no other figures.
"""

from stablesr_jax import config as sizes
from stablesr_jax.config import ComputeConfig, SamplingConfig
from stablesr_jax.data import DataConfig, SourceConfig
from stablesr_jax.degradation import PRESETS
from stablesr_jax.training.config import OptimizerConfig, RestorerStage, TrainConfig, ValidationConfig

SOURCES = (SourceConfig("folder", ("data/DIV2K", "data/DIV8K", "data/Flickr2K", "data/OST", "data/FFHQ_5k")),)
VALIDATION = (SourceConfig("folder", ("data/validation",)),)


def get_config() -> TrainConfig:
  return TrainConfig(
    stage=RestorerStage(degradation=PRESETS["stablesr_512"]),
    model=sizes.stablesr_512(),
    model_path="models/stablesr_turbo",
    sampling=SamplingConfig(steps=4),
    data=DataConfig(SOURCES, crop_size=512, workers=16),
    steps=2_000,
    batch_size=192,
    optimizer=OptimizerConfig(learning_rate=5e-5, ema_decay=0.9999),
    compute=ComputeConfig(dtype="bfloat16", remat=True),
    checkpoint_every=500,
    keep_every=5_000,
    validation=ValidationConfig(
      DataConfig(VALIDATION, crop_size=512, flips=False), images=8, every=1_000, sampling=SamplingConfig(steps=4)
    ),
  )

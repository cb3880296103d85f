"""Controllable feature wrapping for the 512 model, the paper's second stage; all else is frozen.

    python convert_weights.py --input vgg16-397923af.pth vgg.pth --output models/lpips
    python train.py --config configs/cfw_data_512.py --workdir runs/cfw_data_512
    python train.py --config configs/cfw_512.py --workdir runs/cfw_512

Hardware: see docs/training.md for memory by batch; 8 samples are an update. As in the paper, except: bfloat16
computation, a discriminator with GroupNorm, the adaptive weight measured at the image. Train without LPIPS by
`--stage.perceptual-weight 0`.

Time and result: never run at full size; by arithmetic about 8 hours of one H100 without LPIPS. The paper reports on
DIV2K's validation pairs PSNR 22.68, 23.26 and 24.17, LPIPS 0.3393, 0.3114 and 0.3003, MUSIQ 65.72, 65.92 and 59.46 for
w = 0, 0.5 and 0.75.
"""

from stablesr_jax import config as sizes
from stablesr_jax.config import ComputeConfig
from stablesr_jax.data import DataConfig, SourceConfig
from stablesr_jax.training.config import CfwStage, OptimizerConfig, TrainConfig, ValidationConfig

SOURCES = (SourceConfig("cfw_set", ("runs/cfw_data_512",)),)


def get_config() -> TrainConfig:
  return TrainConfig(
    stage=CfwStage(perceptual_weight=1.0, lpips="models/lpips", adversarial_weight=0.025, adversarial_start=501),
    model=sizes.stablesr_512(),
    model_path="runs/stablesr_512/model",
    data=DataConfig(SOURCES, crop_size=512, workers=16),
    steps=100_000,
    batch_size=8,
    optimizer=OptimizerConfig(learning_rate=5e-5, betas=(0.5, 0.9), weight_decay=0.0),
    compute=ComputeConfig(dtype="bfloat16", remat=True),
    checkpoint_every=500,
    keep_every=5_000,
    validation=ValidationConfig(DataConfig(SOURCES, crop_size=512), images=8, every=5_000),
  )

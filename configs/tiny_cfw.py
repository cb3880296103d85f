"""The embedded model's CFW, the last of its four stages (the paper's second); its result is the embedded model.

    python train.py --config configs/tiny_cfw.py --workdir runs/tiny_cfw

Any machine: 2 CPU cores and 4 GB of memory. As in the paper but for the size, and with L1 alone: w = 1 is to be
faithful (and LPIPS's weights are not free to ship).

Time and result: by arithmetic two hours for 2,800 steps on two CPU cores. The embedded model's last run of it, 850
steps from an earlier CFW and from two sets, took 37 minutes; w = 1 reached a PSNR of 32.1 dB where bicubic enlargement
is at 30.8, SSIM 0.863 where that is at 0.837.
"""

from stablesr_jax import config as sizes
from stablesr_jax.config import ComputeConfig, SamplingConfig
from stablesr_jax.data import DataConfig, SourceConfig
from stablesr_jax.training.config import CfwStage, OptimizerConfig, TrainConfig, ValidationConfig

SOURCES = (SourceConfig("cfw_set", ("runs/tiny_cfw_data",)),)


def get_config() -> TrainConfig:
  return TrainConfig(
    stage=CfwStage(perceptual_weight=0.0, adversarial_weight=0.0),
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
    data=DataConfig(SOURCES, crop_size=256),
    steps=2_800,
    batch_size=2,
    optimizer=OptimizerConfig(
      learning_rate=7e-4,
      schedule="cosine",
      warmup_steps=50,
      betas=(0.9, 0.95),
      weight_decay=0.0,
      clip_norm=1.0,
      ema_decay=0.99,
    ),
    compute=ComputeConfig(),
    log_every=20,
    checkpoint_every=200,
    validation=ValidationConfig(DataConfig(SOURCES, crop_size=256), images=6, every=700),
  )

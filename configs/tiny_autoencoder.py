"""The embedded model's autoencoder, the first of its four stages.

    python examples/training_photographs.py --help     # makes photos/
    python train.py --config configs/tiny_autoencoder.py --workdir runs/tiny_autoencoder

Any machine: 2 CPU cores and 4 GB of memory. Not in the paper, which starts from Stable Diffusion's autoencoder:
downsampling 4 and 16 channels instead of 8 and 4, a quarter of the width, norms of a single group, no attention; no
LPIPS, whose weights are not free to ship.

Time and result: 17 minutes for 2,000 steps on two CPU cores. The embedded model's went on for 700 steps from such a
run with a KL weight of 1e-5, in 6 minutes, and reached a PSNR of 34.5 dB, SSIM 0.935, on the validation photographs.
"""

from stablesr_jax import config as sizes
from stablesr_jax.config import ComputeConfig
from stablesr_jax.data import DataConfig, SourceConfig
from stablesr_jax.training.config import AutoencoderStage, OptimizerConfig, TrainConfig, ValidationConfig

TRAIN = (SourceConfig("packed", ("photos/tiles_train.array_record",)),)
VALIDATION = (SourceConfig("packed", ("photos/tiles_validation.array_record",)),)


def get_config() -> TrainConfig:
  return TrainConfig(
    # Latents as noisy as that carry no grain that the prior could only guess, and the decoder forgives its errors.
    stage=AutoencoderStage(kl_weight=1e-2, perceptual_weight=0.0, adversarial_weight=0.0),
    model=sizes.tiny(),
    data=DataConfig(TRAIN, crop_size=64, scale_range=(0.5, 1.0)),
    steps=2_000,
    batch_size=16,
    optimizer=OptimizerConfig(
      learning_rate=1e-3,
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
    validation=ValidationConfig(DataConfig(VALIDATION, crop_size=256, flips=False), images=6, every=500),
  )

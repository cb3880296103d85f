"""StableSR 512 made to need a single evaluation: time-aware encoder, SFT and CFW, trained end to end in pixels.

    python convert_weights.py --input vgg16-397923af.pth vgg.pth --output models/lpips
    python train.py --config configs/stablesr_512_one_step.py --workdir runs/stablesr_512_one_step

Hardware: an update is 32 samples, each of which goes through encoder, UNet and decoder and back;
`--optimizer.accumulation` divides it. Train without LPIPS by `--stage.perceptual-weight 0`.

Time and result: never run at full size.

Not in the paper: its restorer is trained on latents and takes 200 steps. The prior and the autoencoder stay frozen.
"""

from stablesr_jax import config as sizes
from stablesr_jax.config import ComputeConfig, SamplingConfig
from stablesr_jax.data import DataConfig, SourceConfig
from stablesr_jax.degradation import PRESETS
from stablesr_jax.training.config import OneStepStage, OptimizerConfig, TrainConfig, ValidationConfig

SOURCES = (SourceConfig("folder", ("data/DIV2K", "data/DIV8K", "data/Flickr2K", "data/OST", "data/FFHQ_5k")),)
VALIDATION = (SourceConfig("folder", ("data/validation",)),)


def get_config() -> TrainConfig:
  return TrainConfig(
    stage=OneStepStage(
      degradation=PRESETS["stablesr_512"],
      trained="steering",
      perceptual_weight=1.0,
      lpips="models/lpips",
      adversarial_weight=0.1,
      adversarial_start=301,
    ),
    model=sizes.stablesr_512(),
    model_path="runs/cfw_512/model",
    sampling=SamplingConfig(steps=1, start_step=250, start_noise=0.0, fidelity_weight=0.5),
    data=DataConfig(SOURCES, crop_size=512, workers=16),
    steps=20_000,
    batch_size=32,
    optimizer=OptimizerConfig(learning_rate=5e-5, betas=(0.5, 0.9), weight_decay=0.0, ema_decay=0.999),
    compute=ComputeConfig(dtype="bfloat16", remat=True),
    checkpoint_every=500,
    keep_every=5_000,
    validation=ValidationConfig(DataConfig(VALIDATION, crop_size=512, flips=False), images=8, every=1_000),
  )

"""StableSR 512, the paper's first stage: time-aware encoder and SFT on Stable Diffusion 2.1-base.

    python convert_weights.py --input v2-1_512-ema-pruned.safetensors --output models/sd21_base
    python train.py --config configs/stablesr_512.py --workdir runs/stablesr_512

Hardware: the batch of 192 is divided among all devices and `optimizer.accumulation` parts, and the devices' number
times the parts must divide it. What a device needs for how many samples is in docs/training.md; with 80 GiB devices
set `--optimizer.accumulation` so that 24 samples or fewer fall on each at a time.

Time and result: never run at full size; by arithmetic about 10 hours of one H100. The paper trained on 8 V100 and
reports, with CFW at w = 0.5 and 200 steps, on DIV2K's validation pairs PSNR 23.26, SSIM 0.5726, LPIPS 0.3114, FID
24.44, CLIP-IQA 0.6771 and MUSIQ 65.92.

As in the paper, except: resize factors and orders of the degradation are drawn for each image, so there is no pool of
pairs; bfloat16 computation; an average of the parameters is kept. The data, DIV2K, DIV8K, Flickr2K,
OutdoorSceneTraining and 5,000 faces of FFHQ, are to be put where `SOURCES` says, or `--data.sources.0.path` given.
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
    model_path="models/sd21_base",
    data=DataConfig(SOURCES, crop_size=512, workers=16),
    steps=16_500,  # the paper's 117 epochs
    batch_size=192,
    optimizer=OptimizerConfig(learning_rate=5e-5, ema_decay=0.9999),
    compute=ComputeConfig(dtype="bfloat16", remat=True),
    checkpoint_every=500,
    keep_every=5_000,
    validation=ValidationConfig(
      DataConfig(VALIDATION, crop_size=512, flips=False), images=8, every=1_000, sampling=SamplingConfig(steps=50)
    ),
  )

import dataclasses
import json

import pytest

from stablesr_jax import config as configs
from stablesr_jax.checkpoints.store import Manifest
from stablesr_jax.cli.infer_arguments import Arguments, sampling_of
from stablesr_jax.config import (
  AutoencoderConfig,
  DiffusionConfig,
  ModelConfig,
  SamplingConfig,
  TextEncoderConfig,
  TimeAwareEncoderConfig,
  UNetConfig,
)
from stablesr_jax.errors import UserError
from stablesr_jax.settings import from_json, to_json
from tests.small import small


@pytest.mark.parametrize("name", configs.NAMED)
def test_named_architectures_survive_json(name):
  config = configs.NAMED[name]()
  assert from_json(ModelConfig, json.loads(json.dumps(to_json(config))), "model.json") == config


def test_absent_parts_survive_json():
  config = dataclasses.replace(small(), time_aware_encoder=None, unet=UNetConfig(conditioning="add"))
  assert from_json(ModelConfig, to_json(config), "model.json") == config


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: UNetConfig(norm_groups=48), "norm-groups 48: must divide the 320 channels of a level"),
    (lambda: UNetConfig(channels=32), "head-channels 64: must divide the 32 channels of a level"),
    (lambda: TimeAwareEncoderConfig(heads=3), "heads 3: must divide the 256 channels of a level"),
    (lambda: TimeAwareEncoderConfig(out_channels=40), "norm-groups 32: must divide the 40 channels of a level"),
    (lambda: AutoencoderConfig(scale_factor=1e300), "scale-factor 1e.300: must be less than or equal to 1000000"),
    (lambda: AutoencoderConfig(scale_factor=1e-300), "scale-factor 1e-300: must be greater than or equal to 0.000001"),
    (lambda: AutoencoderConfig(channels=16), "norm-groups 32: must divide the 16 channels of a level"),
    (lambda: TextEncoderConfig(heads=3), "heads 3: must divide the 1024 channels of a level"),
    (lambda: DiffusionConfig(beta_end=0.0001), "beta-end 0.0001: is below beta_start, 0.00085"),
    (lambda: ModelConfig(unet=UNetConfig(latent_channels=8)), "unet.latent-channels 8: must be 4, the autoencoder's"),
    (
      lambda: ModelConfig(time_aware_encoder=TimeAwareEncoderConfig(channel_multipliers=(1, 2), out_channels=256)),
      r"time-aware-encoder.channel-multipliers \(1, 2\): must be of 4 levels, as the UNet's are",
    ),
    (
      lambda: ModelConfig(time_aware_encoder=TimeAwareEncoderConfig(out_channels=128)),
      "unet.structure-channels 256: must be 128, the encoder's out_channels",
    ),
    (lambda: ModelConfig(text_encoder=TextEncoderConfig(width=64)), "text-encoder.width 64: must be 1024"),
  ],
)
def test_sizes_that_do_not_go_together_are_named(make, message):
  with pytest.raises(UserError, match=f"^{message}"):
    make()


@pytest.mark.parametrize(
  "field, value",
  [
    ("sampler", "euler"),
    ("steps", 0),
    ("steps", 1001),
    ("start_step", 0),
    ("eta", 1.5),
    ("guidance_scale", -1),
    ("guidance_scale", float("inf")),
    ("guidance_scale", 1e39),
    ("fidelity_weight", 1.1),
    ("fidelity_weight", float("nan")),
    ("color_fix", "hsv"),
    ("color_fix_weight", 1.5),
    ("tile_size", 0),
    ("tile_size", 60),
    ("tile_overlap", 64),
  ],
)
def test_wrong_sampling_settings_are_named(field, value):
  with pytest.raises(UserError, match=f"^{field.replace('_', '-')} "):
    SamplingConfig(**{field: value})


def test_more_steps_than_timesteps():
  with pytest.raises(UserError, match="more than the 11 timesteps"):
    SamplingConfig(steps=20, start_step=10)


def test_sampling_starts_within_the_forward_process():
  model = ModelConfig(diffusion=DiffusionConfig(steps=500))
  message = "sampling.start-step 999: must be at most 499, the diffusion's last timestep"
  with pytest.raises(UserError, match=f"^{message}"):
    Manifest("short", model)
  assert Manifest("short", model, SamplingConfig(start_step=499)).sampling.steps == 200
  with pytest.raises(UserError, match="^start-step 999: must be at most 499, the diffusion's last timestep$"):
    SamplingConfig().require_within(model.diffusion, "start_step")


def test_the_overlap_of_tiles():
  assert [SamplingConfig(tile_size=size).overlap for size in (96, 64, 32, 8)] == [32, 32, 16, 4]
  assert SamplingConfig(tile_size=64, tile_overlap=48).overlap == 48
  assert SamplingConfig(tile_overlap=0).overlap == 0


@pytest.mark.parametrize("size, own, overlap", [(32, None, 16), (32, 32, 16), (16, 16, 8), (64, 16, 16), (64, 32, 32)])
def test_a_tile_size_is_enough(size, own, overlap):
  arguments = Arguments("photo.jpg", "restored.png", tile_size=size)
  assert sampling_of(arguments, SamplingConfig(tile_size=72, tile_overlap=own)).overlap == overlap
  explicit = dataclasses.replace(arguments, tile_overlap=size)
  with pytest.raises(UserError, match=f"^tile-overlap {size}: must be 0 to {size - 1}$"):
    sampling_of(explicit, SamplingConfig(tile_size=72, tile_overlap=own))


def test_the_null_prompt_is_as_long_as_the_text_encoders():
  assert small().context_length == 77
  assert ModelConfig(text_encoder=TextEncoderConfig(context_length=16)).context_length == 16

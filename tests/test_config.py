import dataclasses
import json

import pytest

from stablesr_jax import config as configs
from stablesr_jax.config import ModelConfig, SamplingConfig, UNetConfig, from_json, to_json


@pytest.mark.parametrize("name", configs.NAMED)
def test_named_architectures_survive_json(name):
  config = configs.NAMED[name]()
  assert from_json(ModelConfig, json.loads(json.dumps(to_json(config)))) == config


def test_absent_parts_survive_json():
  config = dataclasses.replace(configs.small(), time_aware_encoder=None, unet=UNetConfig(conditioning="add"))
  assert from_json(ModelConfig, to_json(config)) == config


@pytest.mark.parametrize(
  "values, message",
  [
    ({"unte": {}}, "unknown key 'unte'"),
    ({"unet": {"channels": "many"}}, "unet: channels: 'many' is not int"),
    ({"unet": {"channels": True}}, "unet: channels: True is not int"),
    ({"unet": {"conditioning": "fast"}}, "is not one of 'sft', 'add', 'none'"),
    ({"unet": {"channel_multipliers": [1, "2"]}}, "channel_multipliers"),
    ({"unet": 3}, "expected an object, found int"),
    ([], "expected an object, found list"),
  ],
)
def test_wrong_json_names_the_key(values, message):
  with pytest.raises(ValueError, match=message):
    from_json(ModelConfig, values)


@pytest.mark.parametrize(
  "field, value",
  [
    ("sampler", "euler"),
    ("steps", 1),
    ("steps", 1001),
    ("start_step", 0),
    ("eta", 1.5),
    ("guidance_scale", -1),
    ("fidelity_weight", 1.1),
    ("color_fix", "hsv"),
    ("tile_size", 0),
    ("tile_size", 60),
    ("tile_overlap", 64),
  ],
)
def test_wrong_sampling_settings_are_named(field, value):
  with pytest.raises(ValueError, match=field.replace("_", "-")):
    SamplingConfig(**{field: value})


def test_more_steps_than_timesteps():
  with pytest.raises(ValueError, match="more than the 11 timesteps"):
    SamplingConfig(steps=20, start_step=10)

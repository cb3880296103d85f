"""The synthetic models, converted as a user converts a published one."""

import dataclasses
import pathlib
from typing import Any

import pytest

from stablesr_jax.checkpoints.convert import convert
from stablesr_jax.checkpoints.store import load_params
from stablesr_jax.config import ModelConfig
from stablesr_jax.models.components import modules
from tests import reference_data


@dataclasses.dataclass
class Converted:
  """A converted model's modules and parameters."""

  config: ModelConfig
  params: dict[str, Any]

  def apply(self, part: str, *args, method: str | None = None, **kwargs):
    return modules(self.config)[part].apply({"params": self.params[part]}, *args, method=method, **kwargs)


def converted(folder: pathlib.Path, *listings: str) -> Converted:
  inputs = [
    reference_data.write_checkpoint(listing, folder / f"{listing.removesuffix('_checkpoint')}.ckpt")
    for listing in listings
  ]
  manifest = convert(inputs, folder / "model")
  parts = [part for part in ("unet", "time_aware_encoder", "autoencoder") if getattr(manifest.architecture, part)]
  return Converted(manifest.architecture, load_params(folder / "model", manifest, parts))


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Converted:
  return converted(tmp_path_factory.mktemp("small"), "small_checkpoint")


@pytest.fixture(scope="session")
def small_cfw(tmp_path_factory) -> Converted:
  return converted(tmp_path_factory.mktemp("small_cfw"), "small_cfw_checkpoint")

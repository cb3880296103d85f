"""The synthetic models, converted as a user converts a published one."""

import dataclasses
import pathlib
from typing import Any

import jax
import pytest

from stablesr_jax.checkpoints.conversion import convert
from stablesr_jax.checkpoints.store import load_params
from stablesr_jax.config import ComputeConfig, ModelConfig
from stablesr_jax.models.components import modules
from tests import reference_data
from tests.small import small as small_architecture

PARTS = ("unet", "time_aware_encoder", "autoencoder")


@dataclasses.dataclass
class Converted:
  """A converted model's modules and parameters."""

  config: ModelConfig
  params: dict[str, Any]

  def apply(self, part: str, *args, method: str | None = None, compute: ComputeConfig = ComputeConfig()):
    module = modules(self.config, compute)[part]
    return jax.jit(lambda params, args: module.apply({"params": params}, *args, method=method))(self.params[part], args)


def converted(
  folder: pathlib.Path, *listings: str, architecture: ModelConfig | None = None, parts: tuple[str, ...] = PARTS
) -> Converted:
  """Writes the listings' synthetic checkpoints, converts them together and loads parts of the result."""
  inputs = [
    reference_data.write_checkpoint(listing, folder / f"{listing.removesuffix('_checkpoint')}.ckpt")
    for listing in listings
  ]
  manifest = convert(inputs, folder / "model", architecture=architecture)
  for path in inputs:
    path.unlink()
  parts = tuple(part for part in parts if getattr(manifest.architecture, part))
  return Converted(manifest.architecture, load_params(folder / "model", manifest, parts))


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Converted:
  return converted(tmp_path_factory.mktemp("small"), "small_checkpoint", architecture=small_architecture())


@pytest.fixture(scope="session")
def small_cfw(tmp_path_factory) -> Converted:
  return converted(tmp_path_factory.mktemp("small_cfw"), "small_cfw_checkpoint", architecture=small_architecture())

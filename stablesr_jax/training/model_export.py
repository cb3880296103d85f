"""Writes what a stage has trained as a converted model: `infer.py` and the next stage read it."""

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from stablesr_jax.checkpoints.store import NULL_PROMPT, Manifest, ModelWriter, read_manifest
from stablesr_jax.config import ModelConfig
from stablesr_jax.models.components import COMPONENTS
from stablesr_jax.models.parameters import Params
from stablesr_jax.parallel import replicated
from stablesr_jax.training.config import TrainConfig
from stablesr_jax.training.stage import Batch, Export, TrainedStage


def export(
  stage: TrainedStage,
  params: Params,
  batch: Callable[[], Batch],
  config: TrainConfig,
  mesh: jax.sharding.Mesh,
  path: pathlib.Path,
) -> None:
  """Replaces the model folder at `path`, whole or not at all. All processes call it; the first one writes."""
  whole = jax.jit(lambda p: p, out_shardings=replicated(mesh))(params)  # of sharded parameters, too
  exported = stage.export(whole, batch)
  sampling = config.sampling
  if exported.architecture.autoencoder is not None and not exported.architecture.autoencoder.cfw:
    sampling = dataclasses.replace(sampling, fidelity_weight=0.0)
  source = None if config.model_path is None else read_manifest(config.model_path)
  with ModelWriter(path) as writer:
    for part, params in exported.params.items():
      writer.write(part, jax.tree.map(np.asarray, params))
    for part in _unchanged(source, exported):
      writer.copy(part, pathlib.Path(str(config.model_path)) / part)
    sources = () if source is None else source.sources
    writer.commit(Manifest(path.resolve().parent.name, exported.architecture, sampling, "float32", sources))


def _unchanged(source: Manifest | None, exported: Export) -> list[str]:
  """The parts of the starting model that the exported one has, too, as they are."""
  if source is None:
    return []

  def has(architecture: ModelConfig, part: str) -> bool:  # the null prompt goes with the UNet
    return getattr(architecture, "unet" if part == NULL_PROMPT else part) is not None

  parts = [part for part in (*COMPONENTS, NULL_PROMPT) if part not in exported.params]
  return [part for part in parts if has(source.architecture, part) and has(exported.architecture, part)]

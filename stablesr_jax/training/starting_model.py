"""The converted model that a stage starts from: its frozen parts, and initial values of trained ones."""

from typing import Any

import jax
import jax.numpy as jnp

from stablesr_jax.checkpoints.store import NULL_PROMPT, Manifest, load_params, read_manifest
from stablesr_jax.errors import UserError
from stablesr_jax.models.parameters import Params
from stablesr_jax.parallel import replicated
from stablesr_jax.settings import to_json
from stablesr_jax.training.config import TrainConfig


def open_model(config: TrainConfig, needed: tuple[str, ...], *, whole: bool = False) -> Manifest:
  """The model that a stage starts from.

  Args:
    needed: parts that it must have.
    whole: nothing is added to them, not even what conditions the UNet.

  Raises:
    UserError: there is none, it lacks a needed part, or its parts are of another architecture than the config's.
  """
  if config.model_path is None:
    raise UserError(f"model-path: this stage needs a model with {', '.join(needed).replace('_', ' ')}")
  manifest = read_manifest(config.model_path)
  for part in ("autoencoder", "unet", "time_aware_encoder"):
    there, wanted = getattr(manifest.architecture, part), getattr(config.model, part)
    if there is None:
      if part in needed:
        raise UserError(f"{config.model_path}: this model has no {part.replace('_', ' ')}")
    elif wanted is not None and (different := _difference(part, to_json(there), to_json(wanted), whole)):
      raise UserError(f"{config.model_path}: another architecture than the config's: {different}")
  there, wanted = manifest.architecture.diffusion, config.model.diffusion
  if manifest.architecture.unet is not None and there != wanted:
    different = _difference("diffusion", to_json(there), to_json(wanted), whole)
    raise UserError(f"{config.model_path}: another diffusion than the config's: {different}")
  return manifest


_MAY_DIFFER = ("cfw", "cfw_growth", "cfw_blocks", "scale_factor")  # of the last stage, or measured
_MAY_BE_ADDED = ("conditioning", "structure_channels", "sft_hidden_channels")


def _difference(part: str, there: dict[str, Any], wanted: dict[str, Any], whole: bool) -> str:
  passed_over = _MAY_DIFFER if whole else _MAY_DIFFER + _MAY_BE_ADDED
  differing = [name for name in there if there[name] != wanted[name] and name not in passed_over]
  return ", ".join(f"{part}.{name} is {there[name]}, not {wanted[name]}" for name in differing)


def load(config: TrainConfig, manifest: Manifest, parts: tuple[str, ...], mesh: jax.sharding.Mesh) -> dict[str, Params]:
  """Float32 parameters of the starting model, on every device."""
  return load_params(str(config.model_path), manifest, parts, sharding=replicated(mesh))


def load_latents(
  config: TrainConfig, manifest: Manifest, context_dim: int, mesh: jax.sharding.Mesh
) -> dict[str, Params]:
  """What every diffusion stage finds in the starting model: "autoencoder", and "null_prompt" or a stand-in for it."""
  if manifest.architecture.unet is not None:
    return load(config, manifest, ("autoencoder", NULL_PROMPT), mesh)
  return load(config, manifest, ("autoencoder",), mesh) | {
    NULL_PROMPT: null_prompt(manifest.architecture.context_length, context_dim, mesh)
  }


def computed(params: Params, config: TrainConfig) -> Params:
  """Frozen parameters in the dtype that they are computed with: the float32 ones serve nobody."""
  return jax.tree.map(lambda a: a.astype(config.compute.jax_dtype), params)


def null_prompt(context_length: int, context_dim: int, mesh: jax.sharding.Mesh) -> jax.Array:
  """A stand-in for a text encoder's answer to "", for priors trained without one."""
  return jax.jit(lambda: jnp.zeros((context_length, context_dim)), out_shardings=replicated(mesh))()

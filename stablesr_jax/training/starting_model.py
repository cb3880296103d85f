"""The converted model that a stage starts from: its frozen parts, and initial values of trained ones."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from stablesr_jax.checkpoints.store import NULL_PROMPT, Manifest, load_params, read_manifest
from stablesr_jax.errors import UserError
from stablesr_jax.models.parameters import Params, is_cfw
from stablesr_jax.parallel import replicated
from stablesr_jax.settings import to_json
from stablesr_jax.training.config import TrainConfig


def open_model(config: TrainConfig, needed: tuple[str, ...], *, whole: bool = False) -> Manifest:
  """The model that a stage starts from.

  Args:
    needed: The parts that it must have.
    whole: Whether nothing is added to them, not even what conditions the UNet.

  Raises:
    UserError: There is none, it lacks a needed part, or its parts are of another architecture than the config's.
  """
  if config.model_path is None:
    raise UserError(f"model-path: this stage needs a model with {', '.join(needed).replace('_', ' ')}")
  manifest = read_manifest(config.model_path)
  for part in ("autoencoder", "unet", "time_aware_encoder"):
    present, expected = getattr(manifest.architecture, part), getattr(config.model, part)
    if present is None:
      if part in needed:
        raise UserError(f"{config.model_path}: this model has no {part.replace('_', ' ')}")
    elif expected is not None and (different := _difference(part, to_json(present), to_json(expected), whole)):
      raise UserError(f"{config.model_path}: another architecture than the config's: {different}")
  present, expected = manifest.architecture.diffusion, config.model.diffusion
  if manifest.architecture.unet is not None and present != expected:
    different = _difference("diffusion", to_json(present), to_json(expected), whole)
    raise UserError(f"{config.model_path}: another diffusion than the config's: {different}")
  return manifest


_MAY_DIFFER = ("cfw", "cfw_growth", "cfw_blocks", "scale_factor")  # of the last stage, or measured
_MAY_BE_ADDED = ("conditioning", "structure_channels", "sft_hidden_channels")


def _difference(part: str, present: dict[str, object], expected: dict[str, object], whole: bool) -> str:
  passed_over = _MAY_DIFFER if whole else _MAY_DIFFER + _MAY_BE_ADDED
  differing = [name for name in present if present[name] != expected[name] and name not in passed_over]
  return ", ".join(f"{part}.{name} is {present[name]}, not {expected[name]}" for name in differing)


def load(
  config: TrainConfig,
  manifest: Manifest,
  parts: tuple[str, ...],
  mesh: jax.sharding.Mesh,
  chosen: Callable[[str], bool] | None = None,
  dtype: str = "float32",
) -> dict[str, Params]:
  """Parameters of the starting model, on every device; of its parts only those whose path is chosen are read."""
  sharding = replicated(mesh)
  return load_params(str(config.model_path), manifest, parts, dtype=dtype, sharding=sharding, chosen=chosen)


def load_latents(
  config: TrainConfig, manifest: Manifest, context_dim: int, mesh: jax.sharding.Mesh
) -> dict[str, Params]:
  """What every diffusion stage finds in the starting model, in the dtype that it is computed with: "autoencoder"
  without CFW, and "null_prompt" or a stand-in for it."""
  dtype, no_cfw = config.compute.dtype, lambda path: not is_cfw(path)
  if manifest.architecture.unet is not None:
    return load(config, manifest, ("autoencoder", NULL_PROMPT), mesh, no_cfw, dtype)
  prompt = null_prompt(manifest.architecture.context_length, context_dim, mesh).astype(dtype)
  return load(config, manifest, ("autoencoder",), mesh, no_cfw, dtype) | {NULL_PROMPT: prompt}


def null_prompt(context_length: int, context_dim: int, mesh: jax.sharding.Mesh) -> jax.Array:
  """A stand-in for a text encoder's answer to "", for priors trained without one."""
  return jax.jit(lambda: jnp.zeros((context_length, context_dim)), out_shardings=replicated(mesh))()

"""What the loop asks of a stage, and what stages share."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from stablesr_jax.checkpoints.store import NULL_PROMPT, Manifest, load_params, read_manifest
from stablesr_jax.config import ModelConfig, to_json
from stablesr_jax.degradation import degrade_pairs
from stablesr_jax.degradation.resize import resize
from stablesr_jax.degradation.settings import DegradationSettings
from stablesr_jax.diffusion.objective import Means
from stablesr_jax.models.components import Params
from stablesr_jax.parallel import replicated
from stablesr_jax.training.config import TrainConfig

Batch = dict[str, Any]


class TrainedStage(Protocol):
  """A stage that trains parameters.

  Making one reads no parameters, so that its program can be looked at without a model at hand.
  """

  @property
  def frozen(self) -> Params:
    """Parameters that take part and never change, read from the starting model when first asked for."""
    ...

  def init(self, key: jax.Array) -> Params:
    """Fresh float32 values of the trained parameters; pure."""
    ...

  def pretrained(self) -> Params:
    """Values that replace fresh ones, where the model that training starts from has them: a part of `init`'s tree."""
    ...

  def prepare(self, batch: Batch, keys: jax.Array) -> Batch:
    """What the loss needs from the data's batch. Pure, each sample by itself; not differentiated."""
    ...

  def loss(self, params: Params, frozen: Params, batch: Batch, keys: jax.Array, step: Any) -> tuple[jax.Array, Means]:
    """The mean loss of a prepared batch, and what to log: sums and counts, "loss" among them. Pure."""
    ...

  def validate(self, params: Params, frozen: Params, batch: Batch, keys: jax.Array) -> dict[str, jax.Array]:
    """Pictures of a prepared batch, (B, H, W, 3) in [0, 1]: columns of a sample grid. "ours" is compared with "hr".
    Pure."""
    ...

  def export(self, params: Params, batch: Callable[[], Batch]) -> "Export":
    """The model after this stage, with these trained parameters; `batch` gives a prepared one, to measure with."""
    ...


@dataclasses.dataclass(frozen=True)
class Export:
  """A model to be written: its architecture, and parts with new parameters; others are the starting model's."""

  architecture: ModelConfig
  params: dict[str, Params]


def split(params: Params, chosen: Callable[[str], bool]) -> tuple[Params, Params]:
  """Two trees: the parameters whose path ("down_0_0/residual/sft/gamma/kernel") is chosen, and the others."""
  paths = flatten_dict(params, sep="/")
  part = lambda want: unflatten_dict({k: v for k, v in paths.items() if chosen(k) == want}, sep="/")
  return part(True), part(False)


def merge(*trees: Params) -> Params:
  """One tree of all; of two values for a path the last."""
  return unflatten_dict({path: leaf for tree in trees for path, leaf in flatten_dict(tree).items()})


def is_modulation(path: str) -> bool:
  """Whether a UNet's parameter belongs to what steers it, not to Stable Diffusion."""
  return "/sft/" in path or "/addition/" in path


def is_cfw(path: str) -> bool:
  """Whether an autoencoder's parameter belongs to controllable feature wrapping."""
  return path.startswith("decoder/cfw_")


def open_model(config: TrainConfig, needed: tuple[str, ...], *, whole: bool = False) -> Manifest:
  """The model that a stage starts from.

  Args:
    needed: parts that it must have.
    whole: nothing is added to them, not even what conditions the UNet.

  Raises:
    ValueError: there is none, it lacks a needed part, or its parts are of another architecture than the config's.
  """
  if config.model_path is None:
    raise ValueError(f"model-path: this stage needs a model with {', '.join(needed).replace('_', ' ')}")
  manifest = read_manifest(config.model_path)
  for part in ("autoencoder", "unet", "time_aware_encoder"):
    there, wanted = getattr(manifest.architecture, part), getattr(config.model, part)
    if there is None:
      if part in needed:
        raise ValueError(f"{config.model_path}: this model has no {part.replace('_', ' ')}")
    elif wanted is not None and (different := _difference(part, to_json(there), to_json(wanted), whole)):
      raise ValueError(f"{config.model_path}: another architecture than the config's: {different}")
  there, wanted = manifest.architecture.diffusion, config.model.diffusion
  if manifest.architecture.unet is not None and there != wanted:
    different = _difference("diffusion", to_json(there), to_json(wanted), whole)
    raise ValueError(f"{config.model_path}: another diffusion than the config's: {different}")
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


def apply(module: nn.Module, params: Params, *args: Any, method: str | None = None) -> Any:
  """A module's answer with these parameters."""
  return module.apply({"params": params}, *args, method=method)


def load_latents(
  config: TrainConfig, manifest: Manifest, context_dim: int, mesh: jax.sharding.Mesh
) -> dict[str, Params]:
  """What every diffusion stage finds in the starting model: "autoencoder", and "null_prompt" or a stand-in for it."""
  if manifest.architecture.unet is not None:
    return load(config, manifest, ("autoencoder", NULL_PROMPT), mesh)
  return load(config, manifest, ("autoencoder",), mesh) | {NULL_PROMPT: null_prompt(context_dim, mesh)}


def computed(params: Params, config: TrainConfig) -> Params:
  """Frozen parameters in the dtype that they are computed with: the float32 ones serve nobody."""
  return jax.tree.map(lambda a: a.astype(config.compute.jax_dtype), params)


def null_prompt(context_dim: int, mesh: jax.sharding.Mesh) -> jax.Array:
  """A stand-in for a text encoder's answer to "", for priors trained without one."""
  return jax.jit(lambda: jnp.zeros((77, context_dim)), out_shardings=replicated(mesh))()


def prepare_pairs(batch: Batch, keys: jax.Array, settings: DegradationSettings) -> Batch:
  """{"hr": uint8, ["lr": uint8]} -> {"hr", "lr"}, (B, S, S, 3) in [-1, 1], the LR image enlarged (bicubic)."""
  hr = batch["hr"].astype(jnp.float32) / 255
  hr, low = (hr, batch["lr"].astype(jnp.float32) / 255) if "lr" in batch else degrade_pairs(keys, hr, settings)
  return {"hr": hr * 2 - 1, "lr": enlarge(low, hr.shape[1:3]) * 2 - 1}


def enlarge(low: jax.Array, size: tuple[int, ...]) -> jax.Array:
  """(B, h, w, 3) in [0, 1] -> (B, *size, 3) in [0, 1], bicubic."""
  planes = resize(jnp.moveaxis(low, -1, 1), size[0], size[1], "bicubic")
  return jnp.clip(jnp.moveaxis(planes, 1, -1), 0, 1)


def keys_for(keys: jax.Array, purpose: int) -> jax.Array:
  """The samples' keys (B,) for one purpose; 0 is `prepare`."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, purpose)


def normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Standard normal noise (B, *shape), each sample's from its own key."""
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def to_unit(image: jax.Array) -> jax.Array:
  """[-1, 1] -> [0, 1], clipped."""
  return jnp.clip((image + 1) / 2, 0, 1)

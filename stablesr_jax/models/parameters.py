"""Parameter trees: nested dictionaries of arrays, by the paths of their leaves."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

Params = Any  # a nested dictionary of arrays


def flat(params: Params) -> dict[str, Any]:
  """A parameter tree as {"conv_in/kernel": leaf, ...}."""
  return dict(flatten_dict(params, sep="/"))


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


def apply(module: nn.Module, params: Params, *args: object, method: str | None = None) -> Any:
  """A module's answer with these parameters, computed as precisely as its `compute` says.

  All networks go through here: `module.apply` alone would leave the precision to JAX's setting and the device.
  """
  with jax.default_matmul_precision(module.compute.precision):
    return module.apply({"params": params}, *args, method=method)

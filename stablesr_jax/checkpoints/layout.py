"""Tensors between PyTorch's layout and ours."""

import numpy as np

from stablesr_jax.errors import UserError


def to_ours(tensor: np.ndarray, leaf: str, shape: tuple[int, ...]) -> np.ndarray:
  """A PyTorch tensor in our layout: OIHW -> HWIO, OI -> IO, a 1x1 convolution -> a dense layer.

  Raises:
    UserError: it does not have the wanted shape.
  """
  value = tensor
  if leaf == "kernel" and tensor.ndim == len(shape) == 4:
    value = tensor.transpose(2, 3, 1, 0)
  elif leaf == "kernel" and len(shape) == 2 and tensor.ndim >= 2 and tensor.size == tensor.shape[0] * tensor.shape[1]:
    value = tensor.reshape(tensor.shape[:2]).T
  if value.shape != shape:
    raise UserError(f"has shape {'x'.join(map(str, tensor.shape))}, which does not fit {'x'.join(map(str, shape))}")
  return value


def to_pytorch(value: np.ndarray, leaf: str) -> np.ndarray:
  """The inverse of `to_ours`, but that a dense layer's kernel always comes back as (O, I)."""
  if leaf == "kernel":
    value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
  return np.ascontiguousarray(value)

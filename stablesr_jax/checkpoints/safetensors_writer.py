"""Writes a safetensors file one tensor at a time, so that no more than one is in memory."""

import json
import math
import os
import pathlib
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np

from stablesr_jax.errors import UserError

_DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(ml_dtypes.bfloat16): "BF16"}


class Entry(NamedTuple):
  """A tensor to be written: its name, shape and dtype, and how to get it (in any float dtype)."""

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]


def write_safetensors(path: pathlib.Path, entries: Sequence[Entry]) -> None:
  """Writes `entries` in their order. The file appears under its name when it is complete.

  Raises:
    UserError: the file cannot be written.
  """
  header, offset = {}, 0
  for entry in entries:
    size = math.prod(entry.shape) * entry.dtype.itemsize
    header[entry.name] = {
      "dtype": _DTYPES[entry.dtype],
      "shape": list(entry.shape),
      "data_offsets": [offset, offset + size],
    }
    offset += size
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  partial = path.with_name(f".{path.name}.partial")
  try:
    with open(partial, "wb") as f:
      f.write(struct.pack("<Q", len(text)) + text)
      for entry in entries:
        value = np.asarray(entry.read(), entry.dtype)
        assert value.shape == entry.shape, (entry.name, value.shape, entry.shape)
        f.write(value.tobytes())
    os.replace(partial, path)
  except OSError as error:
    raise UserError(f"{path}: cannot be written ({error.strerror})") from error
  finally:
    partial.unlink(missing_ok=True)

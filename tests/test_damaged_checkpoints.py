"""Any bytes are a checkpoint or an error of one line."""

import io
import zipfile

import numpy as np
import torch
from safetensors.numpy import save

from stablesr_jax.checkpoints.tensor_file import open_tensors
from stablesr_jax.errors import UserError
from tests import fuzzing

MOST_BYTES = 64 * 2**20  # of all tensors together: no file is told more of than it holds, but for torch's `expand`


def saved(content, **options) -> bytes:
  file = io.BytesIO()
  torch.save(content, file, **options)
  return file.getvalue()


def seeds() -> list[bytes]:
  """One of each kind of file."""
  tensors = {"conv.weight": torch.arange(24.0).reshape(2, 3, 4), "half": torch.ones(5, dtype=torch.float16)}
  tensors["steps"] = torch.tensor(7)
  content = {"state_dict": tensors | {"view": tensors["conv.weight"][:, ::2]}, "epoch": 3, "args": ("a", [1.5, None])}
  zipped = saved(content)
  unchecked = io.BytesIO()  # without checksums, so that damage gets further
  with zipfile.ZipFile(io.BytesIO(zipped)) as archive, zipfile.ZipFile(unchecked, "w") as other:
    for name in archive.namelist():
      other.writestr(name, archive.read(name))
  arrays = {name: np.ascontiguousarray(value.numpy()) for name, value in tensors.items()}
  return [zipped, unchecked.getvalue(), saved(content, _use_new_zipfile_serialization=False), save(arrays)]


def test_any_bytes_are_tensors_or_a_line(tmp_path):
  path = tmp_path / "damaged"

  def is_read(data: bytes) -> bool:
    path.write_bytes(data)
    try:
      tensors = open_tensors(path)
      arrays = {name: tensors.read(name) for name in tensors}
    except UserError as error:
      assert "\n" not in str(error)
      return False
    assert sum(array.nbytes for array in arrays.values()) <= MOST_BYTES
    assert all(array.shape == tensors.shape(name) for name, array in arrays.items())
    tensors.close()
    return True

  fuzzing.run(seeds(), is_read, examples=100)

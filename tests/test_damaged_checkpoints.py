"""Any bytes are a checkpoint or an error of one line."""

import io
import os
import zipfile

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from stablesr_jax.checkpoints.tensor_file import open_tensors
from stablesr_jax.errors import UserError

# Minutes for the fuzz test; by default it takes seconds.
MINUTES = float(os.environ.get("STABLESR_FUZZ_MINUTES", 0))
MOST_BYTES = 64 * 2**20  # of all tensors together: no file is told more of than it holds, but for torch's `expand`
COUNT = [0, 0]


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


@settings(
  max_examples=max(100, int(MINUTES * 60 * 400)),
  deadline=None,
  database=None,
  derandomize=not MINUTES,
  suppress_health_check=list(HealthCheck),
)
@given(
  st.sampled_from(seeds()),
  st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
  st.one_of(st.none(), st.floats(0, 1)),
  st.binary(max_size=32),
)
def test_any_bytes_are_tensors_or_a_line(tmp_path_factory, data, flips, cut, tail):
  changed = bytearray(data)
  for place, value in flips:
    changed[int(place * (len(changed) - 1))] = value
  if cut is not None:
    changed = changed[: int(cut * len(changed))]
  path = tmp_path_factory.getbasetemp() / "fuzzed"
  path.write_bytes(bytes(changed) + tail)
  COUNT[0] += 1
  try:
    tensors = open_tensors(path)
    arrays = {name: tensors.read(name) for name in tensors}
  except UserError as error:
    assert "\n" not in str(error)
    return
  COUNT[1] += 1
  assert sum(array.nbytes for array in arrays.values()) <= MOST_BYTES
  assert all(array.shape == tensors.shape(name) for name, array in arrays.items())
  tensors.close()


def test_some_are_read_and_some_are_not():
  """What the test above has met, which runs before: damage alone would say little."""
  if COUNT[0]:
    assert 0 < COUNT[1] < COUNT[0]
  print(f"{COUNT[0]} files, {COUNT[1]} of them read")

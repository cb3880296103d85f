"""Writes a synthetic checkpoint of full size in the published layout.

    python examples/synthetic_checkpoint.py tests/reference/stablesr_512_checkpoint.tsv stablesr_512.ckpt

Each tensor is a function of its name, its shape and a salt (the rule in `tests/reference/synthetic.py`), so that
converting, loading and running the full-size model can be tried, and held against known answers, without a download.
The pictures it makes are noise. A `.ckpt` looks as one saved by PyTorch Lightning: tensors under `state_dict` (or
`params_ema`, if the listing says so), beside objects of a package that is not installed, and is written a few tensors
at a time. A `.safetensors` is bare, and is made in memory first.
"""

import argparse
import collections
import contextlib
import csv
import dataclasses
import importlib.util
import json
import math
import pathlib
import struct
import sys
import types
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from safetensors.numpy import save_file

from stablesr_jax.files import atomic_write

_RULE = pathlib.Path(__file__).resolve().parents[1] / "tests" / "reference" / "synthetic.py"
_FOREIGN = "uninstalled_trainer"  # the package whose objects a `.ckpt` names


@dataclasses.dataclass(frozen=True)
class Row:
  """A tensor to write: its key in the file, the name the rule sees (None: zeros) and its shape. All are float32."""

  key: str
  rule_name: str | None
  shape: tuple[int, ...]

  @property
  def size(self) -> int:
    """In bytes."""
    return 4 * math.prod(self.shape)


def read_listing(listing: pathlib.Path, prefix: str | None = None) -> tuple[str, list[Row]]:
  """(wrapper, rows) of a `*_checkpoint.tsv`.

  Args:
    prefix: the rule sees each key with this in front; None: the name as it is listed.

  Raises:
    ValueError: a tensor is not float32.
  """
  with open(listing, newline="") as f:
    table = list(csv.DictReader(f, delimiter="\t"))
  wrapper = "params_ema" if all(row["name"].startswith("params_ema.") for row in table) else "state_dict"
  rows = []
  for row in table:
    name = row["name"]
    if row["dtype"] != "float32":
      raise ValueError(f"{listing}: {name}: dtype {row['dtype']} (only float32 is written)")
    key = name.removeprefix(f"{wrapper}.")
    shape = () if row["shape"] == "scalar" else tuple(map(int, row["shape"].split("x")))
    # The rule leaves schedule buffers and scalars out; readers do not use them.
    is_weight = "." in name and shape
    rows.append(Row(key, (name if prefix is None else prefix + key) if is_weight else None, shape))
  return wrapper, rows


def tensors(rows: list[Row], salt: int, scale: float) -> Iterator[np.ndarray]:
  """The tensor of each row in turn, little-endian float32."""
  spec = importlib.util.spec_from_file_location("synthetic", _RULE)
  assert spec and spec.loader
  synthetic = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(synthetic)
  for row in rows:
    values = synthetic.tensor(row.rule_name, row.shape, salt) if row.rule_name else np.zeros(row.shape, np.float32)
    yield np.asarray(values if scale == 1 else values * np.float32(scale), "<f4")


def write_torch(out: pathlib.Path, wrapper: str, rows: list[Row], salt: int, scale: float) -> None:
  """Has torch lay the file out with gaps for the data, then fills them.

  The zip's checksums stay those of empty data, as with `torch.serialization.set_crc32_options(False)`; torch does not
  look at them.
  """
  import torch

  # Memory that is never touched takes no room.
  state = collections.OrderedDict((row.key, torch.empty(row.shape)) for row in rows)
  with _foreign_objects() as foreign, torch.serialization.skip_data():
    torch.save({**foreign, wrapper: state} if wrapper == "state_dict" else {wrapper: state}, out)
  with zipfile.ZipFile(out) as archive:
    entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
  with open(out, "r+b") as f:
    for i, values in enumerate(tensors(rows, salt, scale)):  # torch numbers data in the order of the dictionary
      f.seek(_start_of_data(f, entries[f"data/{i}"]))
      f.write(values.data)


def _start_of_data(f: BinaryIO, entry: zipfile.ZipInfo) -> int:
  """Where a stored zip entry's bytes begin: after its local header, whose size the directory does not tell."""
  f.seek(entry.header_offset + 26)
  name_length, extra_length = struct.unpack("<HH", f.read(4))
  return entry.header_offset + 30 + name_length + extra_length


@contextlib.contextmanager
def _foreign_objects() -> Iterator[dict]:
  """What a training framework saves beside the tensors; its classes can be imported only within the context."""
  module = types.ModuleType(_FOREIGN)
  callback = type("ModelCheckpoint", (), {"__module__": _FOREIGN})
  settings = type("AttributeDict", (dict,), {"__module__": _FOREIGN})
  history = type("History", (list,), {"__module__": _FOREIGN})
  module.__dict__.update(ModelCheckpoint=callback, AttributeDict=settings, History=history)
  instance = callback()
  vars(instance).update(monitor="val/loss", best_model_score=np.float64(0.25), root=pathlib.PurePosixPath("logs"))
  sys.modules[_FOREIGN] = module
  try:
    yield {
      "epoch": 117,
      "global_step": 16500,
      "pytorch-lightning_version": "1.4.2",
      "callbacks": {callback: instance},
      "optimizer_states": [],
      "lr_schedulers": [history([0.1, 0.2])],
      "hyper_parameters": settings(learning_rate=5e-5, options=argparse.Namespace(scale=4)),
    }
  finally:
    del sys.modules[_FOREIGN]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("listing", type=pathlib.Path, help="*_checkpoint.tsv with columns name, shape, dtype")
  parser.add_argument("out", type=pathlib.Path, help="file to write: .ckpt, .pth, .pt or .safetensors")
  parser.add_argument("--salt", type=int, help="default: the one in meta.json beside the listing, or 0")
  parser.add_argument("--scale", type=float, default=1.0, help="factor on all weights")
  parser.add_argument("--prefix", help="the rule sees each key with this in front (default: the name as listed)")
  args = parser.parse_args()
  if args.out.suffix not in (".ckpt", ".pth", ".pt", ".safetensors"):
    parser.error(f"{args.out}: write a .ckpt, .pth, .pt or .safetensors file")
  try:
    meta = args.listing.parent / "meta.json"
    salt = args.salt
    if salt is None:
      salt = json.loads(meta.read_text())["salt"] if meta.exists() else 0
    wrapper, rows = read_listing(args.listing, args.prefix)
    if args.out.suffix == ".safetensors":
      with atomic_write(args.out) as temporary:
        save_file(dict(zip([row.key for row in rows], tensors(rows, salt, args.scale), strict=True)), temporary)
    else:
      write_torch(args.out, wrapper, rows, salt, args.scale)
  except (OSError, ValueError) as error:
    sys.exit(f"error: {error}")
  print(f"{args.out}: {len(rows)} tensors, {sum(row.size for row in rows) / 1e9:.2f} GB, salt {salt}")


if __name__ == "__main__":
  main()

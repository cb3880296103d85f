"""The published implementation's answers: `tests/reference`, or the folder named by STABLESR_REFERENCE."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np

FOLDER = pathlib.Path(os.environ.get("STABLESR_REFERENCE") or pathlib.Path(__file__).parent / "reference")
EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def load(name: str) -> dict[str, np.ndarray]:
  """The arrays of `name.npz`."""
  with np.load(FOLDER / f"{name}.npz") as data:
    return {key: data[key] for key in data.files}


def names(pattern: str) -> list[str]:
  """Names of the answers that match a pattern, e.g. "small_ddpm_*"."""
  found = sorted(path.stem for path in FOLDER.glob(f"{pattern}.npz"))
  assert found, f"{FOLDER} has no {pattern}.npz"
  return found


def salt() -> int:
  """What the folder's synthetic weights were drawn with."""
  return json.loads((FOLDER / "meta.json").read_text())["salt"]


def write_checkpoint(listing: str | pathlib.Path, out: pathlib.Path, *options: str) -> pathlib.Path:
  """Writes the synthetic checkpoint that a listing (a file, or one of the folder by name) describes."""
  listing = listing if isinstance(listing, pathlib.Path) else FOLDER / f"{listing}.tsv"
  command = [sys.executable, str(EXAMPLES / "synthetic_checkpoint.py"), str(listing), str(out), "--salt", str(salt())]
  subprocess.run([*command, *options], check=True)
  return out


def synthetic_rule():
  """The module that says what every synthetic tensor is."""
  spec = importlib.util.spec_from_file_location("synthetic", pathlib.Path(__file__).parent / "reference/synthetic.py")
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def nhwc(array: np.ndarray) -> np.ndarray:
  """PyTorch's layout to ours."""
  return np.ascontiguousarray(np.moveaxis(array, 1, -1))


def relative_error(ours, theirs: np.ndarray) -> float:
  """The largest difference, relative to the RMS of the answer."""
  theirs = np.asarray(theirs, np.float64)
  assert ours.shape == theirs.shape, f"{ours.shape} is not {theirs.shape}"
  return float(np.abs(np.asarray(ours, np.float64) - theirs).max() / rms(theirs))


def rms(array) -> float:
  """The root of the mean square."""
  return float(np.sqrt((np.asarray(array, np.float64) ** 2).mean()))


def fidelity_weights(data: dict[str, np.ndarray]) -> dict[str, float]:
  """The keys "decoded_w0.5" or "decoded_w05" with the weight they mean."""
  weights = {}
  for key in data:
    if key.startswith("decoded_w"):
      digits = key.removeprefix("decoded_w")
      weights[key] = float(digits if "." in digits or len(digits) == 1 else f"{digits[0]}.{digits[1:]}")
  assert weights
  return weights

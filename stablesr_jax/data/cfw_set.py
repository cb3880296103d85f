"""The set that CFW is trained on: a file for each sample, made by the trained restorer."""

import pathlib

import numpy as np

from stablesr_jax.errors import UserError, first_line
from stablesr_jax.files import atomic_write

SUFFIX = ".npz"


def sample_path(folder: pathlib.Path, number: int) -> pathlib.Path:
  """Where a sample lies; a thousand to a folder."""
  return folder / f"{number // 1000:04d}" / f"{number:07d}{SUFFIX}"


def write_sample(folder: pathlib.Path, number: int, sample: dict[str, np.ndarray]) -> None:
  """Writes "hr" (S, S, 3) and "lr" (s, s, 3) uint8, and "latent" (h, w, 4) float32; whole or not at all."""
  path = sample_path(folder, number)
  path.parent.mkdir(parents=True, exist_ok=True)
  with atomic_write(path) as temporary, temporary.open("wb") as file:
    np.savez_compressed(file, hr=sample["hr"], lr=sample["lr"], latent=sample["latent"])


def sample_paths(folder: pathlib.Path) -> list[pathlib.Path]:
  """All samples in a folder, in order.

  Raises:
    UserError: there is no such folder.
    UserError: it holds none.
  """
  if not folder.is_dir():
    raise UserError(f"{folder}: no such folder")
  paths = sorted(folder.rglob(f"*{SUFFIX}"))
  if not paths:
    raise UserError(f"{folder}: holds no samples for CFW (make them with a cfw_data run)")
  return paths


def read_sample(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """ "hr", "lr" and "latent" as they were written; what else an older file holds is passed over.

  Raises:
    UserError: the file is damaged.
  """
  if not pathlib.Path(path).is_file():  # gone, or a pipe, which may never end
    raise UserError(f"{path}: no such file")
  try:
    # Opened here, since NumPy leaves a file that is no archive open.
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
      return {name: arrays[name] for name in ("hr", "lr", "latent")}
  except Exception as error:  # of zip, header or keys
    raise UserError(f"{path}: damaged ({first_line(error)})") from error

"""Checkpoints whose tensors lie in several files, or under other names than they are known by."""

import hashlib
import pathlib
import re
from collections.abc import Iterator

import numpy as np

from stablesr_jax.checkpoints.tensor_file import TensorFile, open_tensors, sha256
from stablesr_jax.errors import UserError
from stablesr_jax.settings import read_json

_INDEX = ".index.json"
_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(safetensors|bin)")
# Copies of one part that diffusers' folders have, in 32 bits before those in 16; "non_ema" is not what is published.
_VARIANTS = ("", ".fp16", ".bf16")


class Joined:
  """Tensors of one or several files, by names of their own. To be closed.

  Attributes:
    path: what was given: a file or a folder.
  """

  def __init__(self, path: pathlib.Path, at: dict[str, tuple[TensorFile, str]]):
    """`at` gives for each name the file and the tensor's name there."""
    self.path = path
    self._at = at

  def __iter__(self) -> Iterator[str]:
    return iter(self._at)

  def __contains__(self, name: object) -> bool:
    return name in self._at

  def shape(self, name: str) -> tuple[int, ...]:
    tensors, key = self._at[name]
    return tensors.shape(key)

  def dtype(self, name: str) -> np.dtype:
    tensors, key = self._at[name]
    return tensors.dtype(key)

  def read(self, name: str) -> np.ndarray:
    tensors, key = self._at[name]
    return tensors.read(key)

  def close(self) -> None:
    for tensors, _ in self._at.values():
      tensors.close()

  def sha256(self) -> str:
    """The file's, or of several files that of their digests."""
    digests = [sha256(file) for file in sorted({tensors.path for tensors, _ in self._at.values()})]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


class DiffusersFolder(Joined):
  """The UNet, autoencoder and text tower of a diffusers folder, keys prefixed "unet/", "vae/", "text_encoder/"."""

  _PARTS = {
    "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "text_encoder": ("model", "pytorch_model"),
  }

  def __init__(self, path: pathlib.Path):
    at: dict[str, tuple[TensorFile, str]] = {}
    for part, (stem, pytorch_stem) in self._PARTS.items():
      if not (path / part).is_dir():
        continue
      candidates = [f"{stem}.safetensors", f"{pytorch_stem}.bin"]
      candidates = [name.replace(".", f"{variant}.", 1) for variant in _VARIANTS for name in candidates]
      indices = [f"{name}{_INDEX}" for name in candidates]
      if files := [path / part / name for name in (*candidates, *indices) if (path / part / name).is_file()]:
        found = _open_shards(files[0]) if files[0].name.endswith(_INDEX) else _all(open_tensors(files[0]))
        at |= {f"{part}/{name.removeprefix('text_model.')}": place for name, place in found.items()}
      else:
        raise UserError(f"{path / part}: has none of {', '.join(candidates)}")
    super().__init__(path, at)

  @classmethod
  def is_at(cls, path: pathlib.Path) -> bool:
    """Whether a folder has one of the parts."""
    return any((path / part).is_dir() for part in cls._PARTS)

  def prediction(self) -> str | None:
    """What the scheduler's config says the UNet predicts: "eps", "v" or None if it says nothing."""
    file = self.path / "scheduler" / "scheduler_config.json"
    if not file.is_file():
      return None
    return {"epsilon": "eps", "v_prediction": "v"}.get(str(read_json(file).get("prediction_type")))


def open_checkpoint(path: pathlib.Path) -> TensorFile | Joined:
  """Opens a checkpoint file, the index of one in shards, a folder of shards or a diffusers folder.

  Raises:
    UserError: It is none of them, is one shard of several, is damaged, or a shard or one of its tensors is missing.
  """
  if path.is_dir():
    return DiffusersFolder(path) if DiffusersFolder.is_at(path) else Joined(path, _open_folder(path))
  if path.name.endswith(_INDEX):
    return Joined(path, _open_shards(path))
  if (shard := _SHARD.fullmatch(path.name)) and int(shard["count"]) > 1:
    raise UserError(f"{path}: is one of {int(shard['count'])} shards; give their folder, or its {_INDEX[1:]}")
  tensors = open_tensors(path)
  if all(name.startswith("module.") for name in tensors):  # as torch.nn.DataParallel names them
    return Joined(path, {name.removeprefix("module."): (tensors, name) for name in tensors})
  return tensors


def _open_folder(path: pathlib.Path) -> dict[str, tuple[TensorFile, str]]:
  indices = sorted(path.glob(f"*{_INDEX}"))
  if len(indices) > 1:
    raise UserError(f"{path}: has several checkpoints in shards ({', '.join(file.name for file in indices)}); give one")
  if indices:
    return _open_shards(indices[0])
  raise UserError(
    f"{path}: neither a diffusers folder (unet/, vae/, text_encoder/), nor one with a *{_INDEX} of shards"
  )


def _open_shards(index: pathlib.Path) -> dict[str, tuple[TensorFile, str]]:
  """The tensors of all shards that an index names."""
  places = read_json(index).get("weight_map")
  if not isinstance(places, dict) or not all(isinstance(name, str) and name for name in places.values()):
    raise UserError(f"{index}: has no weight_map from tensors to files")
  at: dict[str, tuple[TensorFile, str]] = {}
  for name in sorted(set(places.values())):
    if pathlib.PurePath(name).name != name:
      raise UserError(f"{index}: {name!r} is not a file beside it")
    if not (index.parent / name).is_file():
      raise UserError(f"{index}: its shard {name} is missing")
    for key, place in _all(open_tensors(index.parent / name)).items():
      if places.get(key) != name:
        raise UserError(f"{index.parent / name}: has a tensor {key!r} that {index.name} does not place there")
      at[key] = place
  if lost := [key for key in places if key not in at]:
    raise UserError(f"{index}: {len(lost)} tensors are in none of its shards ({lost[0]}, ...)")
  return at


def _all(tensors: TensorFile) -> dict[str, tuple[TensorFile, str]]:
  return {name: (tensors, name) for name in tensors}

"""Where images come from: image files' bytes, by number. They are decoded later, in workers."""

import bisect
import dataclasses
import importlib
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

from stablesr_jax.data import cfw_set
from stablesr_jax.data.config import SourceConfig
from stablesr_jax.data.packing import unpack_record
from stablesr_jax.errors import UserError, first_line
from stablesr_jax.images import IMAGE_SUFFIXES, list_images, read_file


@dataclasses.dataclass(frozen=True)
class Record:
  """An image file, or a pair.

  Attributes:
    name: what messages call it.
    hr: the bytes of the image file; in a pair, of the high-resolution one.
    lr: the bytes of the low-resolution image file; None if this is no pair.
    sample: a sample that needs no decoding and cutting, in place of the image files.
  """

  name: str
  hr: bytes = b""
  lr: bytes | None = None
  sample: dict[str, Any] | None = None


class Source(Protocol):
  """Random access to records; can be pickled."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record:
    """Record `index`, 0 to `len - 1`.

    Raises:
      UserError: it cannot be read; the message starts with its name.
    """
    ...


def open_source(config: SourceConfig, scale: int = 4) -> Source:
  """The records of all paths in `config`, one path's after the other's.

  Args:
    scale: HR pixels for each LR pixel, along a side; LR files may have it in their names, as 0001x4.png.

  Raises:
    UserError: a folder or file does not exist.
    UserError: it is none of the kind, holds no images, has files without partner; the dataset is unknown, not
      prepared, or has no such split or feature; a package is missing.
  """
  match config.kind:
    case "folder":
      parts = [FolderSource(path) for path in config.path]
    case "pairs":
      parts = [PairSource(hr, lr, scale) for hr, lr in zip(config.path, config.lr_path, strict=True)]
    case "tfds" | "tfds_pairs":
      parts = [TfdsSource(path, config) for path in config.path]
    case "packed":
      parts = [PackedSource(path) for path in config.path]
    case "cfw_set":
      parts = [CfwSource(path) for path in config.path]
  return parts[0] if len(parts) == 1 else JoinedSource(parts)


class FolderSource:
  """The images in a folder and its subfolders, sorted; other files are passed over."""

  def __init__(self, folder: str | pathlib.Path):
    self._paths = [str(path) for path in _images(folder)]

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> Record:
    path = self._paths[index]
    return Record(path, read_file(path))


class CfwSource:
  """The samples of a CFW set, by number."""

  def __init__(self, folder: str | pathlib.Path):
    self._paths = [str(path) for path in cfw_set.sample_paths(pathlib.Path(folder))]

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> Record:
    path = self._paths[index]
    return Record(path, sample=cfw_set.read_sample(path))


class PairSource:
  """HR and LR images of the same names in two folders; suffixes may differ, and LR names may end in x4 (the scale)."""

  def __init__(self, hr_folder: str | pathlib.Path, lr_folder: str | pathlib.Path, scale: int = 4):
    hr = _by_stem(hr_folder)
    lr = {}
    for stem, path in _by_stem(lr_folder).items():
      stem = stem if stem in hr else stem.removesuffix(f"x{scale}")
      if stem in lr:
        raise UserError(f"{lr_folder}: {lr[stem].name} and {path.name} are both partners of {hr_folder}: {stem}")
      lr[stem] = path
    if alone := sorted([hr[stem] for stem in hr.keys() - lr.keys()] + [lr[stem] for stem in lr.keys() - hr.keys()]):
      more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
      raise UserError(f"{hr_folder}, {lr_folder}: no partner for {', '.join(map(str, alone[:3]))}{more}")
    self._pairs = [(str(hr[stem]), str(lr[stem])) for stem in sorted(hr)]

  def __len__(self) -> int:
    return len(self._pairs)

  def __getitem__(self, index: int) -> Record:
    hr, lr = self._pairs[index]
    return Record(hr, read_file(hr), read_file(lr))


class TfdsSource:
  """A TensorFlow Dataset in the array_record format, by name or from its prepared folder; needs no TensorFlow."""

  def __init__(self, path: str, config: SourceConfig):
    builder = _tfds_builder(path, config)
    tfds = require("tensorflow_datasets")
    features = builder.info.features or {}
    images = [name for name in features if isinstance(features[name], tfds.features.Image)]
    if config.paired:
      self._features = ("hr", "lr") if {"hr", "lr"} <= set(images) else ()
    else:
      self._features = next(((name,) for name in ("image", "hr") if name in images), ())
    if not self._features:
      wanted = "hr and lr" if config.paired else "image or hr"
      raise UserError(f"{path}: the dataset has no image feature {wanted} (it has: {', '.join(features) or 'none'})")
    try:
      self._records = builder.as_data_source(
        split=config.split, decoders={name: tfds.decode.SkipDecoding() for name in images}
      )
    except NotImplementedError as error:
      raise UserError(f"{path}: prepared in a format that is read in order only; use array_record instead") from error
    except Exception as error:  # Many kinds, with long texts.
      raise UserError(f"{path}: {first_line(error)}") from error
    if len(self._records) == 0:
      raise UserError(f"{path}: split {config.split!r} is empty")
    self._name = f"{path}/{config.split}"

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Record:
    name = f"{self._name}#{index}"
    try:
      record = self._records[index]
      hr, lr = ([bytes(record[feature]) for feature in self._features] + [None])[:2]
      assert hr is not None
      return Record(name, hr, lr)
    except Exception as error:  # Damage raises errors of several kinds.
      raise UserError(f"{name}: cannot be read ({first_line(error)})") from error


class PackedSource:
  """A file that `pack_images` wrote."""

  def __init__(self, path: str | pathlib.Path):
    self._path = str(path)
    if not pathlib.Path(path).is_file():
      raise UserError(f"{path}: no such file")
    reader = require("array_record.python.array_record_data_source").ArrayRecordDataSource
    try:
      self._records = reader(self._path)
      unpack_record(self._records[0])
    except Exception as error:  # Mostly RuntimeError.
      raise UserError(f"{path}: not a file of packed images ({first_line(error)})") from error

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Record:
    try:
      name, data = unpack_record(self._records[index])
    except Exception as error:  # As above.
      raise UserError(f"{self._path}#{index}: cannot be read ({first_line(error)})") from error
    return Record(f"{self._path}: {name}", data)


class JoinedSource:
  """Sources one after the other."""

  def __init__(self, parts: Sequence[Source]):
    self._parts = parts
    self._ends = list(itertools.accumulate(len(part) for part in parts))

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> Record:
    k = bisect.bisect_right(self._ends, index)
    return self._parts[k][index - (self._ends[k - 1] if k else 0)]


def require(module: str) -> Any:
  """The module, which belongs to the optional packages for training.

  Raises:
    UserError: it cannot be imported; the message says what to install.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise UserError(f'{error}: training data need more packages: pip install "stablesr-jax[train]"') from error


def _images(folder: str | pathlib.Path) -> list[pathlib.Path]:
  paths = list_images(folder)
  if not paths:
    raise UserError(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)})")
  return paths


def _by_stem(folder: str | pathlib.Path) -> dict[str, pathlib.Path]:
  """The images in `folder` by their relative path without suffix."""
  found: dict[str, pathlib.Path] = {}
  for path in _images(folder):
    stem = path.relative_to(folder).with_suffix("").as_posix()
    if stem in found:
      raise UserError(f"{folder}: {found[stem].name} and {path.name} have the same name without suffix")
    found[stem] = path
  return found


def _tfds_builder(path: str, config: SourceConfig) -> Any:
  tfds = require("tensorflow_datasets")
  if pathlib.Path(path).is_dir():
    try:
      return tfds.builder_from_directory(path)
    except Exception as error:  # Many kinds, with long texts.
      raise UserError(f"{path}: not a prepared TensorFlow Dataset ({first_line(error)})") from error
  try:
    builder = tfds.builder(path, data_dir=config.data_dir, file_format="array_record")
  except tfds.core.DatasetNotFoundError as error:
    raise UserError(f"{path}: neither the name of a TensorFlow Dataset nor the folder of a prepared one") from error
  except Exception as error:  # As above.
    raise UserError(f"{path}: {first_line(error)}") from error
  if not builder.is_prepared() and not config.download:
    raise UserError(
      f"{path}: the dataset is not prepared in {builder.data_dir}; set download, or run"
      f" `tfds build {path} --file_format=array_record` (most datasets need TensorFlow for it)"
    )
  try:
    builder.download_and_prepare()
  except ImportError as error:
    raise UserError(f"{path}: preparing this dataset needs another package ({first_line(error)})") from error
  except Exception as error:  # As above.
    raise UserError(f"{path}: cannot be downloaded and prepared ({first_line(error)})") from error
  return builder

"""What the training data are and how they are cut into samples."""

import dataclasses
import math
from typing import Literal

from stablesr_jax.errors import UserError

Kind = Literal["folder", "pairs", "tfds", "tfds_pairs", "packed", "cfw_set"]
SmallImages = Literal["pad", "skip", "resize"]

_KINDS = ("folder", "pairs", "tfds", "tfds_pairs", "packed", "cfw_set")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """One source of images, or of pairs of a high-resolution (HR) image and its low-resolution (LR) version.

  Attributes:
    kind: "folder" (images, also in its subfolders), "pairs" (HR folders and LR folders), "tfds" (the feature `image`,
      or else `hr`, of a TensorFlow Dataset), "tfds_pairs" (its features `hr` and `lr`), "packed" (files written by
      `pack_images`), "cfw_set" (folders that a cfw_data run wrote, for training CFW alone; taken as they are).
    path: folders, HR folders, dataset names or folders of prepared datasets, or files.
    lr_path: for "pairs" only, the LR folder of each HR folder in `path`.
    split: of TensorFlow Datasets, "train[:90%]" for instance.
    data_dir: where named TensorFlow Datasets lie; None is their default.
    download: whether to download and prepare a named dataset that is not there yet.
    weight: share of this source among the samples, relative to the other sources' weights. Give it for all sources or
      for none: without weights every image comes equally often.
  """

  kind: Kind
  path: tuple[str, ...]
  lr_path: tuple[str, ...] = ()
  split: str = "train"
  data_dir: str | None = None
  download: bool = False
  weight: float | None = None

  def __post_init__(self):
    _check(self, "kind", self.kind in _KINDS, f"choose one of {', '.join(_KINDS)}")
    _check(self, "path", _are_names(self.path) and len(self.path) > 0, "must be a tuple of one or more names")
    _check(self, "lr_path", _are_names(self.lr_path), "must be a tuple of names")
    if self.kind == "pairs":
      _check(
        self, "lr_path", len(self.lr_path) == len(self.path), f"must name {len(self.path)}, one for each HR folder"
      )
    else:
      _check(self, "lr_path", not self.lr_path, f"is for pairs, not for {self.kind}")
    weight = self.weight
    _check(self, "weight", weight is None or (math.isfinite(weight) and weight > 0), "must be positive")

  @property
  def paired(self) -> bool:
    return self.kind in ("pairs", "tfds_pairs")


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Sources, and how samples are cut from them (defaults: the published training).

  Attributes:
    sources: all of single images, or all of pairs.
    crop_size: side of the HR crop in pixels, a multiple of `scale`.
    scale: HR pixels for each LR pixel, along a side.
    scale_range: least and greatest factor, up to 4, by which an image is resized before a crop is taken from it, drawn
      anew for each sample. Below 1 shrinks it, though not below the crop; above 1 enlarges it, for a model that is to
      know photographs that are soft pixel by pixel. (1, 1) leaves it as it is, and is all that pairs allow.
    flips: mirror half of the samples left to right.
    small_images: what becomes of an image with a side below `crop_size`. "pad" mirrors it at its right and lower
      border, which keeps it and its sharpness (the published training does so); "skip" takes another image instead;
      "resize" enlarges it, which teaches the model that blurred images are sharp.
    seed: of order, crops and flips, 0 to 2^32 - 1.
    workers: processes that read and decode; 0 does it in threads of the training process.
    prefetch: batches kept ready, by each worker.
  """

  sources: tuple[SourceConfig, ...]
  crop_size: int = 512
  scale: int = 4
  scale_range: tuple[float, float] = (1.0, 1.0)
  flips: bool = True
  small_images: SmallImages = "pad"
  seed: int = 0
  workers: int = 0
  prefetch: int = 4

  def __post_init__(self):
    sources = self.sources
    ok = isinstance(sources, tuple) and len(sources) > 0 and all(isinstance(s, SourceConfig) for s in sources)
    _check(self, "sources", ok, "must be a tuple of one or more SourceConfig")
    if len({source.paired for source in sources}) > 1:
      raise UserError(f"sources {[s.kind for s in sources]!r}: single images and pairs cannot be mixed")
    if len({source.kind == "cfw_set" for source in sources}) > 1:
      raise UserError(f"sources {[s.kind for s in sources]!r}: a cfw_set cannot be mixed with images")
    if len({source.weight is None for source in sources}) > 1:
      raise UserError(f"sources: weight {[s.weight for s in sources]!r}: give it for all sources or for none")
    _check(self, "scale", self.scale >= 1, "must be at least 1")
    ok = self.crop_size >= self.scale and self.crop_size % self.scale == 0
    _check(self, "crop_size", ok, f"must be a multiple of scale, {self.scale}")
    low_high = self.scale_range
    ok = isinstance(low_high, tuple) and len(low_high) == 2 and 0 < low_high[0] <= low_high[1] <= 4
    _check(self, "scale_range", ok, "must be (low, high), above 0 and at most 4")
    _check(self, "scale_range", not self.paired or low_high == (1, 1), "must be (1, 1) for pairs")
    _check(self, "small_images", self.small_images in ("pad", "skip", "resize"), "choose pad, skip or resize")
    _check(self, "seed", 0 <= self.seed < 2**32, "must be 0 to 2^32 - 1")
    _check(self, "workers", self.workers >= 0, "must not be negative")
    _check(self, "prefetch", self.prefetch >= 1, "must be at least 1")

  @property
  def paired(self) -> bool:
    return self.sources[0].paired


def _check(config, field: str, ok: bool, wanted: str):
  if not ok:
    raise UserError(f"{field} {getattr(config, field)!r}: {wanted}")


def _are_names(values) -> bool:
  return isinstance(values, tuple) and all(isinstance(value, str) and value for value in values)

"""What the training data are and how they are cut into samples."""

from typing import Annotated, Literal

from pydantic import Field

from stablesr_jax.settings import Count, Name, Natural, Positive, Seed, require, settings, within

Kind = Literal["folder", "pairs", "tfds", "tfds_pairs", "packed", "cfw_set"]
SmallImages = Literal["pad", "skip", "resize"]


@settings
class SourceConfig:
  """One source of images, or of pairs of a high-resolution (HR) image and its low-resolution (LR) version.

  Attributes:
    kind: What it is: "folder" (images, also in its subfolders), "pairs" (HR folders and LR folders), "tfds" (the
      feature `image`, or else `hr`, of a TensorFlow Dataset), "tfds_pairs" (its features `hr` and `lr`), "packed"
      (files written by `pack_images`), "cfw_set" (folders that a cfw_data run wrote, for training CFW alone; taken as
      they are).
    path: The folders, HR folders, dataset names or folders of prepared datasets, or files.
    lr_path: The LR folder of each HR folder in `path`, for "pairs" only.
    split: The split of TensorFlow Datasets, "train[:90%]" for instance.
    data_dir: Where named TensorFlow Datasets lie; None is their default.
    download: Whether to download and prepare a named dataset that is not there yet.
    weight: The share of this source among the samples, relative to the other sources' weights. Give it for all sources
      or for none: without weights every image comes equally often.
  """

  kind: Kind
  path: Annotated[tuple[Name, ...], Field(min_length=1)]
  lr_path: tuple[Name, ...] = ()
  split: Name = "train"
  data_dir: Name | None = None
  download: bool = False
  weight: Positive | None = None

  def __post_init__(self):
    wanted = len(self.path) if self.kind == "pairs" else 0
    rule = f"must name {wanted}, one for each HR folder" if wanted else f"is for pairs, not for {self.kind}"
    require(len(self.lr_path) == wanted, "lr_path", self.lr_path, rule)

  @property
  def paired(self) -> bool:
    return self.kind in ("pairs", "tfds_pairs")


@settings
class DataConfig:
  """Sources, and how samples are cut from them (defaults: the published training).

  Attributes:
    sources: The sources, all of single images, or all of pairs.
    crop_size: The side of the HR crop in pixels, a multiple of `scale`.
    scale: How many HR pixels there are for each LR pixel, along a side.
    scale_range: The least and the greatest factor, up to 4, by which an image is resized before a crop is taken from
      it, drawn anew for each sample. Below 1 shrinks it, though not below the crop; above 1 enlarges it, for a model
      that is to know photographs that are soft pixel by pixel. (1, 1) leaves it as it is, and is all that pairs allow.
    flips: Whether half of the samples are mirrored left to right.
    small_images: What becomes of an image with a side below `crop_size`. "pad" mirrors it at its right and lower
      border, which keeps it and its sharpness (the published training does so); "skip" takes another image instead;
      "resize" enlarges it, which teaches the model that blurred images are sharp.
    seed: The seed of order, crops and flips, 0 to 2^32 - 1.
    workers: The number of processes that read and decode; 0 does it in threads of the training process.
    prefetch: The number of batches kept ready, by each worker.
  """

  sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]
  crop_size: Annotated[int, Field(ge=1, le=2**16)] = 512
  scale: Count = 4
  scale_range: Annotated[tuple[Positive, Positive], within(0, 4)] = (1.0, 1.0)
  flips: bool = True
  small_images: SmallImages = "pad"
  seed: Seed = 0
  workers: Natural = 0
  prefetch: Count = 4

  def __post_init__(self):
    kinds, weights = [source.kind for source in self.sources], [source.weight for source in self.sources]
    mixed = len({source.paired for source in self.sources}) > 1
    require(not mixed, "sources", kinds, "single images and pairs cannot be mixed")
    require(len({kind == "cfw_set" for kind in kinds}) == 1, "sources", kinds, "a cfw_set cannot be mixed with images")
    partly = len({weight is None for weight in weights}) > 1
    require(not partly, "sources.weight", weights, "give it for all sources or for none")
    divides = self.crop_size % self.scale == 0
    require(divides, "crop_size", self.crop_size, f"must be a multiple of scale, {self.scale}")
    plain = not self.paired or self.scale_range == (1, 1)
    require(plain, "scale_range", self.scale_range, "must be (1, 1) for pairs")

  @property
  def paired(self) -> bool:
    return self.sources[0].paired

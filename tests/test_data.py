"""Training data: sources, crops, order over hosts, workers and restarts, damaged images."""

import itertools
import json
import logging
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from stablesr_jax.data import DataConfig, SourceConfig, make_dataset
from stablesr_jax.data.image_sources import FolderSource, PairSource, open_source
from stablesr_jax.errors import UserError

CROP = 16


def _image(number, height=24, width=40, unit=1):
  """Red is the image's number, green the row, blue the column; `unit` is the side of such a cell in pixels."""
  rows, columns = np.mgrid[:height, :width] // unit
  return np.stack([np.full_like(rows, number), rows, columns], axis=2).astype(np.uint8)


def _save(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)


def _folder(path, count=7, **kwargs):
  for number in range(count):
    _save(path / f"{number}.png", _image(number, **kwargs))
  return str(path)


def _pairs(path, count=3, height=12, width=20):
  """HR images whose 4x4 cells are the pixels of the LR images."""
  for number in range(count):
    _save(path / "hr" / f"{number}.png", _image(number, 4 * height, 4 * width, unit=4))
    _save(path / "lr" / f"{number}x4.png", _image(number, height, width))
  return SourceConfig("pairs", (str(path / "hr"),), (str(path / "lr"),))


def _config(*folders, **kwargs):
  return DataConfig((SourceConfig("folder", folders),), **{"crop_size": CROP, "prefetch": 1, **kwargs})


def _open(config, batch=4, index=0, count=1, **kwargs):
  return make_dataset(config, batch, process_index=index, process_count=count, **kwargs)


def _take(batches, count, key="hr"):
  taken = np.stack([batch[key] for batch in itertools.islice(batches, count)])
  batches.close()
  return taken


def _samples(config, count, key="hr"):
  return _take(_open(config, batch=count), 1, key)[0]


def test_folders_are_read_recursively_without_other_files(tmp_path):
  _save(tmp_path / "a/1.png", _image(1))
  _save(tmp_path / "a/b/c/2.JPG", _image(2))
  _save(tmp_path / "d/3.webp", _image(3))
  (tmp_path / "a/notes.txt").write_text("x")
  source = open_source(SourceConfig("folder", (str(tmp_path / "a"), str(tmp_path / "d"))))
  names = [source[i].name for i in range(len(source))]
  assert [pathlib.Path(name).name for name in names] == ["1.png", "2.JPG", "3.webp"]
  assert [source[i].hr for i in range(3)] == [pathlib.Path(name).read_bytes() for name in names]
  assert source[0].lr is None


def test_missing_and_empty_folders_are_named(tmp_path):
  with pytest.raises(UserError, match="nowhere: no such folder"):
    FolderSource(tmp_path / "nowhere")
  (tmp_path / "x.txt").write_text("x")
  with pytest.raises(ValueError, match=f"{tmp_path}: no images"):
    FolderSource(tmp_path)


def test_pairs_are_matched_by_relative_path(tmp_path):
  for name in ("hr/s/1.png", "hr/2.png", "lr/s/1.jpg", "lr/2x4.png"):
    _save(tmp_path / name, _image(0))
  source = PairSource(tmp_path / "hr", tmp_path / "lr")
  assert len(source) == 2
  assert source[1].hr == (tmp_path / "hr/s/1.png").read_bytes()
  assert source[1].lr == (tmp_path / "lr/s/1.jpg").read_bytes()
  assert source[0].lr == (tmp_path / "lr/2x4.png").read_bytes()


@pytest.mark.parametrize(
  "extra, message",
  [
    ("hr/s/3.png", "no partner for .*hr/s/3.png$"),
    ("lr/1.png", "no partner for .*lr/1.png$"),
    ("lr/2.webp", "2x4.png and 2.webp are both partners|2.webp and 2x4.png are both partners"),
    ("hr/2.webp", "2.png and 2.webp have the same name"),
  ],
)
def test_pairs_without_one_partner_are_named(tmp_path, extra, message):
  for name in ("hr/2.png", "lr/2x4.png", extra):
    _save(tmp_path / name, _image(0))
  with pytest.raises(ValueError, match=message):
    PairSource(tmp_path / "hr", tmp_path / "lr")


FOLDER = SourceConfig("folder", ("x",))


@pytest.mark.parametrize(
  "make, field",
  [
    (lambda: SourceConfig("zip", ("x",)), "kind"),  # pyright: ignore[reportArgumentType]
    (lambda: SourceConfig("folder", "x"), "path"),  # pyright: ignore[reportArgumentType]
    (lambda: SourceConfig("folder", ()), "path"),
    (lambda: SourceConfig("pairs", ("x",)), "lr-path"),
    (lambda: SourceConfig("folder", ("x",), ("y",)), "lr-path"),
    (lambda: SourceConfig("folder", ("x",), weight=0.0), "weight"),
    (lambda: DataConfig(()), "sources"),
    (lambda: DataConfig((FOLDER, SourceConfig("pairs", ("x",), ("y",)))), "sources .*mixed"),
    (lambda: DataConfig((FOLDER, SourceConfig("folder", ("y",), weight=1.0))), "sources.weight"),
    (lambda: DataConfig((FOLDER,), crop_size=510), "crop-size 510"),
    (lambda: DataConfig((FOLDER,), crop_size=0), "crop-size"),
    (lambda: DataConfig((FOLDER,), scale=0), "scale"),
    (lambda: DataConfig((FOLDER,), scale_range=(0.5, 4.5)), "scale-range"),
    (lambda: DataConfig((SourceConfig("pairs", ("x",), ("y",)),), scale_range=(0.5, 1.0)), "scale-range .*pairs"),
    (lambda: DataConfig((FOLDER,), small_images="drop"), "small-images"),  # pyright: ignore[reportArgumentType]
    (lambda: DataConfig((FOLDER,), seed=-1), "seed"),
    (lambda: DataConfig((FOLDER,), workers=-1), "workers"),
    (lambda: DataConfig((FOLDER,), prefetch=0), "prefetch"),
  ],
)
def test_wrong_settings_are_named(make, field):
  with pytest.raises(ValueError, match=f"^{field}"):
    make()


def test_numbers_of_processes_are_checked(tmp_path):
  config = _config(_folder(tmp_path, 1))
  with pytest.raises(ValueError, match="global_batch 5: must be a multiple of 2"):
    _open(config, batch=5, count=2)
  with pytest.raises(ValueError, match="process_index 2"):
    _open(config, index=2, count=2)
  with pytest.raises(ValueError, match="seed -1"):
    _open(config, seed=-1)


def test_missing_packages_are_named(tmp_path, monkeypatch):
  config = _config(_folder(tmp_path, 1))
  monkeypatch.setitem(sys.modules, "grain", None)
  with pytest.raises(ValueError, match=r'grain.*pip install "stablesr-jax\[train\]"'):
    _open(config)


def test_samples_are_crops_at_all_places_in_both_directions(tmp_path):
  config = _config(_folder(tmp_path))
  samples = _samples(config, 100)
  assert samples.shape == (100, CROP, CROP, 3) and samples.dtype == np.uint8
  tops, lefts, flips = set(), set(), 0
  for sample in samples:
    flipped = sample[0, 0, 2] > sample[0, 1, 2]
    upright = sample[:, ::-1] if flipped else sample
    number, top, left = (int(value) for value in upright[0, 0])
    np.testing.assert_array_equal(upright, _image(number)[top : top + CROP, left : left + CROP])
    tops.add(top)
    lefts.add(left)
    flips += flipped
  assert tops == set(range(24 - CROP + 1)) and {min(lefts), max(lefts)} == {0, 40 - CROP} and len(lefts) > 15
  assert 30 < flips < 70
  unflipped = _samples(_config(str(tmp_path), flips=False), 20)
  assert (unflipped[:, 0, 0, 2] < unflipped[:, 0, 1, 2]).all()


def test_each_epoch_has_every_image_once_in_another_order(tmp_path):
  epochs = _samples(_config(_folder(tmp_path)), 21)[:, 0, 0, 0].reshape(3, 7)
  for epoch in epochs:
    assert sorted(epoch) == list(range(7))
  assert len({tuple(epoch) for epoch in epochs}) > 1


def test_seeds_change_order_and_crops_and_nothing_else_does(tmp_path):
  config = _config(_folder(tmp_path))
  first = _samples(config, 30)
  np.testing.assert_array_equal(first, _take(_open(config, batch=30, seed=0), 1)[0])
  other = _take(_open(config, batch=30, seed=1), 1)[0]
  np.testing.assert_array_equal(other, _samples(_config(str(tmp_path), seed=1), 30))
  same_image = first[:, 0, 0, 0] == other[:, 0, 0, 0]
  assert not same_image.all()
  assert (first[same_image] != other[same_image]).any()


def test_sources_are_mixed_by_size_or_by_weight(tmp_path):
  for number, count in ((1, 2), (2, 6)):
    for i in range(count):
      _save(tmp_path / str(number) / f"{i}.png", _image(10 * number + i))
  paths = [str(tmp_path / "1"), str(tmp_path / "2")]
  by_size = DataConfig(tuple(SourceConfig("folder", (path,)) for path in paths), crop_size=CROP, prefetch=1)
  assert sorted(_samples(by_size, 8)[:, 0, 0, 0]) == [10, 11, *range(20, 26)]
  sources = tuple(SourceConfig("folder", (path,), weight=w) for path, w in zip(paths, (3.0, 1.0), strict=True))
  samples = _samples(DataConfig(sources, crop_size=CROP, prefetch=1), 40)[:, 0, 0, 0]
  assert (samples < 20).sum() == 30


@pytest.mark.parametrize("count", [2, 4])
def test_global_batches_do_not_depend_on_the_number_of_processes(tmp_path, count):
  config = _config(_folder(tmp_path), scale_range=(0.7, 1.0))  # 7 images: epochs end within batches
  (tmp_path / "3.png").write_bytes(b"damaged")
  alone = _take(_open(config, batch=8), 4)
  together = [_take(_open(config, batch=8, index=p, count=count), 4) for p in range(count)]
  np.testing.assert_array_equal(np.concatenate(together, axis=1), alone)
  assert (together[0] != together[1]).any()


def test_a_resumed_iterator_goes_on_exactly_there(tmp_path):
  config = _config(_folder(tmp_path))
  (tmp_path / "3.png").write_bytes(b"damaged")
  whole = _take(_open(config), 6)
  batches = _open(config)
  for _ in range(3):
    next(batches)
  state = json.loads(json.dumps(batches.get_state()))
  np.testing.assert_array_equal(next(batches)["hr"], whole[3])
  batches.set_state(state)  # backwards
  np.testing.assert_array_equal(_take(batches, 3), whole[3:])
  for p in range(2):  # on two hosts
    resumed = _open(config, index=p, count=2)
    resumed.set_state(state)
    np.testing.assert_array_equal(_take(resumed, 3), whole[3:, 2 * p : 2 * p + 2])
  with pytest.raises(ValueError, match="not a state"):
    batches.set_state({"next_index": 3})


def test_orbax_saves_and_restores_the_place(tmp_path):
  from orbax.checkpoint import v1 as ocp

  config = _config(_folder(tmp_path / "images"))
  batches = _open(config)
  next(batches)
  expected = []
  with ocp.training.Checkpointer(tmp_path / "run") as checkpointer:
    checkpointer.save_checkpointables(1, {"data": batches})
    expected = _take(batches, 2)
    resumed = _open(config)
    checkpointer.load_checkpointables(1, {"data": resumed})
  np.testing.assert_array_equal(_take(resumed, 2), expected)


def test_workers_resume_to_the_same_batches(tmp_path):
  config = _config(_folder(tmp_path))
  (tmp_path / "3.png").write_bytes(b"damaged")
  batches = _open(config)
  for _ in range(3):
    next(batches)
  workers = _open(_config(str(tmp_path), workers=2))
  workers.set_state(batches.get_state())
  for _ in range(4):
    np.testing.assert_array_equal(next(workers)["hr"], next(batches)["hr"])
  assert workers.get_state() == batches.get_state()
  assert workers.bad_images() == batches.bad_images() and len(workers.bad_images()) == 1
  workers.close()
  batches.close()


@pytest.mark.parametrize("damage", ["damaged", "truncated", "deleted"])
def test_bad_images_are_replaced_and_change_no_other_sample(tmp_path, caplog, damage):
  config = _config(_folder(tmp_path))
  good = _take(_open(config, batch=21), 2)
  batches = _open(config, batch=21)  # before the damage is done
  path = tmp_path / "3.png"
  if damage == "deleted":
    path.unlink()
  else:
    path.write_bytes(path.read_bytes()[:-30] if damage == "truncated" else b"no image")
  with caplog.at_level(logging.WARNING, "stablesr_jax"):
    other = _take(batches, 2)
  was_bad = good[..., 0, 0, 0] == 3
  assert was_bad.sum() == 6
  assert 3 not in other[..., 0, 0, 0]
  np.testing.assert_array_equal(other[~was_bad], good[~was_bad])
  assert [line.partition(": ")[0] for line in batches.bad_images()] == [str(path)]
  assert len(caplog.records) == 1 and str(path) in caplog.text


def test_many_bad_images_are_logged_by_number(tmp_path, caplog):
  for number in range(12):
    (tmp_path / f"{number}.png").write_bytes(b"")
  _save(tmp_path / "good.png", _image(50))
  with caplog.at_level(logging.WARNING, "stablesr_jax"):
    batches = _open(_config(str(tmp_path)), batch=13)
    assert (_take(batches, 1)[..., 0] == 50).all()
  assert len(batches.bad_images()) == 12
  assert len(caplog.records) == 6 and "10 images could not be used so far" in caplog.text


def test_a_source_without_a_usable_image_is_named(tmp_path):
  for number in range(3):
    (tmp_path / f"{number}.png").write_bytes(b"")
  with pytest.raises(ValueError, match=f"^{tmp_path}: no usable image among 3: .*png: .*empty"):
    next(_open(_config(str(tmp_path))))


def test_small_images_are_padded_skipped_or_enlarged(tmp_path):
  small = _image(9, 10, 40)
  _save(tmp_path / "small.png", small)
  padded = _samples(_config(str(tmp_path), flips=False), 4)
  for sample in padded:
    left = sample[0, 0, 2]
    np.testing.assert_array_equal(sample[:10], small[:, left : left + CROP])
    np.testing.assert_array_equal(sample[10:], sample[9:3:-1])
  enlarged = _samples(_config(str(tmp_path), flips=False, small_images="resize"), 4)
  assert np.ptp(enlarged[:, :, 0, 1], axis=1).max() == 9  # all ten rows, over sixteen
  assert abs(np.ptp(enlarged[:, 0, :, 2].astype(int), axis=1) - 9).max() <= 1  # as many columns
  with pytest.raises(ValueError, match="small.png: 40x10 is smaller than the crop of 16"):
    _samples(_config(str(tmp_path), small_images="skip"), 4)
  _save(tmp_path / "tiny.png", _image(8, 2, 3))  # mirrored many times
  _save(tmp_path / "large.png", _image(7))
  assert set(_samples(_config(str(tmp_path)), 6)[:, 0, 0, 0]) == {7, 8, 9}
  assert set(_samples(_config(str(tmp_path), small_images="skip"), 6)[:, 0, 0, 0]) == {7}


def test_scale_range_shrinks_before_the_crop(tmp_path):
  _save(tmp_path / "x.png", _image(1, 64, 64))
  samples = _samples(_config(str(tmp_path), scale_range=(0.25, 0.8), flips=False), 60)
  seen = np.ptp(samples[:, 0, :, 2].astype(int), axis=1) / (CROP - 1)  # columns of the image for each of the crop
  assert seen.min() < 1.5 and seen.max() > 2.9 and seen.min() > 1.1 and seen.max() < 4.1
  _save(tmp_path / "x.png", _image(1, 20, 20))  # shrunk by half it would be smaller than the crop
  samples = _samples(_config(str(tmp_path), scale_range=(0.5, 0.5), flips=False), 4)
  assert abs(np.ptp(samples[:, 0, :, 2].astype(int), axis=1) - 19).max() <= 1


def test_scale_range_above_one_enlarges(tmp_path):
  _save(tmp_path / "x.png", _image(1, 64, 64))
  samples = _samples(_config(str(tmp_path), scale_range=(2.0, 2.0), flips=False), 20)
  assert abs(np.ptp(samples[:, 0, :, 2].astype(int), axis=1) - (CROP / 2 - 1)).max() <= 1
  assert len(np.unique(samples[:, 0, 0, 2])) > 5  # from any place
  _save(tmp_path / "x.png", _image(1, CROP // 2, CROP // 2))  # half a crop is enough
  (sample,) = _samples(_config(str(tmp_path), scale_range=(2.0, 2.0), flips=False), 1)
  assert sample[0, 0, 2] < sample[0, -1, 2] == CROP // 2 - 1


@pytest.mark.parametrize("height", [12, 6])  # of the LR images; crops are 8, so 6 is padded
def test_pairs_are_cut_at_the_same_place(tmp_path, height):
  config = DataConfig((_pairs(tmp_path, height=height),), crop_size=32)
  batches = _open(config, batch=12)
  batch = next(batches)
  batches.close()
  assert batch["hr"].shape == (12, 32, 32, 3) and batch["lr"].shape == (12, 8, 8, 3) and batch["lr"].dtype == np.uint8
  np.testing.assert_array_equal(batch["hr"], batch["lr"].repeat(4, axis=1).repeat(4, axis=2))
  assert len(np.unique(batch["lr"], axis=0)) > 6


def test_pairs_of_wrong_sizes_are_bad(tmp_path):
  config = DataConfig((_pairs(tmp_path),), crop_size=32)
  _save(tmp_path / "lr/1x4.png", _image(1, 12, 19))
  batches = _open(config, batch=12)
  assert set(next(batches)["lr"][:, 0, 0, 0]) == {0, 2}
  assert batches.bad_images() == (f"{tmp_path}/hr/1.png: 80x48 is not 4 times its low-resolution partner's 19x12",)
  batches.close()


def test_alpha_is_laid_over_white(tmp_path):
  pixels = np.zeros((CROP, CROP, 4), np.uint8)
  pixels[:, 8:, 3] = 255
  _save(tmp_path / "x.png", pixels)
  sample = _samples(_config(str(tmp_path), flips=False), 1)[0]
  assert (sample[:, :8] == 255).all() and (sample[:, 8:] == 0).all()


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
  """A data_dir with the prepared datasets `photos` (image, label) and `photo_pairs` (hr, lr)."""
  import tensorflow_datasets as tfds

  folder = tmp_path_factory.mktemp("tfds")
  source = _pairs(folder / "files")
  files = [{"hr": f"{source.path[0]}/{number}.png", "lr": f"{source.lr_path[0]}/{number}x4.png"} for number in range(3)]
  image = tfds.features.Image(shape=(None, None, 3))

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = folder
    features: dict
    examples: list

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self.features))

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      yield from enumerate(self.examples)

  class Photos(Builder, skip_registration=True):
    name = "photos"
    features = {"image": image, "label": np.int64}
    examples = [{"image": file["hr"], "label": 0} for file in files]

  class PhotoPairs(Builder, skip_registration=True):
    name = "photo_pairs"
    features = {"hr": image, "lr": image}
    examples = files

  class Labels(Builder, skip_registration=True):
    name = "labels"
    features = {"label": np.int64}
    examples = [{"label": 0}]

  for builder in (Photos, PhotoPairs, Labels):
    builder(data_dir=str(folder), file_format="array_record").download_and_prepare()
  assert "tensorflow" not in sys.modules
  return folder


def test_tensorflow_datasets_are_read_as_files(tfds_folder):
  path = str(tfds_folder / "photos/1.0.0")
  source = open_source(SourceConfig("tfds", (path,)))
  files = {file.read_bytes() for file in (tfds_folder / "files/hr").iterdir()}
  assert {source[i].hr for i in range(len(source))} == files and len(source) == 3
  assert source[1].name == f"{path}/train#1" and source[1].lr is None
  assert len(open_source(SourceConfig("tfds", (path,), split="train[:2]"))) == 2
  batches = _open(DataConfig((SourceConfig("tfds", (path,)),), crop_size=CROP))
  assert set(next(batches)["hr"][:3, 0, 0, 0]) == {0, 1, 2}
  batches.close()


def test_tensorflow_datasets_hold_pairs(tfds_folder):
  by_name = SourceConfig("tfds_pairs", ("photo_pairs",), data_dir=str(tfds_folder))
  batches = _open(DataConfig((by_name,), crop_size=32))
  batch = next(batches)
  batches.close()
  np.testing.assert_array_equal(batch["hr"], batch["lr"].repeat(4, axis=1).repeat(4, axis=2))
  # Alone, the high-resolution images of the same dataset.
  hr = open_source(SourceConfig("tfds", ("photo_pairs",), data_dir=str(tfds_folder)))
  assert hr[0].lr is None and hr[0].hr in {file.read_bytes() for file in (tfds_folder / "files/hr").iterdir()}


@pytest.mark.parametrize(
  "kind, path, message",
  [
    ("tfds", "no_such_dataset", "^no_such_dataset: neither the name .* nor the folder"),
    ("tfds", "div2k/bicubic_x4", "^div2k/bicubic_x4: the dataset is not prepared in .*tfds build div2k/bicubic_x4"),
    ("tfds", "div2k/bicubic_x5", "^div2k/bicubic_x5: .*bicubic_x5"),
    ("tfds", "FOLDER/files", "files: not a prepared TensorFlow Dataset"),
    ("tfds", "FOLDER/labels/1.0.0", "labels/1.0.0: the dataset has no image feature image or hr .it has: label"),
    ("tfds_pairs", "FOLDER/photos/1.0.0", "photos/1.0.0: the dataset has no image feature hr and lr"),
  ],
)
def test_wrong_tensorflow_datasets_are_named(tfds_folder, kind, path, message):
  path = path.replace("FOLDER", str(tfds_folder))
  with pytest.raises(ValueError, match=message) as error:
    open_source(SourceConfig(kind, (path,), data_dir=str(tfds_folder)))
  assert "\n" not in str(error.value)


def test_wrong_splits_are_named(tfds_folder):
  path = str(tfds_folder / "photos/1.0.0")
  with pytest.raises(ValueError, match="photos/1.0.0: Unknown split 'tests'"):
    open_source(SourceConfig("tfds", (path,), split="tests"))

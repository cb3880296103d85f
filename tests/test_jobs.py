"""Folders in groups: the same pixels in any company, and what goes wrong with one picture is its own affair."""

import threading

import numpy as np
import pytest
from PIL import Image

from stablesr_jax.errors import UserError
from stablesr_jax.inference import jobs, pipeline
from stablesr_jax.inference.jobs import Report, restore_folder
from tests.micro import photograph

SIZES = [(16, 16), (20, 31), (16, 16), (18, 32), (15, 16)]  # of two frames


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "in").mkdir()
  for number, (height, width) in enumerate(SIZES):
    Image.fromarray(np.roll(photograph(height, width), number, axis=1)).save(tmp_path / "in" / f"{number}.png")
  return tmp_path


def results(folder) -> dict[str, np.ndarray]:
  return {path.name: np.asarray(Image.open(path)).astype(int) for path in folder.glob("*.png")}


class Told(Report):
  def __init__(self):
    self.groups: list[tuple[list[str], int]] = []
    self.ended: dict[str, Exception | None] = {}

  def begin(self, jobs, number, count):
    assert count == len(SIZES)
    self.groups.append(([job.name for job in jobs], number))

  def end(self, job, error):
    assert threading.current_thread() is threading.main_thread() and job.name not in self.ended
    self.ended[job.name] = error


@pytest.mark.parametrize("group, sizes", [(None, [2, 2, 1]), (9, [5])])
def test_a_pictures_pixels_do_not_depend_on_its_company(model, folder, group, sizes):
  told = Told()
  summary = restore_folder(model, folder / "in", folder / "out", group=group, report=told)
  assert not summary.failed and [job.name for job in summary.restored] == [f"{n}.png" for n in range(5)]
  assert [len(names) for names, _ in told.groups] == sizes
  assert [number for _, number in told.groups] == list(np.cumsum([1, *sizes[:-1]]))
  for number, result in results(folder / "out").items():
    alone = jobs.Job(folder / "in" / number, folder / "alone.png", number)
    assert not jobs.run_jobs(model, [alone]).failed
    expected = np.asarray(Image.open(alone.target)).astype(int)
    assert result.shape == expected.shape and np.abs(result - expected).max() <= 1


def test_floats_in_company_are_those_alone(model):
  import jax

  images = [photograph(*size) / np.float32(255) for size in SIZES]
  keys = list(jax.random.split(jax.random.key(1), len(images)))
  order = [3, 0, 4, 2, 1]
  together = model.upscale_batch(images, scale=4, keys=keys)
  otherwise = model.upscale_batch([images[k] for k in order], scale=4, keys=[keys[k] for k in order])
  for k, result in zip(order, otherwise, strict=True):
    [alone] = model.upscale_batch([images[k]], scale=4, keys=[keys[k]])
    np.testing.assert_allclose(result, alone, atol=1e-5)
    np.testing.assert_allclose(together[k], alone, atol=1e-5)


def test_a_group_is_as_many_as_fill_the_devices(model, folder, monkeypatch):
  told = Told()
  monkeypatch.setattr(model.denoiser, "most_tiles", lambda area: 12)
  restore_folder(model, folder / "in", folder / "out", report=told)
  # Canvases of 16x16 and 16x18 latent pixels have 1 and 2 tiles of 16 with an overlap of 8, 20x31 has 6, 18x32 as many.
  assert [len(names) for names, _ in told.groups] == [4, 1]
  monkeypatch.setattr(pipeline, "free_memory", lambda *_: 0)
  restore_folder(model, folder / "in", folder / "out2", report=(without := Told()))
  assert [len(names) for names, _ in without.groups] == [1] * 5


def test_one_that_fails_does_no_harm_to_the_others_of_its_group(model, folder, monkeypatch):
  """One cannot be read, one cannot be restored (and so not the group), one cannot be written."""
  (folder / "in" / "1.png").write_bytes(b"no picture")
  (folder / "out" / "3.png").mkdir(parents=True)
  restore, asked = model.upscale_batch, []

  def upscale_batch(images, **options):
    asked.append(len(images))
    if any(image.shape[:2] == (15, 16) for image in images):
      raise UserError("the result has values that are not finite")
    return restore(images, **options)

  monkeypatch.setattr(model, "upscale_batch", upscale_batch)
  told = Told()
  summary = restore_folder(model, folder / "in", folder / "out", group=5, report=told)
  assert asked == [3, 1, 1, 1]
  assert [job.name for job in summary.restored] == ["0.png", "2.png"]
  assert {job.name: str(error).rpartition(": ")[2] for job, error in summary.failed} == {
    "1.png": "not an image, or of a kind that is not supported",
    "3.png": "is a folder",
    "4.png": "the result has values that are not finite",
  }
  assert set(told.ended) == {f"{n}.png" for n in range(5)}


def test_results_are_written_while_the_next_pictures_are_restored(model, folder, monkeypatch):
  """The first result's writer waits until the third picture is being restored."""
  third, write, restore = threading.Event(), jobs.write_image, model.upscale_batch

  def slow(path, picture, *more):
    if path.name == "0.png":
      assert third.wait(60)
    write(path, picture, *more)

  calls = []

  def upscale_batch(images, **options):
    calls.append(images)
    if len(calls) == 3:
      third.set()
    return restore(images, **options)

  monkeypatch.setattr(jobs, "write_image", slow)
  monkeypatch.setattr(model, "upscale_batch", upscale_batch)
  assert not restore_folder(model, folder / "in", folder / "out").failed
  assert len(results(folder / "out")) == 5


def test_a_disk_that_is_full_is_told_for_the_picture(model, folder, monkeypatch):
  def full(path, picture, *more):
    raise UserError(f"{path}: cannot be written (No space left on device)")

  monkeypatch.setattr(jobs, "write_image", full)
  summary = restore_folder(model, folder / "in", folder / "out", group=2)
  assert not summary.restored and len(summary.failed) == 5


@pytest.mark.parametrize("options, message", [({"group": 0}, "group 0"), ({"scale": float("nan")}, "scale nan")])
def test_wrong_settings_are_told_before_any_work(model, folder, options, message):
  with pytest.raises(UserError, match=message):
    restore_folder(model, folder / "in", folder / "out", **options)
  assert not (folder / "out").exists()

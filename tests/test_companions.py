"""Pictures that belong to inputs: cleaned elsewhere, and references; what changes with them; pictures of steps."""

import os
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stablesr_jax import StableSR
from stablesr_jax.cli import infer
from stablesr_jax.errors import UserError
from stablesr_jax.images import read_image
from stablesr_jax.inference.companions import find_companions
from stablesr_jax.inference.jobs import restore_folder
from stablesr_jax.inference.plan import find_jobs
from stablesr_jax.inference.step_pictures import StepPictures
from tests.stub import Stub


class Model(Stub):
  """Repeats pixels, tells of each step, and keeps what it was given."""

  def __init__(self):
    super().__init__()
    self.images, self.references = [], []

  def upscale_batch(self, images, *, references=None, watch: Any = None, watch_every=1, **options):
    self.images += images
    self.references += references or []
    results = super().upscale_batch(images, **options)
    results = [result + 0.1 for result in results] if references else results
    for done in range(1, options["sampling"].steps + 1) if watch else ():
      for number, result in enumerate(results):
        watch(number, done, result / done)
    return results


def picture(path: pathlib.Path, value: int, size=(6, 4), mode="RGB") -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new(mode, size, (value,) * len(mode)).save(path)
  return path


@pytest.fixture
def inputs(tmp_path) -> pathlib.Path:
  """a.png and b/c.jpg."""
  picture(tmp_path / "in" / "a.png", 10)
  picture(tmp_path / "in" / "b" / "c.jpg", 20)
  return tmp_path / "in"


@pytest.fixture
def others(tmp_path) -> pathlib.Path:
  """What belongs to both."""
  picture(tmp_path / "others" / "a.bmp", 110)
  picture(tmp_path / "others" / "b" / "c.tif", 120)
  return tmp_path / "others"


def restore(model: Any, *args: Any, **options: Any):
  return restore_folder(model, *args, scale=2, **options)


def run(*arguments: Any) -> int:
  try:
    return infer.main([str(argument) for argument in arguments])
  except SystemExit as stop:
    assert isinstance(stop.code, int)
    return stop.code


def told(summary) -> list[str]:
  return [f"{job.source.name}: {error}" for job, error in summary.failed]


@pytest.mark.parametrize(
  "names, found",
  [
    (["a.png", "a.jpg"], "a.png"),
    (["a.jpg"], "a.jpg"),
    (["a.png.jpg", "a.jpg"], "a.png.jpg"),
    (["a.txt", ".a.jpg", "ab.png"], "there is no a with an image's suffix"),
    (["a.jpg", "a.webp"], "may be any of a.jpg, a.webp"),
  ],
)
def test_what_belongs_to_a_picture_has_its_name(tmp_path, names, found):
  source = picture(tmp_path / "in" / "a.png", 1)
  for name in names:
    (tmp_path / "others").mkdir(exist_ok=True)
    (tmp_path / "others" / name).write_bytes(b"")
  jobs = find_jobs(tmp_path / "in", tmp_path / "out")
  whole = find_companions(jobs, tmp_path / "in", reference=tmp_path / "others")
  if "." in found and " " not in found:
    assert whole.jobs[0].companions == {"reference": tmp_path / "others" / found}
    single = find_companions(find_jobs(source, tmp_path / "out"), source, reference=tmp_path / "others")
    assert single.jobs == whole.jobs
  else:
    [(_, error)] = whole.refused
    assert found in str(error) and not whole.jobs


def test_a_cleaned_picture_takes_the_inputs_place(inputs, others, tmp_path):
  picture(inputs / "a.png", 10, mode="RGBA")
  picture(inputs / "d.png", 30)
  picture(inputs / "e.png", 40)
  picture(others / "e.png", 140, size=(5, 4))
  model = Model()
  summary = restore(model, inputs, tmp_path / "out", pre_cleaned=others)
  assert [round(float(image.mean() * 255)) for image in model.images] == [110, 120] and not model.references
  assert len(summary.restored) == 2
  missing, size = sorted(told(summary))
  assert missing == f"d.png: has no pre-cleaned picture: there is no d with an image's suffix in {others}"
  assert size == f"e.png: {others / 'e.png'}: has 5x4 pixels, but its input 6x4"
  result = read_image(tmp_path / "out" / "a.png")
  assert result.alpha is not None and result.rgb.shape == (8, 12, 3)
  np.testing.assert_allclose(result.alpha, 10 / 255, atol=1e-3)


def test_a_reference_goes_along(inputs, others, tmp_path):
  picture(others / "a.bmp", 110, size=(50, 70))
  model = Model()
  assert len(restore(model, inputs, tmp_path / "out", reference=others).restored) == 2
  assert [reference.shape for reference in model.references] == [(70, 50, 3), (4, 6, 3)]
  assert [round(float(image.mean() * 255)) for image in model.images] == [10, 20]


@pytest.mark.parametrize("kind", ["pre_cleaned", "reference"])
def test_a_result_depends_on_what_belongs_to_its_input(inputs, others, tmp_path, kind):
  restored = lambda **given: [
    job.source.name for job in restore(Stub() if not given else Model(), inputs, tmp_path / "out", **given).restored
  ]
  assert restored() == ["a.png", "c.jpg"]
  assert restored(**{kind: others}) == ["a.png", "c.jpg"]
  assert restored(**{kind: others}) == []
  os.utime(others / "a.bmp")  # the same content
  assert restored(**{kind: others}) == []
  picture(others / "b" / "c.tif", 121)
  assert restored(**{kind: others}) == ["c.jpg"]
  assert restored() == ["a.png", "c.jpg"]


def test_a_changed_companion_is_told(inputs, others, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(StableSR, "load", lambda *_, **__: Model())
  base = ["--input", inputs, "--output", tmp_path / "out", "--compile-cache", "off", "--scale", "2"]
  assert run(*base, "--pre-cleaned", others) == 0
  picture(others / "a.bmp", 111)
  assert run(*base, "--pre-cleaned", others) == 0
  assert "infer.py: 1 restored again: made before its pre-cleaned picture changed" in capsys.readouterr().err
  (others / "a.bmp").unlink()
  picture(inputs / "new.png", 5)
  assert run(*base, "--pre-cleaned", others) == 2
  lines = capsys.readouterr().err.splitlines()
  assert (
    f"infer.py: error: {inputs / 'a.png'}: has no pre-cleaned picture: there is no a with an image's suffix in "
    + (str(others))
    in lines
  )
  assert lines[-1] == "infer.py: 0 restored, 1 as before, 2 could not be"


@pytest.mark.parametrize(
  "options, message",
  [
    (["--pre-clean", "m", "--pre-cleaned", "{others}"], "--pre-clean and --pre-cleaned: give one of them"),
    (["--pre-cleaned", "{others}/none"], "{others}/none: no such file or folder"),
    (["--reference", "{others}/a.bmp"], "{others}/a.bmp: is a file, but the input is a folder"),
    (["--pre-clean", "{others}"], "{others}: a folder without model.json, not a converted model"),
    (["--save-steps-every", "2"], "--save-steps-every: is only for --save-steps"),
    (["--save-steps", "s", "--save-steps-every", "0"], "save-steps-every 0: must be at least 1"),
    (["--save-steps", "{inputs}/steps"], "--save-steps {inputs}/steps: is in the input; choose another folder"),
    (["--reference-weight", "0.6"], "reference-weight 0.6: must be less than or equal to 0.5"),
    (["--reference", "{others}", "--output", "{others}", "--format", "tif"], "would replace the reference"),
  ],
)
def test_a_mistake_is_one_line(inputs, others, tmp_path, capsys, options, message):
  options = [option.format(inputs=inputs, others=others) for option in options]
  output = [] if "--output" in options else ["--output", str(tmp_path / "out")]
  assert run("--input", inputs, *output, *options) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert message.format(inputs=inputs, others=others) in line


def test_a_single_picture_without_its_companion(inputs, others, tmp_path, capsys):
  assert run("--input", inputs / "a.png", "--output", tmp_path / "x.png", "--reference", others / "b") == 2
  [line] = capsys.readouterr().err.splitlines()
  assert line.startswith(f"infer.py: error: {inputs / 'a.png'}: has no reference")


def test_companions_within_the_input_are_no_inputs(inputs, tmp_path):
  picture(inputs / "cleaned" / "a.png", 110)
  picture(inputs / "cleaned" / "b" / "c.png", 120)
  summary = restore(Model(), inputs, tmp_path / "out", pre_cleaned=inputs / "cleaned")
  assert len(summary.restored) == 2 and summary.left == {"in the folder of pre-cleaned pictures": 2}


def test_pictures_of_steps(inputs, tmp_path):
  steps = StepPictures(tmp_path / "steps", tmp_path / "out")
  restore(Model(), inputs, tmp_path / "out", steps=steps)
  files = sorted(path.relative_to(tmp_path / "steps").as_posix() for path in (tmp_path / "steps").rglob("*.*"))
  assert files == ["a/001.png", "a/002.png", "b/c/001.png", "b/c/002.png"]
  first, second = (np.asarray(Image.open(tmp_path / "steps" / "a" / name)) for name in ("001.png", "002.png"))
  assert first.shape == (8, 12, 3) and (first == 10).all() and (second == 5).all()
  with pytest.raises(UserError, match="^save-steps-every 0: must be at least 1$"):
    StepPictures(tmp_path, tmp_path, 0)

"""How large results become: what is asked for, exactly, or one line."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from stablesr_jax import OutputSize
from stablesr_jax.cli.infer import main
from stablesr_jax.errors import UserError
from stablesr_jax.images import read_image
from stablesr_jax.inference.jobs import restore_folder
from stablesr_jax.inference.pipeline import StableSR
from tests.micro import photograph
from tests.stub import Stub


class Resized(Stub):
  """A model that makes black pictures of the size that is asked for."""

  def upscale_batch(self, images, *, scale, keys, sampling, progress=None, tell=None):
    return [np.zeros((*scale.of(image.shape[:2]), 3), np.float32) for image in images]


@pytest.mark.parametrize(
  "size, expected, name",
  [
    (OutputSize(scale=2.5), (832, 1250), "2.5"),
    (OutputSize(width=1000), (666, 1000), "1000x"),
    (OutputSize(height=1000), (1000, 1502), "x1000"),
    (OutputSize(width=30, height=70), (70, 30), "30x70"),
    (OutputSize(longest_side=77), (51, 77), "longest77"),
    (OutputSize(shortest_side=77), (77, 116), "shortest77"),
    (OutputSize(megapixels=12), (2827, 4245), "12mp"),
    (OutputSize(scale=1e-6), (1, 1), "1e-06"),
  ],
)
def test_sizes(size, expected, name):
  assert size.of((333, 500)) == expected and str(size) == name
  assert bool(size.note((333, 500))) == (name == "30x70")


def test_a_side_is_exact_whatever_the_picture_s_proportions():
  for height in range(1, 60):
    assert OutputSize(longest_side=997).of((height, 60)) == (round(997 * height / 60), 997)
    assert OutputSize(shortest_side=997).of((60, height))[1] == 997
    assert OutputSize(height=1).of((height, 1000))[0] == 1


@pytest.mark.parametrize(
  "given, message",
  [
    ({}, "scale None: give it, or another size"),
    ({"scale": 0}, "scale 0: must be greater than 0"),
    ({"scale": float("inf")}, "scale inf: must be a finite number"),
    ({"width": 0}, "width 0: must be greater than or equal to 1"),
    ({"longest_side": -1}, "longest-side -1: must be greater than or equal to 1"),
    ({"megapixels": -1}, "megapixels -1: must be greater than 0"),
    ({"scale": 4, "width": 3}, "scale 4.0: excludes width; give one"),
    ({"width": 3, "height": 3, "shortest_side": 3}, "width 3: excludes shortest-side; give one"),
  ],
)
def test_sizes_that_are_none(given, message):
  with pytest.raises(UserError, match=f"^{message}$"):
    OutputSize(**given)


@pytest.mark.parametrize("size", [OutputSize(scale=1e5), OutputSize(megapixels=5000), OutputSize(width=2**31 - 1)])
def test_sizes_beyond_all_reason(size):
  with pytest.raises(UserError, match=r"^(scale|megapixels|width) .*: the result of 20x10 pixels would be too large"):
    size.of((10, 20))


@pytest.fixture
def resized(monkeypatch):
  monkeypatch.setattr(StableSR, "load", lambda *args, **options: Resized())


@pytest.mark.parametrize(
  "options, expected",
  [
    (("--width", 50), (50, 38)),
    (("--height", 50), (67, 50)),
    (("--longest-side", 40), (40, 30)),
    (("--shortest-side", 40), (53, 40)),
    (("--megapixels", 0.0192), (160, 120)),
    (("--scale", 0.5), (8, 6)),
    ((), (64, 48)),
  ],
)
def test_options(resized, tmp_path, capsys, options, expected):
  Image.fromarray(photograph(12, 16)).save(tmp_path / "a.png")
  assert run(tmp_path / "a.png", tmp_path / "b.png", *options) == 0
  assert read_image(tmp_path / "b.png").rgb.shape == (*expected[::-1], 3)
  assert capsys.readouterr().err == ""


def test_changed_proportions_are_told_and_two_sizes_refused(resized, tmp_path, capsys):
  Image.fromarray(photograph(12, 16)).save(tmp_path / "a.png")
  assert run(tmp_path / "a.png", tmp_path / "b.png", "--width", 32, "--height", 12) == 0
  assert read_image(tmp_path / "b.png").rgb.shape == (12, 32, 3)
  assert (
    "a.png: its proportions change: the width becomes 2 times as large, the height 1 times" in capsys.readouterr().err
  )
  with pytest.raises(SystemExit, match="2"):
    run(tmp_path / "a.png", tmp_path / "c.png", "--width", 32, "--scale", 2)
  assert capsys.readouterr().err == "infer.py: error: scale 2.0: excludes width; give one\n"


def test_another_size_restores_again(tmp_path):
  (tmp_path / "in").mkdir()
  Image.fromarray(photograph(12, 16)).save(tmp_path / "in" / "a.png")
  restore = lambda scale: restore_folder(Resized(), tmp_path / "in", tmp_path / "out", scale=scale)
  wide, double = OutputSize(width=32), OutputSize(scale=2)
  assert [len(restore(scale).restored) for scale in (wide, wide, 2, 2.0, double, wide)] == [1, 0, 1, 0, 0, 1]


def run(source: pathlib.Path, target: pathlib.Path, *options: object) -> int:
  return main(["--input", str(source), "--output", str(target), *map(str, options)])

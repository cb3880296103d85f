"""What is done to large pictures piece by piece is what is done to small ones at once."""

import jax.numpy as jnp
import numpy as np
import pytest

from stablesr_jax.inference import color, color_bands, frames, tiling
from stablesr_jax.inference.enlarged import Enlarged
from tests.micro import photograph


@pytest.mark.parametrize("target", [(160, 200), (123, 77), (30, 25), (45, 33)])
def test_parts_of_an_enlarged_picture_are_the_whole_ones(target):
  image = photograph(40, 33) / np.float32(255)
  enlarged = Enlarged(image, target)
  whole = enlarged.part(0, 0, target)
  whole = np.pad(whole, [(0, 20), (0, 20), (0, 0)], mode="reflect")
  for top in range(0, target[0], 17):
    for left in range(0, target[1], 25):
      part = enlarged.part(top, left, (32, 16))
      expected = whole[top : top + 32, left : left + 16]
      np.testing.assert_allclose(part[: len(expected), : expected.shape[1]], expected, atol=1e-5)


def test_reflections_go_to_and_fro():
  for side in (1, 2, 5):
    expected = np.pad(np.arange(side), (0, 20), mode="reflect")
    np.testing.assert_array_equal(frames.mirrored(np.arange(side + 20), side), expected)


@pytest.mark.parametrize("name, weight", [("adain", 1), ("adain", 0.3), ("wavelet", 1), ("lab", 0.5), ("none", 1)])
@pytest.mark.parametrize("rows, columns", [(7, 33), (64, 20), (200, 50)])
def test_colours_by_blocks_are_those_of_the_whole(monkeypatch, name, weight, rows, columns):
  content = np.random.default_rng(0).normal(0.5, 0.3, (150, 50, 3)).astype(np.float32)
  style = jnp.asarray(photograph(150, 50), jnp.float32) / 255
  expected = np.clip(color.fix(content[None], style[None], name, None, np.float32(weight)), 0, 1)[0]
  monkeypatch.setattr(color_bands, "_ROWS", rows)
  monkeypatch.setattr(color_bands, "_COLUMNS", columns)
  beyond = jnp.pad(style, ((0, 300), (0, 200), (0, 0)), constant_values=7)
  part = lambda top, left, shape: beyond[top : top + shape[0], left : left + shape[1]]
  color_bands.fix_in_place(content, part, name, weight)
  np.testing.assert_allclose(content, expected, atol=5e-6)


def test_pieces_that_agree_give_the_image_back():
  y, x = np.mgrid[:40, :70].astype(np.float32)
  image = np.stack([np.sin(x / 9), y / 40, np.cos(y / 7)], axis=-1)
  rows, columns = (tiling.Axis(side, 24, 8) for side in (40, 70))
  blend = tiling.Blend((39, 68, 3), rows, columns)  # the canvas may end within the last pieces
  for a in rows.starts:
    for b in columns.starts:
      blend.add(frames.put(image[a : a + 24, b : b + 24], (32, 32)) * np.float32(1), a, b)
  np.testing.assert_allclose(blend.canvas, image[:39, :68], atol=1e-5)


def test_pieces_that_disagree_are_joined_by_a_ramp():
  rows, columns = tiling.Axis(24, 24, 8), tiling.Axis(40, 24, 8)
  blend = tiling.Blend((24, 40, 1), rows, columns)
  for value, b in ((0.0, 0), (1.0, 16)):
    piece = np.full((32, 32, 1), np.nan, np.float32)  # of its frame a part counts
    piece[:24, :24] = value
    blend.add(piece, 0, b)
  row = blend.canvas[12, :, 0]
  assert row[0] == 0 and row[-1] == 1 and np.diff(row).max() < 0.2

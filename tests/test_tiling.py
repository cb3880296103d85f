import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablesr_jax.inference import tiling


@pytest.mark.parametrize(
  "size, tile, overlap, expected",
  [
    (64, 64, 32, [0]),
    (96, 64, 32, [0, 32]),
    (100, 64, 32, [0, 32, 36]),  # the last tile is moved back to end at the border
    (22, 16, 8, [0, 6]),
    (128, 64, 0, [0, 64]),
    (65, 64, 0, [0, 1]),
  ],
)
def test_offsets(size, tile, overlap, expected):
  assert tiling.offsets(size, tile, overlap) == expected


@pytest.mark.parametrize("size", [64, 65, 97, 150, 513])
def test_tiles_cover_the_side_and_overlap_at_least_as_asked(size):
  starts = np.array(tiling.offsets(size, 64, 32))
  assert starts[0] == 0 and starts[-1] + 64 == size
  assert (np.diff(starts) <= 32).all() and (np.diff(starts) > 0).all()


def test_bad_geometry():
  with pytest.raises(ValueError, match="shorter than a tile"):
    tiling.offsets(63, 64, 32)
  with pytest.raises(ValueError, match="overlap 64"):
    tiling.offsets(100, 64, 64)


def test_aggregating_what_was_split_gives_the_canvas_back():
  canvas = jax.random.normal(jax.random.key(0), (22, 40, 4))
  starts = tiling.grid(22, 40, 16, 8)
  tiles = tiling.split(canvas, starts, 16)
  assert tiles.shape == (len(starts), 16, 16, 4)
  joined = tiling.aggregate(tiles, starts, tiling.gaussian_weights(16), height=22, width=40)
  np.testing.assert_allclose(joined, canvas, atol=1e-5)


def test_aggregation_is_the_weighted_average():
  starts = np.array([(0, 0), (0, 2)], np.int32)
  tiles = jnp.stack([jnp.full((4, 4, 1), 1.0), jnp.full((4, 4, 1), 3.0)])
  weights = np.full((4, 4), 0.5, np.float32)
  joined = tiling.aggregate(tiles, starts, weights, height=4, width=6)
  np.testing.assert_allclose(joined[0, :, 0], [1, 1, 2, 2, 3, 3])


def test_blend_gives_a_smooth_image_back_and_joins_without_a_step():
  y, x = np.mgrid[:40, :70].astype(np.float32)
  image = np.stack([np.sin(x / 9), y / 40, np.cos(y / 7)], axis=-1)
  blend = tiling.Blend(image.shape, (24, 24), 8)
  offsets = [(a, b) for a in tiling.offsets(40, 24, 8) for b in tiling.offsets(70, 24, 8)]
  for a, b in offsets:
    blend.add(jnp.asarray(image[a : a + 24, b : b + 24]), a, b)
  np.testing.assert_allclose(blend.result(), image, atol=1e-5)
  # Pieces that disagree by 1 are joined by a ramp, not by a step.
  blend = tiling.Blend((24, 40), (24, 24), 8)
  for value, b in ((0.0, 0), (1.0, 16)):
    blend.add(jnp.full((24, 24, 1), value), 0, b)
  row = np.asarray(blend.result())[12, :, 0]
  assert row[0] == 0 and row[-1] == 1 and np.diff(row).max() < 0.2

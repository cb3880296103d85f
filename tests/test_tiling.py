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


@pytest.mark.parametrize(
  "canvas, expected",
  [
    ((64, 64), (64, 64)),
    ((40, 1000), (64, 64)),
    ((3, 64), (64, 64)),  # one tile has it whole
    ((32, 65), (32, 128)),
    ((65, 32), (128, 32)),
    ((33, 500), (64, 64)),
    ((3, 100), (32, 128)),  # the squarest of those that have it in one tile
    ((3, 300), (8, 512)),
    ((2000, 3), (512, 8)),
    ((12, 300), (16, 256)),
  ],
)
def test_narrow_canvases_have_narrow_tiles_of_as_many_pixels(canvas, expected):
  assert tiling.tile_sides(canvas, 64, 32) == expected


def test_sides_of_tiles_are_those_that_the_networks_take():
  for tile in range(8, 136, 8):
    for short in range(1, 2 * tile):
      height, width = tiling.tile_sides((short, 20 * tile), tile, tile // 2)
      assert height % 8 == width % 8 == 0 and height * width <= tile**2 and min(height, width) >= min(short, tile)
      assert short <= tile // 2 or (height, width) == (tile, tile)


def aggregate(tiles, sheet):
  used = np.ones(len(tiles), bool)
  total = jnp.zeros((*sheet.shape, tiles.shape[-1]))
  return tiling.collect(total, tiles, sheet.starts, used, tiling.gaussian_weights(*sheet.tile)) / sheet.weights


def test_aggregating_what_was_split_gives_the_canvases_back():
  """Two canvases, the first with space to spare."""
  canvases = [jax.random.normal(jax.random.key(k), (1, *shape, 4)) for k, shape in enumerate([(24, 48), (16, 24)])]
  sheet = tiling.Sheet.of([(22, 40), (16, 24)], [(24, 48), (16, 24)], (16, 16), 8)
  assert sheet.shape == (64, 64) and sheet.tops == (0, 24)
  laid = jnp.zeros((*sheet.shape, 4))
  for canvas, top in zip(canvases, sheet.tops, strict=True):
    laid = tiling.lay(laid, canvas, [top])
  tiles = tiling.split(laid, sheet.starts, (16, 16))
  assert tiles.shape == (2 * 4 + 2, 16, 16, 4)
  joined = aggregate(tiles, sheet)
  np.testing.assert_allclose(sheet.take(joined, 0, 1, (24, 48))[0, :22, :40], canvases[0][0, :22, :40], atol=1e-5)
  np.testing.assert_allclose(sheet.take(joined, 1, 1, (16, 24)), canvases[1], atol=1e-5)
  assert (sheet.canvas[:24] == 0).all() and (sheet.canvas[24:] == 1).all()
  np.testing.assert_array_equal(sheet.row, [*range(24), *range(40)])


def test_aggregation_is_the_weighted_average_of_the_tiles_that_count():
  starts = np.array([(0, 0), (0, 2), (0, 2)], np.int32)
  tiles = jnp.stack([jnp.full((4, 4, 1), value) for value in (1.0, 3.0, 99.0)])
  weights = np.full((4, 4), 0.5, np.float32)
  total = tiling.collect(jnp.zeros((4, 6, 1)), tiles, starts, np.array([True, True, False]), weights)
  np.testing.assert_allclose(total[0, :, 0], [0.5, 0.5, 2, 2, 1.5, 1.5])

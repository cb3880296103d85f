"""3x3 convolutions by Winograd's minimal filtering F(2x2, 3x3): 16 products where the direct way needs 36.

For a CPU in float32, where it takes half to four fifths of the direct way's time at the same accuracy: its transforms
only add and halve. (F(4x4, 3x3) would need fewer products, but costs a digit and a half.) The filters are transformed
once, not at every call.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Filter taps -> 4 points, along one axis.
_POINTS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
# After nearest-neighbour enlargement two of a patch's four pixels are equal, one of its points is zero, and another
# one twice a pixel; that 2 is put into the filter.
_ENLARGING_POINTS = np.array([[1, 0, 0], [1, 1, 1], [0, 0, 1]], np.float32)
# With fewer patches than this, the filters are the left factor of the products: what is packed anew at every call of a
# matrix product is the right one.
_FEW_PATCHES = 256
# Narrower layers gain nothing, and a program with this many more operations takes seconds longer to compile and load.
_LEAST_CHANNELS = 256


def pays(x: jax.Array, y: jax.Array) -> bool:
  """Whether `convolve` is faster from x to y than XLA's own convolution, and worth the filters' memory."""
  large = x.shape[1] * x.shape[2] >= 64 and min(x.shape[-1], y.shape[-1]) >= _LEAST_CHANNELS
  return jax.default_backend() == "cpu" and y.dtype == jnp.float32 and large


def transform(kernel: jax.Array, *, enlarge: bool = False) -> list[jax.Array]:
  """A kernel (3, 3, C, D) -> the filters of `convolve`, 16 of (D, C), or of `convolve_enlarged`, 9 of them.

  They are separate arrays because a product that reads a part of a larger array copies it first.
  """
  points = _ENLARGING_POINTS if enlarge else _POINTS
  filters = jnp.einsum("ai,bj,ijcd->abdc", points, points, kernel, precision="highest")
  return list(filters.reshape(-1, *filters.shape[2:]))


@jax.jit
def convolve(x: jax.Array, filters: Sequence[jax.Array]) -> jax.Array:
  """A 3x3 convolution, stride 1, zero padding of 1.

  Args:
    x: (B, H, W, C) float32.
    filters: 16 of (D, C), from `transform`.

  Returns:
    (B, H, W, D).
  """
  _, height, width, _ = x.shape
  # Results come in patches of 2x2: where a side is odd, the last row or column of them is one too many.
  padded = jnp.pad(x, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
  to_points = lambda p: [p[0] - p[2], p[1] + p[2], p[2] - p[1], p[1] - p[3]]
  from_points = lambda p: [p[0] + p[1] + p[2], p[1] - p[2] - p[3]]
  lines = to_points([padded[:, i : i + height : 2] for i in range(4)])
  patches = [to_points([line[:, :, j : j + width : 2] for j in range(4)]) for line in lines]
  return _products(patches, filters, from_points)[:, :height, :width]


@jax.jit
def convolve_enlarged(x: jax.Array, filters: Sequence[jax.Array]) -> jax.Array:
  """The same after nearest-neighbour enlargement by 2, with a quarter of the products.

  Args:
    x: (B, H, W, C) float32.
    filters: 9 of (D, C), from `transform(..., enlarge=True)`.

  Returns:
    (B, 2H, 2W, D).
  """
  _, height, width, _ = x.shape
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  to_points = lambda p: [p[0] - p[1], p[1], p[1] - p[2]]
  from_points = lambda p: [p[0] + p[1], p[1] - p[2]]
  lines = to_points([padded[:, i : i + height] for i in range(3)])
  patches = [to_points([line[:, :, j : j + width] for j in range(3)]) for line in lines]
  return _products(patches, filters, from_points)


def _products(patches: list[list[jax.Array]], filters: Sequence[jax.Array], from_points) -> jax.Array:
  """Points of all patches, each (B, H/2, W/2, C) -> (B, H, W, D)."""
  b, rows, columns, c = patches[0][0].shape
  few = b * rows * columns < _FEW_PATCHES
  product = lambda left, right: jax.lax.dot_general(left, right, (((1,), (1,)), ((), ())))

  def point(i: int, j: int) -> jax.Array:  # (D, patches) if they are few, else (patches, D)
    points, filter = patches[i][j].reshape(-1, c), filters[n * i + j]
    return product(filter, points) if few else product(points, filter)

  n = len(patches)
  lines = [from_points([point(i, j) for j in range(n)]) for i in range(n)]
  pixels = [from_points([line[j] for line in lines]) for j in range(2)]  # [column][row]
  if few:
    # Transposed by a product, as XLA would fuse a mere transposition into what follows, and be 20 times slower there.
    identity = jnp.eye(b * rows * columns, dtype=filters[0].dtype)
    pixels = [[product(identity, pixel) for pixel in column] for column in pixels]
  pixels = [[pixel.reshape(b, rows, columns, -1) for pixel in column] for column in pixels]
  y = jnp.stack([jnp.stack(column, axis=2) for column in pixels], axis=4)
  return y.reshape(b, 2 * rows, 2 * columns, -1)

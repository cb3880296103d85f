"""3x3 convolutions by Winograd's minimal filtering F(2x2, 3x3): 16 products where the direct way needs 36.

For a CPU in float32, where it takes half to four fifths of the direct way's time at the same accuracy: its transforms
only add and halve. (F(4x4, 3x3) would need fewer products, but costs a digit and a half.) The filters are transformed
once, not at every call: `prepare` puts them into the parameters, in place of the kernels.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float

from stablesr_jax.config import ComputeConfig
from stablesr_jax.models.parameters import Params, flat

# Filter taps -> 4 points, along one axis.
_POINTS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
# After nearest-neighbour upsampling two of a patch's four pixels are equal, one of its points is zero, and another
# one twice a pixel; that 2 is put into the filter.
_UPSAMPLING_POINTS = np.array([[1, 0, 0], [1, 1, 1], [0, 0, 1]], np.float32)
# With fewer patches than this, the filters are the left factor of the products: what is packed anew at every call of a
# matrix product is the right one.
_FILTERS_LEFT_BELOW = 256
# Narrower layers gain nothing, and a program with this many more operations takes seconds longer to compile and load.
_MIN_CHANNELS = 256
# What the networks call the layers whose convolution has a stride, or comes after upsampling (see `layers`).
_STRIDED, _UPSAMPLING = "downsample_", "upsample_"

Filters = Sequence[Float[Array, "d c"]]


def prepare(params: Params, compute: ComputeConfig, *, donate: bool = False) -> Params:
  """Transforms the filters of the layers that gain by it: 3x3 without a stride, from and to 256 channels or more.

  Args:
    params: The parameters of the UNet or the time-aware encoder.
    compute: The settings that the network is computed with. On anything but a CPU in float32 no layer gains.
    donate: Whether a kernel's array is deleted once its filters are there, so that no more than one layer's parameters
      are in memory twice.

  Returns:
    The parameters, where these layers have `filters` in place of their `kernel` (16 / 9 of its size, 1 after
    upsampling); `layers.Conv` uses them.
  """
  if compute.platform != "cpu" or compute.dtype != "float32":
    return params
  prepared = {}
  for path, leaf in flat(params).items():
    layer, _, name = path.rpartition("/")
    if name != "kernel" or not _gains(layer, leaf.shape):
      prepared[path] = leaf
      continue
    # Awaited, or the kernels of all layers would wait for their turn.
    filters = jax.block_until_ready(transform(leaf, upsample=_UPSAMPLING in layer))
    prepared[f"{layer}/filters"] = filters
    if donate and isinstance(leaf, jax.Array):
      leaf.delete()
  return unflatten_dict(prepared, sep="/")


def _gains(layer: str, kernel: tuple[int, ...]) -> bool:
  return kernel[:2] == (3, 3) and min(kernel[2:]) >= _MIN_CHANNELS and _STRIDED not in layer


@functools.partial(jax.jit, static_argnames="upsample")
def transform(kernel: Float[Array, "3 3 c d"], *, upsample: bool = False) -> list[Float[Array, "d c"]]:
  """Makes the filters of `convolve`, 16 of them, or of `convolve_upsampled`, 9.

  They are separate arrays because a product that reads a part of a larger array copies it first.
  """
  points = _UPSAMPLING_POINTS if upsample else _POINTS
  filters = jnp.einsum("ai,bj,ijcd->abdc", points, points, kernel, precision="highest")
  return list(filters.reshape(-1, *filters.shape[2:]))


@jax.jit
def convolve(x: Float[Array, "b h w c"], filters: Filters) -> Float[Array, "b h w d"]:
  """A 3x3 convolution, stride 1, zero padding of 1, with the 16 filters from `transform`; float32."""
  if len(filters) != len(_POINTS) ** 2:
    raise ValueError(f"{len(filters)} filters: expected {len(_POINTS) ** 2}")
  _, height, width, _ = x.shape
  # Results come in patches of 2x2: where a side is odd, the last row or column of them is one too many.
  padded = jnp.pad(x, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
  to_points = lambda p: [p[0] - p[2], p[1] + p[2], p[2] - p[1], p[1] - p[3]]
  from_points = lambda p: [p[0] + p[1] + p[2], p[1] - p[2] - p[3]]
  lines = to_points([padded[:, i : i + height : 2] for i in range(4)])
  patches = [to_points([line[:, :, j : j + width : 2] for j in range(4)]) for line in lines]
  return _products(patches, filters, from_points)[:, :height, :width]


@jax.jit
def convolve_upsampled(x: Float[Array, "b h w c"], filters: Filters) -> Float[Array, "b 2*h 2*w d"]:
  """The same after nearest-neighbour upsampling by 2, with the 9 filters from `transform(..., upsample=True)`."""
  if len(filters) != len(_UPSAMPLING_POINTS) ** 2:
    raise ValueError(f"{len(filters)} filters: expected {len(_UPSAMPLING_POINTS) ** 2}")
  _, height, width, _ = x.shape
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  to_points = lambda p: [p[0] - p[1], p[1], p[1] - p[2]]
  from_points = lambda p: [p[0] + p[1], p[1] - p[2]]
  lines = to_points([padded[:, i : i + height] for i in range(3)])
  patches = [to_points([line[:, :, j : j + width] for j in range(3)]) for line in lines]
  return _products(patches, filters, from_points)


def _products(
  patches: list[list[jax.Array]], filters: Filters, from_points: Callable[[list[jax.Array]], list[jax.Array]]
) -> jax.Array:
  """Points of all patches, each (B, H/2, W/2, C) -> (B, H, W, D)."""
  b, rows, columns, c = patches[0][0].shape
  filters_left = b * rows * columns < _FILTERS_LEFT_BELOW
  product = lambda left, right: jax.lax.dot_general(left, right, (((1,), (1,)), ((), ())))

  def point(i: int, j: int) -> jax.Array:  # (D, patches) with the filters left, else (patches, D)
    points, filter = patches[i][j].reshape(-1, c), filters[n * i + j]
    return product(filter, points) if filters_left else product(points, filter)

  n = len(patches)
  lines = [from_points([point(i, j) for j in range(n)]) for i in range(n)]
  pixels = [from_points([line[j] for line in lines]) for j in range(2)]  # [column][row]
  if filters_left:
    # Transposed by a product, as XLA would fuse a mere transposition into what follows, and be 20 times slower there.
    identity = jnp.eye(b * rows * columns, dtype=filters[0].dtype)
    pixels = [[product(identity, pixel) for pixel in column] for column in pixels]
  pixels = [[pixel.reshape(b, rows, columns, -1) for pixel in column] for column in pixels]
  y = jnp.stack([jnp.stack(column, axis=2) for column in pixels], axis=4)
  return y.reshape(b, 2 * rows, 2 * columns, -1)

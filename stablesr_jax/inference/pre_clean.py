"""Cleaning of a badly degraded picture before it is restored (appendix C): Real-ESRGAN enlarges it, and it is brought
down to its own size again."""

import os
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stablesr_jax.checkpoints.store import Manifest, load_params, read_pre_cleaner
from stablesr_jax.compilation import compiler_options
from stablesr_jax.config import ComputeConfig
from stablesr_jax.errors import UserError
from stablesr_jax.inference import frames
from stablesr_jax.models.components import modules
from stablesr_jax.models.parameters import Params, apply
from stablesr_jax.parallel import batched, compute_for, data_mesh, for_devices, replicated
from stablesr_jax.pixels import Picture, antialiased, like, to_float

FACTOR = 4
"""How much larger the network makes a picture."""
# The side of the largest piece, and how many pixels at each of its borders are seen but not kept. With x4plus's weights
# a pixel that has 64 around it is at most 0.3 of 255 levels from what it is with more; with 32, up to 3.8.
_PIECE, _MARGIN = 384, 64


class PreCleaner:
  """A loaded Real-ESRGAN.

  cleaner = PreCleaner.load("models/x4plus")
  restored = model.upscale(photo, pre_cleaner=cleaner)

  Attributes:
    manifest: What the model's `model.json` says.
    path: The folder that it was loaded from, or None.
  """

  def __init__(
    self,
    manifest: Manifest,
    params: Params,
    *,
    compute: ComputeConfig = ComputeConfig(),
    mesh: jax.sharding.Mesh | None = None,
    path: str | os.PathLike | None = None,
    piece: int = _PIECE,
    margin: int = _MARGIN,
  ):
    """Most callers want `load`.

    Args:
      params: The part "precleaner".
      mesh: The devices that share the work; by default all of this process.
      piece: The side in pixels of the largest piece of a picture that goes through the network at once.
      margin: How many pixels of it at each border are seen, but not kept.
    """
    self.manifest, self.path = manifest, path
    self._mesh = mesh or data_mesh(jax.local_devices())
    self._compute = for_devices(compute, self._mesh)
    self._module, self._params = modules(manifest.architecture, self._compute)["precleaner"], params
    self._piece, self._margin = piece, margin
    self._clean = jax.jit(self._clean_impl, compiler_options=compiler_options(self._compute.platform))

  @classmethod
  def load(
    cls,
    path: str | os.PathLike,
    *,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    devices: Sequence[Any] | None = None,
  ) -> "PreCleaner":
    """Loads the pre-cleaner of a converted model.

    Args:
      path: A folder that `convert_weights.py` has written, of Real-ESRGAN's weights alone or among others.
      precision: The dtype of the computation; "auto" is float32 on CPU and bfloat16 on GPU and TPU.
      devices: The devices that share the work; by default all of this process.

    Raises:
      UserError: The folder is no converted model, or has no pre-cleaner.
    """
    manifest = read_pre_cleaner(path)
    mesh = data_mesh(jax.local_devices() if devices is None else devices)
    compute = compute_for(precision, mesh)
    params = load_params(path, manifest, ["precleaner"], dtype=compute.dtype, sharding=replicated(mesh))["precleaner"]
    return cls(manifest, params, compute=compute, mesh=mesh, path=path)

  def __call__(self, image: Picture) -> Picture:
    """Cleans a picture.

    Args:
      image: A PIL image (made RGB), or an array (H, W, 3) of uint8, or of floats in [0, 1].

    Returns:
      The same kind and size.
    """
    return like(self.clean(to_float(image)), image)

  def clean(self, image: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    """Cleans a picture in [0, 1], piece by piece: memory does not grow with it but for the picture itself.

    Beyond its borders the network sees its reflection. It consists of convolutions alone, so that a pixel that is far
    enough from the edge of a piece comes out as of the whole picture.

    Returns:
      The picture, float32 in [0, 1].

    Raises:
      UserError: The result is not finite.
    """
    size, margin = image.shape[:2], self._margin
    # As many pieces as it takes, all of one size, which is a frame's.
    counts = [-(-side // (self._piece - 2 * margin)) for side in size]
    kept = [-(-side // count) for side, count in zip(size, counts, strict=True)]
    shape = [frames.length(side + 2 * margin, frames.SMALLEST) for side in kept]
    beyond = [
      (margin, (count - 1) * inner + side - margin - whole)
      for whole, count, inner, side in zip(size, counts, kept, shape, strict=True)
    ]
    padded = np.pad(image, [*beyond, (0, 0)], mode="reflect").astype(np.float32)
    starts = [(y, x) for y in range(0, size[0], kept[0]) for x in range(0, size[1], kept[1])]
    result = np.empty((counts[0] * kept[0], counts[1] * kept[1], 3), np.float32)
    for first in range(0, len(starts), self._mesh.size):
      some = starts[first : first + self._mesh.size]
      filled = some + some[-1:] * (self._mesh.size - len(some))
      pieces = np.stack([padded[y : y + shape[0], x : x + shape[1]] for y, x in filled])
      cleaned = np.asarray(self._clean(self._params, jax.device_put(pieces, batched(self._mesh))))
      for (y, x), piece in zip(some, cleaned, strict=False):
        result[y : y + kept[0], x : x + kept[1]] = piece[margin:, margin:][: kept[0], : kept[1]]
    result = result[: size[0], : size[1]]
    if not np.isfinite(result).all():
      raise UserError("the pre-cleaned picture has values that are not finite")
    return result

  def _clean_impl(self, params: Params, pieces: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    large = jnp.clip(apply(self._module, params, pieces), 0, 1)
    rows, columns = (antialiased(FACTOR * side, FACTOR * side, side, side) for side in pieces.shape[1:3])
    small = jnp.einsum("yh,bhwc,xw->byxc", rows, large, columns, precision=jax.lax.Precision.HIGHEST)
    return jnp.clip(small, 0, 1)

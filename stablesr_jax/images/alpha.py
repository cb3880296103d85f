"""Opacity: what lies under it, and how it is enlarged."""

import numpy as np
from PIL import Image


def fill_transparent(rgb: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
  """Gives pixels that cannot be seen the colours of those near that can be, so that none of what is hidden gets out.

  What a picture has under full transparency may be anything; a network, or any filter, would mix it into the edge of
  what is seen. Colours are averaged, weighted by opacity, over squares of 2, 4, 8, ... pixels until every square has
  one ("pull"), and go back from there to the pixels without, smoothly ("push").

  Args:
    rgb: (H, W, 3), float32.
    alpha: (H, W), float32 in [0, 1]; None if the picture is opaque.

  Returns:
    (H, W, 3), float32. Pixels that are not fully transparent are as they were.
  """
  if alpha is None or alpha.min() > 0 or alpha.max() <= 0:
    return rgb
  filled = _push_pull(rgb, alpha[..., None])
  return np.where(alpha[..., None] > 0, rgb, filled)


def _push_pull(rgb: np.ndarray, weight: np.ndarray) -> np.ndarray:
  """Colours where there are weights, and averages of those near where there are none."""
  if weight.min() > 0 or max(weight.shape) == 1:
    return rgb
  height, width = weight.shape[:2]
  weighted, total = _halves(rgb * weight), _halves(weight)
  coarse = _push_pull(weighted / np.maximum(total, 1e-12), np.minimum(total, 1))
  planes = [Image.fromarray(np.ascontiguousarray(coarse[..., c])) for c in range(3)]
  # Squares at an odd edge reach over it.
  box = (0, 0, width / 2, height / 2)
  wide = [np.asarray(p.resize((width, height), Image.Resampling.BILINEAR, box=box)) for p in planes]
  return np.where(weight > 0, rgb, np.stack(wide, axis=-1))


def _halves(values: np.ndarray) -> np.ndarray:
  """Sums over squares of two pixels a side; an odd edge is filled up with zeros."""
  height, width, channels = values.shape
  padded = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)))
  return padded.reshape((height + 1) // 2, 2, (width + 1) // 2, 2, channels).sum(axis=(1, 3))


def resize_alpha(alpha: np.ndarray, height: int, width: int) -> np.ndarray:
  """Resizes opacity (H, W), float32 in [0, 1], by Lanczos, antialiased where it gets smaller; the result is in [0, 1].

  Where it gets larger it stays within what the pixels around have, so that what is opaque, or cannot be seen, stays so
  up to the edge, without ripples beside it.
  """
  resize = lambda plane, way: np.asarray(Image.fromarray(plane).resize((width, height), way))
  resized = resize(alpha, Image.Resampling.LANCZOS)
  if height < alpha.shape[0] or width < alpha.shape[1]:
    return resized.clip(0, 1)
  around = np.lib.stride_tricks.sliding_window_view(np.pad(alpha, 1, mode="edge"), (3, 3))
  least, most = around.min(axis=(2, 3)), around.max(axis=(2, 3))
  return resized.clip(resize(least, Image.Resampling.NEAREST), resize(most, Image.Resampling.NEAREST))


def over_white(rgb: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
  """Lays (H, W, 3) in [0, 1] over white; values beyond are clipped where there is opacity."""
  if alpha is None:
    return rgb
  opacity = np.clip(alpha, 0, 1)[..., None]
  return np.clip(rgb, 0, 1) * opacity + (1 - opacity)

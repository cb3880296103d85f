"""What lies under transparency, and how opacity is enlarged."""

import numpy as np
import pytest
from PIL import Image

from stablesr_jax import pixels
from stablesr_jax.images import Output, Picture, fill_transparent, read_image, resize_alpha, write_image
from stablesr_jax.inference.jobs import restore_folder
from tests.test_damaged_pictures import Stub

GREEN, MAGENTA = (64, 197, 64), (255, 0, 255)


class Bicubic(Stub):
  """Enlarges as Pillow does, each channel in floats."""

  def upscale_batch(self, images, *, scale, keys, sampling, progress, tell):
    def enlarge(image):
      planes = [Image.fromarray(np.ascontiguousarray(image[..., c])) for c in range(3)]
      size = scale.of(image.shape[:2])[::-1]
      return np.stack([np.asarray(p.resize(size, Image.Resampling.BICUBIC)) for p in planes], axis=2).clip(0, 1)

    return [enlarge(image) for image in images]


def cutout(hidden) -> np.ndarray:
  """A green disc with a soft edge, and under what cannot be seen a colour that must not get out."""
  y, x = np.mgrid[:32, :48]
  alpha = np.clip(12 - np.hypot(y - 15.5, x - 20.5), 0, 1)
  rgb = np.where(alpha[..., None] > 0, GREEN, hidden)
  return np.dstack([rgb, alpha * 255]).round().astype(np.uint8)


def test_what_is_hidden_never_gets_out(tmp_path):
  for name, hidden in (("ideal", GREEN), ("magenta", MAGENTA), ("black", (0, 0, 0))):
    (tmp_path / "in").mkdir(exist_ok=True)
    Image.fromarray(cutout(hidden)).save(tmp_path / "in" / f"{name}.png")
  summary = restore_folder(Bicubic(), tmp_path / "in", tmp_path / "out", scale=4)
  assert len(summary.restored) == 3
  for ground in (255, 0, GREEN):
    laid = {}
    for name in ("ideal", "magenta", "black"):
      picture = read_image(tmp_path / "out" / f"{name}.png")
      opacity = picture.alpha[..., None]
      laid[name] = 255 * picture.rgb * opacity + (1 - opacity) * np.asarray(ground)
    for name in ("magenta", "black"):
      assert np.abs(laid[name] - laid["ideal"]).max() <= 2


def test_filling_touches_nothing_that_can_be_seen():
  rng = np.random.default_rng(0)
  for size in ((1, 1), (1, 7), (5, 3), (33, 64)):
    rgb = rng.random((*size, 3), np.float32)
    alpha = (rng.random(size) * (rng.random(size) > 0.7)).astype(np.float32)
    filled = fill_transparent(rgb, alpha)
    assert filled.shape == rgb.shape and filled.dtype == np.float32
    np.testing.assert_array_equal(filled[alpha > 0], rgb[alpha > 0])
    if (alpha > 0).any():
      seen = rgb[alpha > 0]
      assert (filled >= seen.min(axis=0) - 1e-5).all() and (filled <= seen.max(axis=0) + 1e-5).all()
  nothing = np.zeros((3, 3), np.float32)
  rgb = rng.random((3, 3, 3), np.float32)
  assert fill_transparent(rgb, nothing) is rgb and fill_transparent(rgb, None) is rgb


def test_opacity_is_enlarged_without_ripples():
  alpha = np.zeros((8, 16), np.float32)
  alpha[:, 8:] = 1
  large = resize_alpha(alpha, 32, 64)
  assert (large[:, :28] == 0).all() and (large[:, 36:] == 1).all()
  assert (np.diff(large, axis=1) >= 0).all()
  assert resize_alpha(alpha, 2, 4).max() <= 1


def ramp(channels: int) -> np.ndarray:
  """More levels than 8 bits have: (4, 4096, channels) uint16."""
  values = np.arange(4096, dtype=np.uint16) * 16
  return np.broadcast_to(values[None, :, None], (4, 4096, channels)).copy()


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("source", ["png", "little.tif", "big.tif"])
@pytest.mark.parametrize("format", ["png", "tif"])
def test_gradients_of_16_bits_survive(tmp_path, channels, source, format):
  import tifffile

  values = ramp(channels)
  if channels == 4:
    values[..., 3] = np.maximum(values[..., 3], 1)
  (tmp_path / "in").mkdir()
  path = tmp_path / "in" / f"x.{source}"
  if source == "png":
    alpha = values[..., 3] / np.float32(65535) if channels == 4 else None
    write_image(path, Picture(values[..., :3] / np.float32(65535), alpha, bit_depth=16))
  else:
    extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    tifffile.imwrite(path, values, photometric="rgb", byteorder="<" if source == "little.tif" else ">", **extra)
  np.testing.assert_allclose(read_image(path).rgb * 65535, values[..., :3], atol=0.5)
  restore_folder(Bicubic(), tmp_path / "in", tmp_path / "out", scale=1, output=Output(format=format))
  [result] = (tmp_path / "out").glob("[!.]*")
  picture = read_image(result)
  assert picture.bit_depth == 16
  assert all(len(np.unique(picture.rgb[..., c])) == 4096 for c in range(3))
  np.testing.assert_allclose(picture.rgb * 65535, values[..., :3], atol=1)
  assert channels == 3 or len(np.unique(picture.alpha)) == 4096
  restore_folder(Bicubic(), tmp_path / "in", tmp_path / "out8", scale=1, output=Output(format=format, bits=8))
  assert read_image(next((tmp_path / "out8").glob("[!.]*"))).bit_depth == 8


def test_pil_images_of_any_mode_are_right_or_refused():
  grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
  expected = np.repeat(grey[..., None], 3, axis=2) / np.float32(255)
  image = Image.fromarray(grey)
  deep = Image.fromarray(grey.astype(np.uint16) * 257)
  for known in (image, deep, Image.fromarray(grey / np.float32(255)), image.convert("LA"), image.convert("P")):
    np.testing.assert_allclose(pixels.to_float(known), expected, atol=1e-6, err_msg=known.mode)
  np.testing.assert_allclose(pixels.to_float(image.convert("RGB").convert("CMYK")), expected, atol=2 / 255)
  for unclear in (image.convert("I"), image.convert("F"), Image.new("LAB", (4, 4))):
    with pytest.raises(ValueError, match="mode|outside 0 to 1"):
      pixels.to_float(unclear)
  see_through = Image.fromarray(cutout(MAGENTA))
  result = pixels.like(np.repeat(pixels.to_float(see_through), 2, axis=0), see_through)
  assert result.mode == "RGBA" and result.size == (48, 64)
  assert np.asarray(result)[..., 0].max() < 80

"""A folder of pictures of all kinds, many of them broken, through the command line; and any bytes at all."""

import dataclasses
import io
import os
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from stablesr_jax import StableSR
from stablesr_jax.cli import infer
from stablesr_jax.errors import UserError
from stablesr_jax.images import decode_image, read_image
from tests import fuzzing
from tests.stub import Stub

HEIGHT, WIDTH = 24, 40


def photograph(channels: int) -> np.ndarray:
  """Smooth, so that lossy formats keep it; (H, W, channels) uint8."""
  y, x = np.mgrid[:HEIGHT, :WIDTH]
  planes = [200 - 150 * y // HEIGHT, 30 + 200 * x // WIDTH, 90 + 2 * x, 255 - 200 * x // WIDTH]
  return np.stack(planes[:channels], axis=2).astype(np.uint8)


RGB, RGBA = photograph(3), photograph(4)
GREY = RGB[..., 1]
RGB16, RGBA16 = RGB.astype(np.uint16) * 257, RGBA.astype(np.uint16) * 257
GREY16 = GREY.astype(np.uint16) * 257


@dataclasses.dataclass
class Good:
  """A file, and what it stores: (H, W, 3 or 4) in 0 to 255."""

  data: bytes
  pixels: np.ndarray
  tolerance: float = 1.0


def saved(image: Image.Image, format: str, **options) -> bytes:
  out = io.BytesIO()
  image.save(out, format, **options)
  return out.getvalue()


def tiff(pixels: np.ndarray, **options) -> bytes:
  out = io.BytesIO()
  tifffile.imwrite(out, pixels, **options)
  return out.getvalue()


def shown(image: Image.Image) -> np.ndarray:
  return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def chunk(kind: bytes, body: bytes) -> bytes:
  return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png16(pixels: np.ndarray, kind: int) -> bytes:
  rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
  header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, kind, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def grey(values: np.ndarray) -> np.ndarray:
  return np.repeat(values[..., None], 3, axis=2)


def good_files() -> dict[str, Good]:
  found = {}
  modes = {mode: Image.fromarray(RGBA).convert(mode) for mode in ("1", "L", "LA", "RGBA")}
  modes |= {mode: Image.fromarray(RGB).convert(mode) for mode in ("RGB", "P", "CMYK")}
  for mode in ("1", "L", "LA", "RGBA", "RGB", "P"):
    found[f"{mode}.png"] = Good(saved(modes[mode], "PNG"), shown(modes[mode]))
  for mode in ("L", "RGB"):
    for progressive in (False, True):
      data = saved(modes[mode], "JPEG", quality=95, subsampling=0, progressive=progressive)
      found[f"{mode}_{progressive}.jpg"] = Good(data, shown(modes[mode]), 8)
  found["CMYK.jpe"] = Good(saved(modes["CMYK"], "JPEG", quality=98), RGB, 16)
  for mode in ("RGB", "RGBA"):
    found[f"{mode}.webp"] = Good(saved(modes[mode], "WEBP", lossless=True), shown(modes[mode]))
    found[f"{mode}_lossy.webp"] = Good(saved(modes[mode], "WEBP", quality=95), shown(modes[mode]), 24)
    found[f"{mode}.avif"] = Good(saved(modes[mode], "AVIF", quality=95, subsampling="4:4:4"), shown(modes[mode]), 12)
    found[f"{mode}.jp2"] = Good(saved(modes[mode], "JPEG2000"), shown(modes[mode]))
  found["L.jp2"] = Good(saved(modes["L"], "JPEG2000"), shown(modes["L"]))
  found["RGBA.ico"] = Good(saved(modes["RGBA"], "ICO", sizes=[(WIDTH, HEIGHT)]), RGBA)
  for mode in ("P", "L"):
    found[f"{mode}.gif"] = Good(saved(modes[mode], "GIF"), shown(modes[mode]))
  for mode in ("1", "L", "P", "RGB"):
    found[f"{mode}.bmp"] = Good(saved(modes[mode], "BMP"), shown(modes[mode]))
  for mode in ("1", "L", "LA", "RGBA", "RGB", "P", "CMYK"):
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
      expected = shown(modes[mode]) if mode != "CMYK" else RGB
      found[f"{mode}_{compression}.tif"] = Good(saved(modes[mode], "TIFF", compression=compression), expected)
  found["group4.tif"] = Good(saved(modes["1"], "TIFF", compression="group4"), shown(modes["1"]))
  found["jpeg.tif"] = Good(saved(modes["RGB"], "TIFF", compression="jpeg"), RGB, 40)
  for order, name in (("<", "little"), (">", "big")):
    for compression in (None, "zlib"):
      both = {"byteorder": order, "compression": compression}
      end = f"{name}_{compression}.tif"
      rgb = {"photometric": "rgb", **both}
      found[f"rgb16_{end}"] = Good(tiff(RGB16, **rgb), RGB)
      found[f"rgba16_{end}"] = Good(tiff(RGBA16, extrasamples=["unassalpha"], **rgb), RGBA)
      planes = np.ascontiguousarray(RGB16.transpose(2, 0, 1))
      found[f"planes16_{end}"] = Good(tiff(planes, planarconfig="separate", **rgb), RGB)
      found[f"grey16_{end}"] = Good(tiff(GREY16, photometric="minisblack", **both), grey(GREY))
      found[f"white16_{end}"] = Good(tiff(65535 - GREY16, photometric="miniswhite", **both), grey(GREY))
      found[f"white8_{end}"] = Good(tiff(255 - GREY, photometric="miniswhite", **both), grey(GREY))
      both_channels = np.dstack([GREY16, RGBA16[..., 3]])
      ga = tiff(both_channels, photometric="minisblack", extrasamples=["unassalpha"], **both)
      found[f"ga16_{end}"] = Good(ga, np.dstack([grey(GREY), RGBA[..., 3]]))
      found[f"float_{end}"] = Good(tiff(RGB.astype(np.float32) / 255, **rgb), RGB)
      found[f"grey32_{end}"] = Good(
        tiff(GREY.astype(np.uint32) * 16843009, photometric="minisblack", **both), grey(GREY)
      )
  found["rgb16.png"] = Good(png16(RGB16, 2), RGB)
  found["rgba16.png"] = Good(png16(RGBA16, 6), RGBA)
  found["grey16.png"] = Good(png16(GREY16[..., None], 0), grey(GREY))
  found["ga16.png"] = Good(png16(np.dstack([GREY16, RGBA16[..., 3]]), 4), np.dstack([grey(GREY), RGBA[..., 3]]))
  turned = {1: RGB, 3: RGB[::-1, ::-1], 6: np.rot90(RGB, -1), 8: np.rot90(RGB)}
  for orientation, pixels in turned.items():
    exif = Image.Exif()
    exif[0x0112] = orientation
    for format, suffix in (("PNG", ".png"), ("WEBP", ".webp"), ("TIFF", ".tif")):
      options = {"lossless": True} if format == "WEBP" else {}
      found[f"turned{orientation}{suffix}"] = Good(saved(modes["RGB"], format, exif=exif.tobytes(), **options), pixels)
  found["jpeg_named.png"] = Good(found["RGB_False.jpg"].data, RGB, 8)
  found["png_named.jpg"] = Good(found["RGB.png"].data, RGB)
  return found


def broken_files(good: dict[str, Good]) -> dict[str, bytes]:
  """Files of which none may come out: cut short, damaged, lying, or no pictures at all."""
  found = {}
  cut = ["RGB.png", "P.png", "rgba16.png", "RGB_False.jpg", "RGB_True.jpg", "RGB.webp", "RGB.gif", "RGB.bmp"]
  cut += ["RGB_raw.tif", "RGB_tiff_lzw.tif", "rgb16_little_None.tif", "rgb16_big_zlib.tif", "RGB.avif", "P.gif"]
  for name in (name for name in cut if name in good):
    data = good[name].data
    for share in (0.1, 0.3, 0.5, 0.8):
      found[f"cut{share}_{name}"] = data[: int(len(data) * share)]
  for name in ("RGB.png", "rgb16.png", "LA.png"):
    data = good[name].data
    at = data.index(b"IDAT") + 4
    length = int.from_bytes(data[at - 8 : at - 4], "big")
    for share in (0.2, 0.5, 0.9):
      body = bytearray(data[at : at + length])
      body[int(share * length)] ^= 0x55
      found[f"crc{share}_{name}"] = data[:at] + bytes(body) + data[at + length :]
      found[f"repaired{share}_{name}"] = data[: at - 8] + chunk(b"IDAT", bytes(body)) + data[at + length + 4 :]
    for width, height in ((WIDTH, HEIGHT - 4), (WIDTH, HEIGHT + 9), (WIDTH - 3, HEIGHT), (50000, 50000), (0, HEIGHT)):
      header = chunk(b"IHDR", struct.pack(">II", width, height) + data[24:29])
      found[f"lies{width}x{height}_{name}"] = data[:8] + header + data[33:]
  rgb = {"photometric": "rgb"}
  found |= {
    "empty.png": b"",
    "zeros.jpg": bytes(500),
    "pdf.png": b"%PDF-1.4\n",
    "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "page.jpg": b"<!DOCTYPE html><html>",
    "pointer.png": b"version https://git-lfs.github.com/spec/v1\n",
    "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "text.tif": b"just text",
    "signed.tif": tiff(RGB16.astype(np.int16), **rgb),
    "double.tif": tiff(RGB.astype(np.float64) / 255, **rgb),
    "beyond.tif": tiff(RGB.astype(np.float32), **rgb),
    "lab.tif": tiff(RGB, photometric="cielab"),
    "icclab.tif": tiff(RGB, photometric="icclab"),
    "raw.tif": tiff(GREY16, photometric="cfa"),
  }
  return found


@pytest.fixture
def stub(monkeypatch):
  monkeypatch.setattr(StableSR, "load", lambda *_, **__: Stub())


def test_every_picture_of_a_folder_comes_out_right_or_is_told(stub, tmp_path, capfd):
  good = good_files()
  broken = broken_files(good)
  assert len(good) >= 90 and len(broken) >= 60 and not good.keys() & broken.keys()
  (tmp_path / "in").mkdir()
  for name, data in [*((name, file.data) for name, file in good.items()), *broken.items()]:
    (tmp_path / "in" / name).write_bytes(data)
  code = infer.main(
    ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--compile-cache", "off", "--scale", "2"]
    + ["--name", "{name}"]
  )
  told = capfd.readouterr()
  wrong = [name for name in good if not (tmp_path / "out" / f"{name}.png").exists()]
  passed = [name for name in broken if (tmp_path / "out" / f"{name}.png").exists()]
  assert not wrong and not passed, (wrong, passed)
  assert code == 2
  errors = [line for line in told.err.splitlines() if "error" in line]
  assert f": {len(good)} restored, {len(broken)} could not be" in told.err.splitlines()[-1]
  for name in broken:
    assert sum(f"{os.sep}{name}: " in line for line in errors) == 1, name
  assert len(told.out.splitlines()) == len(good) and "Traceback" not in told.err
  for name, file in good.items():
    result = read_image(tmp_path / "out" / f"{name}.png")
    values = result.rgb if result.alpha is None else np.dstack([result.rgb, result.alpha])
    expected = file.pixels.astype(float)
    if expected.shape[2] == 4 and result.alpha is None:
      expected = expected[..., :3]
    # Colours that cannot be seen are nobody's; alpha is enlarged smoothly.
    assert values.shape == (2 * expected.shape[0], 2 * expected.shape[1], expected.shape[2]), name
    error = np.abs(values[::2, ::2] * 255 - expected)
    assert error[..., :3].max() <= file.tolerance, (name, error.max())
    assert error[..., 3:].max(initial=0) <= file.tolerance + 6, (name, error.max())


def seeds() -> list[bytes]:
  good = good_files()
  names = "RGB.png P.png LA.png rgb16.png L_False.jpg RGB_True.jpg RGB.webp P.gif RGB.bmp RGBA.ico RGB.jp2 RGB.avif"
  names += " RGB_raw.tif RGB_tiff_lzw.tif rgb16_big_zlib.tif P_packbits.tif group4.tif white16_little_None.tif"
  return [good[name].data for name in names.split()]


def test_any_bytes_are_a_picture_or_a_line():
  def is_read(data: bytes) -> bool:
    try:
      picture = decode_image(data, "x")
    except UserError as error:
      assert str(error).startswith("x: ") and "\n" not in str(error)
      return False
    height, width = picture.rgb.shape[:2]
    assert picture.rgb.shape == (height, width, 3) and picture.rgb.dtype == np.float32
    assert np.isfinite(picture.rgb).all() and picture.rgb.min() >= 0 and picture.rgb.max() <= 1
    assert picture.alpha is None or (picture.alpha.shape == (height, width) and 0 <= picture.alpha.min())
    return True

  fuzzing.run(seeds(), is_read, examples=300)

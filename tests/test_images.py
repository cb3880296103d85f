"""Reading and writing pictures: every mode, what belongs to the picture, damage."""

import io
import os
import pathlib
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from stablesr_jax import images
from stablesr_jax.errors import UserError
from stablesr_jax.images import Output, Picture, list_images, read_image, write_image

ROOT = pathlib.Path(__file__).parents[1]
RGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# The colour space is named at byte 16.
GREY_PROFILE = RGB_PROFILE[:16] + b"GRAY" + RGB_PROFILE[20:]
ORIENTATION, MAKER, DETAILS, GPS, DATE = 0x0112, 0x010F, 0x8769, 0x8825, 0x9003
WIDTH, HEIGHT = 0xA002, 0xA003
LOSSLESS = [".png", ".tif"]


def _pixels(height=6, width=10, channels=3):
  """Smooth, so that lossy formats keep it; the left half is darker, the top redder."""
  y, x = np.mgrid[:height, :width]
  planes = [200 - 150 * y // height, 30 + 200 * x // width, 90 + 0 * x, 255 - 200 * x // width]
  return np.stack(planes[:channels], axis=2).astype(np.uint8)


def _exif(orientation=None, size=(10, 6)):
  tags = Image.Exif()
  if orientation:
    tags[ORIENTATION] = orientation
  tags[MAKER] = "Maker"
  tags[DETAILS] = {WIDTH: size[0], HEIGHT: size[1], DATE: "2020:01:02 03:04:05"}
  tags[GPS] = {1: "N", 2: (1.0, 2.0, 3.0)}
  return tags.tobytes()


def _tags(exif):
  tags = Image.Exif()
  tags.load(exif)
  return tags


def _picture(height=6, width=10, alpha=False, **kwargs):
  pixels = _pixels(height, width, 4).astype(np.float32) / 255
  return Picture(pixels[..., :3], pixels[..., 3] if alpha else None, **kwargs)


def test_listed_suffixes_are_read_and_written(tmp_path):
  assert set(images.WRITABLE_SUFFIXES) <= set(images.IMAGE_SUFFIXES)
  assert {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"} <= set(images.IMAGE_SUFFIXES)
  for suffix in images.IMAGE_SUFFIXES:
    path = tmp_path / f"x{suffix}"
    Image.fromarray(_pixels()).save(path)
    picture = read_image(path)
    assert picture.rgb.shape == (6, 10, 3) and picture.rgb.dtype == np.float32
    assert picture.alpha is None and picture.bit_depth == 8
    np.testing.assert_allclose(picture.rgb, _pixels() / 255, atol=0.12)


@pytest.mark.parametrize("suffix", images.WRITABLE_SUFFIXES)
@pytest.mark.parametrize("alpha", [False, True])
def test_what_is_written_is_read_again(tmp_path, suffix, alpha):
  picture = _picture(64, 96, alpha, icc=RGB_PROFILE, exif=_exif(size=(96, 64)))
  path = tmp_path / f"x{suffix.upper()}"
  write_image(path, picture)
  again = read_image(path)
  expected = picture.rgb
  if alpha and suffix in (".jpg", ".jpeg"):  # over white
    expected = expected * picture.alpha[..., None] + 1 - picture.alpha[..., None]
  exact = suffix not in (".jpg", ".jpeg", ".webp", ".avif")
  np.testing.assert_allclose(again.rgb, expected, atol=1e-6 if exact else 0.06)
  if alpha and suffix not in (".jpg", ".jpeg"):
    np.testing.assert_allclose(again.alpha, picture.alpha, atol=1e-6 if exact else 0.06)
  else:
    assert again.alpha is None
  assert again.icc == RGB_PROFILE
  tags = _tags(again.exif)
  assert tags[MAKER] == "Maker" and tags.get_ifd(DETAILS)[DATE] == "2020:01:02 03:04:05"
  assert tags.get_ifd(GPS)[2] == (1.0, 2.0, 3.0)
  assert os.listdir(tmp_path) == [path.name]


def test_jpegs_keep_full_colour_resolution(tmp_path):
  write_image(tmp_path / "x.jpg", _picture(16, 16))
  with Image.open(tmp_path / "x.jpg") as image:
    assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3


@pytest.mark.parametrize("suffix", [s for s in images.WRITABLE_SUFFIXES if s not in (".jpeg", ".tiff")])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path, suffix, orientation):
  stored = Image.fromarray(_pixels(24, 40))
  stored.save(tmp_path / f"x{suffix}", exif=_exif(orientation, (40, 24)))
  picture = read_image(tmp_path / f"x{suffix}")
  turns = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1]}
  turns |= {5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1)}
  turns |= {7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a)}
  upright = turns[orientation](_pixels(24, 40))
  np.testing.assert_allclose(picture.rgb, upright / 255, atol=1e-6 if suffix in LOSSLESS else 0.12)
  assert ORIENTATION not in _tags(picture.exif) and _tags(picture.exif)[MAKER] == "Maker"

  write_image(tmp_path / "again.png", picture)
  again = read_image(tmp_path / "again.png")
  assert again.rgb.shape == picture.rgb.shape
  details = _tags(again.exif).get_ifd(DETAILS)
  assert (details[HEIGHT], details[WIDTH]) == upright.shape[:2]


def test_exif_gets_the_new_size_and_is_else_untouched(tmp_path):
  write_image(tmp_path / "a.jpg", _picture(exif=_exif()))
  original = read_image(tmp_path / "a.jpg").exif
  assert original == _exif()
  write_image(tmp_path / "b.jpg", _picture(24, 40, exif=original))
  details = _tags(read_image(tmp_path / "b.jpg").exif).get_ifd(DETAILS)
  assert (details[WIDTH], details[HEIGHT], details[DATE]) == (40, 24, "2020:01:02 03:04:05")


def test_a_tiff_keeps_tags_about_the_picture_only(tmp_path):
  Image.fromarray(_pixels()).save(tmp_path / "x.tif", exif=_exif())
  tags = _tags(read_image(tmp_path / "x.tif").exif)
  assert set(tags) == {MAKER, DETAILS, GPS}  # no strips, sizes or compression
  Image.fromarray(_pixels()).save(tmp_path / "y.tif")
  assert read_image(tmp_path / "y.tif").exif is None


@pytest.mark.filterwarnings("ignore:.*(Corrupt EXIF|Truncated File)")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0nonsense", _exif(6)[:40], b"Exif\0\0II*\0\xff\xff\xff\x7f"])
def test_damaged_exif_does_not_stand_in_the_way(tmp_path, exif):
  Image.fromarray(_pixels()).save(tmp_path / "x.jpg", exif=exif)
  picture = read_image(tmp_path / "x.jpg")
  assert picture.rgb.shape[2] == 3
  write_image(tmp_path / "y.jpg", Picture(picture.rgb, exif=exif))
  assert read_image(tmp_path / "y.jpg").rgb.shape == picture.rgb.shape


def test_exif_too_long_for_a_jpeg_is_left_out_with_a_warning(tmp_path):
  tags = _tags(_exif())
  tags[0x010E] = "x" * 70000
  with pytest.warns(UserWarning, match="does not fit a JPEG"):
    write_image(tmp_path / "x.jpg", _picture(exif=tags.tobytes()))
  assert read_image(tmp_path / "x.jpg").exif is None
  write_image(tmp_path / "x.png", _picture(exif=tags.tobytes()))
  assert len(read_image(tmp_path / "x.png").exif) > 70000


def test_greyscale_and_black_and_white(tmp_path):
  grey = _pixels()[..., 1]
  Image.fromarray(grey).save(tmp_path / "l.png", icc_profile=GREY_PROFILE)
  picture = read_image(tmp_path / "l.png")
  np.testing.assert_allclose(picture.rgb, np.repeat(grey[..., None], 3, axis=2) / 255, atol=1e-6)
  assert picture.alpha is None and picture.icc is None  # a grey profile does not fit RGB
  Image.fromarray(grey > 128).save(tmp_path / "1.png")
  np.testing.assert_array_equal(read_image(tmp_path / "1.png").rgb[..., 2], grey > 128)


def test_sixteen_bit_grey(tmp_path):
  values = (np.arange(60, dtype=np.uint16) * 1000).reshape(6, 10)
  for suffix in LOSSLESS:
    Image.fromarray(values).save(tmp_path / f"x{suffix}")
    picture = read_image(tmp_path / f"x{suffix}")
    assert picture.bit_depth == 16
    np.testing.assert_allclose(picture.rgb, np.repeat(values[..., None], 3, axis=2) / 65535, rtol=1e-6)
  write_image(tmp_path / "y.png", picture, Output(bits=8))
  assert read_image(tmp_path / "y.png").bit_depth == 8
  np.testing.assert_allclose(read_image(tmp_path / "y.png").rgb, picture.rgb, atol=0.5 / 255 + 1e-6)


def test_floating_point_tiff_must_be_in_range(tmp_path):
  values = np.linspace(0, 1, 60, dtype=np.float32).reshape(6, 10)
  Image.fromarray(values).save(tmp_path / "x.tif")
  np.testing.assert_array_equal(read_image(tmp_path / "x.tif").rgb[..., 0], values)
  for bad in (2 * values, values * np.nan):
    Image.fromarray(bad).save(tmp_path / "y.tif")
    with pytest.raises(ValueError, match="y.tif: cannot be read .has values outside 0 to 1"):
      read_image(tmp_path / "y.tif")


def test_palettes(tmp_path):
  palette = Image.fromarray(_pixels()).quantize(16)
  palette.save(tmp_path / "p.png")
  np.testing.assert_array_equal(
    read_image(tmp_path / "p.png").rgb, np.asarray(palette.convert("RGB")) / np.float32(255)
  )
  assert read_image(tmp_path / "p.png").alpha is None
  index = palette.getpixel((0, 0))
  palette.save(tmp_path / "t.png", transparency=index)
  expected = (np.asarray(palette) != index).astype(np.float32)
  np.testing.assert_array_equal(read_image(tmp_path / "t.png").alpha, expected)


def test_first_frame_of_an_animation(tmp_path):
  frames = [Image.new("RGB", (4, 3), color) for color in ("red", "blue")]
  frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
  np.testing.assert_array_equal(read_image(tmp_path / "x.gif").rgb, np.broadcast_to([1.0, 0, 0], (3, 4, 3)))


def test_alpha_of_every_kind(tmp_path):
  rgba = Image.fromarray(_pixels(channels=4))
  expected = _pixels(channels=4)[..., 3] / 255
  for image, name in ((rgba, "rgba.png"), (rgba.convert("LA"), "la.png"), (rgba, "rgba.tif"), (rgba, "rgba.webp")):
    image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    np.testing.assert_allclose(read_image(tmp_path / name).alpha, expected, atol=1e-6)
  Image.fromarray(_pixels()).save(tmp_path / "key.png", transparency=tuple(map(int, _pixels()[2, 3])))
  assert read_image(tmp_path / "key.png").alpha[2, 3] == 0 and read_image(tmp_path / "key.png").alpha[0, 0] == 1


def test_cmyk_becomes_rgb_without_its_profile(tmp_path):
  Image.fromarray(_pixels(32, 32)).convert("CMYK").save(tmp_path / "x.jpg", quality=100, icc_profile=b"not a profile")
  picture = read_image(tmp_path / "x.jpg")
  assert picture.icc is None
  np.testing.assert_allclose(picture.rgb, _pixels(32, 32) / 255, atol=0.06)


def test_values_are_clipped_and_rounded(tmp_path):
  rgb = np.array([[[-1, 0.5, 2], [0.4999 / 255, 0.5001 / 255, 1]]], np.float32)
  write_image(tmp_path / "x.png", Picture(rgb))
  with Image.open(tmp_path / "x.png") as image:
    np.testing.assert_array_equal(np.asarray(image), [[[0, 128, 255], [0, 1, 255]]])


def test_what_pillow_warns_of_is_read_in_silence(tmp_path):
  exif = Image.Exif()
  exif[0x013B] = "A name that is longer than what is left of it"
  Image.fromarray(_pixels()).save(tmp_path / "x.jpg", exif=exif.tobytes()[:-20])
  program = f"""
from PIL import Image
from stablesr_jax.images import read_image
Image.MAX_IMAGE_PIXELS = 40
print(read_image({str(tmp_path / "x.jpg")!r}).rgb.shape)
"""
  done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
  assert (done.returncode, done.stdout, done.stderr) == (0, "(6, 10, 3)\n", "")


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
  path = tmp_path / "x.png"
  path.write_bytes(b"old")

  def fail(self, f, *_, **__):
    f.write(b"half")
    raise OSError("disk full\nand more")

  monkeypatch.setattr(Image.Image, "save", fail)
  with pytest.raises(ValueError, match=r"x.png: cannot be written \(disk full\)"):
    write_image(path, _picture())
  assert os.listdir(tmp_path) == ["x.png"] and path.read_bytes() == b"old"


@pytest.mark.parametrize(
  ("name", "picture", "message"),
  [
    ("x.gif", _picture(), "cannot write .gif"),
    ("x", _picture(), "a file without suffix"),
    ("x.webp", Picture(np.zeros((1, 16384, 3), np.float32)), "WEBP holds at most 16383 pixels a side"),
    ("x.png", Picture(np.full((2, 2, 3), np.nan, np.float32)), "not finite"),
    ("x.png", Picture(np.zeros((2, 2), np.float32)), "expected (H, W, 3)"),
    ("x.png", Picture(np.zeros((2, 2, 3), np.float32), np.zeros((3, 2), np.float32)), "does not fit"),
    ("none/x.png", _picture(), "no such folder"),
  ],
)
def test_each_refusal_to_write_has_its_message(tmp_path, name, picture, message):
  with pytest.raises((ValueError, FileNotFoundError)) as caught:
    write_image(tmp_path / name, picture)
  assert str(caught.value).startswith(f"{tmp_path / name}: ") and message in str(caught.value)
  assert os.listdir(tmp_path) == []


def _png(width, height):
  """The header of a PNG that claims a size."""

  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _half(kind):
  data = io.BytesIO()
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(data, kind)
  return data.getvalue()[: len(data.getvalue()) // 2]


@pytest.mark.parametrize(
  ("write", "message"),
  [
    (lambda p: None, "no such file"),
    (lambda p: p.mkdir(), "is a folder"),
    (lambda p: p.write_bytes(b""), "the file is empty"),
    (lambda p: p.write_bytes(b"just text"), "not an image"),
    (lambda p: p.write_bytes(_half("PNG")), "cannot be read"),
    (lambda p: p.write_bytes(_half("JPEG")), "truncated"),
    (lambda p: p.write_bytes(_half("WEBP")), ""),
    (lambda p: p.write_bytes(_half("TIFF")), "cannot be read"),
    (lambda p: p.write_bytes(_half("BMP")), "truncated"),
    (lambda p: p.write_bytes(_png(60000, 60000)), "more than 178 megapixels"),
  ],
)
def test_each_unusable_file_gets_its_message(tmp_path, write, message):
  path = tmp_path / "x.png"
  write(path)
  with pytest.raises((ValueError, FileNotFoundError)) as caught:
    read_image(path)
  assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)
  assert "\n" not in str(caught.value)


def test_list_images(tmp_path):
  for name in ("b.PNG", "a.jpg", "notes.txt", "sub/c.webp", ".hidden.png", ".thumbs/d.png", "e.png/inner.tif"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  assert list_images(tmp_path) == [tmp_path / n for n in ("a.jpg", "b.PNG", "e.png/inner.tif", "sub/c.webp")]
  assert list_images(str(tmp_path), recursive=False) == [tmp_path / "a.jpg", tmp_path / "b.PNG"]
  with pytest.raises(UserError, match="no such folder"):
    list_images(tmp_path / "none")
  with pytest.raises(ValueError, match="is a file"):
    list_images(tmp_path / "a.jpg")

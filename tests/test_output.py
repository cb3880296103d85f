"""How results are written: formats, bits, quality, names, and what is kept."""

import json

import numpy as np
import pytest
from PIL import Image

from stablesr_jax import StableSR
from stablesr_jax.cli import infer
from stablesr_jax.errors import UserError
from stablesr_jax.images import Output, Picture, read_image, write_image
from stablesr_jax.inference.jobs import restore_folder
from tests.test_damaged_pictures import Stub, photograph

XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
FORMATS = ["png", "jpg", "webp", "tif", "avif"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.setattr(StableSR, "load", lambda *_, **__: Stub())
  (tmp_path / "in").mkdir()
  exif = Image.Exif()
  exif[0x010F] = "Maker"
  Image.fromarray(photograph(3)).save(tmp_path / "in" / "a.jpg", exif=exif.tobytes(), xmp=XMP, dpi=(300, 300))
  return tmp_path


def run(folder, *options) -> int:
  base = ["--input", folder / "in", "--output", folder / "out", "--compile-cache", "off", "--scale", "2", *options]
  try:
    return infer.main([str(argument) for argument in base])
  except SystemExit as stop:
    return stop.code


def recorded(path) -> dict | None:
  with Image.open(path) as image:
    if image.format == "PNG":
      text = image.text.get("stablesr_jax")
    else:
      text = image.getexif().get_ifd(0x8769).get(0x9286, b"").removeprefix(b"ASCII\0\0\0")
  return json.loads(text) if text else None


@pytest.mark.parametrize("format", FORMATS)
def test_what_belongs_to_a_picture_is_kept_with_the_settings_used(folder, format):
  assert run(folder, "--format", format, "--name", "{stem}_x{scale}_{model}", "--seed", "7") == 0
  [path] = (folder / "out").glob("[!.]*")
  assert path.name.startswith("a_x2_") and path.suffix == f".{format}"
  picture = read_image(path)
  assert picture.xmp == XMP and picture.exif and not picture.notes
  np.testing.assert_allclose(picture.dpi, 300, atol=0.01)
  tags = Image.Exif()
  tags.load(picture.exif)
  assert tags[0x010F] == "Maker"
  record = recorded(path)
  assert (record["model"], record["scale"], record["seed"], record["sampling"]["steps"]) == ("stub", 2, 7, 1)


@pytest.mark.parametrize("format", FORMATS)
def test_metadata_are_left_out_on_request(folder, format):
  assert run(folder, "--format", format, "--strip-metadata") == 0
  path = folder / "out" / f"a.{format}"
  picture = read_image(path)
  assert (picture.xmp, picture.exif, picture.dpi, recorded(path)) == (None, None, None, None)
  assert run(folder, "--format", format, "--no-record", "--existing", "redo") == 0
  assert read_image(path).exif and recorded(path) is None


def test_a_comment_of_the_photographer_is_not_overwritten(tmp_path):
  exif = Image.Exif()
  exif[0x8769] = {0x9286: b"ASCII\0\0\0Grandmother, 1931"}
  picture = Picture(photograph(3) / np.float32(255), exif=exif.tobytes())
  write_image(tmp_path / "x.jpg", picture, record={"stablesr_jax": "1"})
  tags = Image.Exif()
  tags.load(read_image(tmp_path / "x.jpg").exif)
  assert tags.get_ifd(0x8769)[0x9286].endswith(b"Grandmother, 1931") and json.loads(tags[0x9213])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--bits", "16", "--format", "jpg"], "bits 16: JPEG has 8"),
    (["--quality", "50"], "quality 50: PNG loses nothing"),
    (["--quality", "0", "--format", "jpg"], "quality 0: "),
    (["--quality", "101", "--format", "webp"], "quality 101: "),
    (["--name", "same"], "must have {stem} or {name}"),
    (["--name", "{nothing}{stem}"], "must be made of"),
    (["--name", "{stem.__class__}"], "must be made of"),
    (["--name", "a/{stem}"], "another folder"),
    (["--name", "{stem"], "name '{stem'"),
  ],
)
def test_what_cannot_be_is_told_before_the_work(folder, capsys, options, message):
  assert run(folder, *options) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert message in line and not (folder / "out").exists()


def test_the_same_from_python(folder):
  output = Output(format="tif", bits=16, name="{name}", record=False)
  assert len(restore_folder(Stub(), folder / "in", folder / "out", scale=2, output=output).restored) == 1
  assert read_image(folder / "out" / "a.jpg.tif").bit_depth == 16
  with pytest.raises(UserError, match="bits 16"):
    Output(format="webp", bits=16)


def test_more_frames_are_told(folder, capsys):
  more = Image.fromarray(255 - photograph(3))
  Image.fromarray(photograph(3)).save(folder / "in" / "b.png", save_all=True, append_images=[more])
  assert run(folder) == 0
  [line] = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
  assert line.endswith(f"{folder / 'in' / 'b.png'}: has 2 frames; the first is taken")


def test_a_jpeg_that_is_decoded_with_complaints_is_told(folder, capsys):
  path = folder / "in" / "a.jpg"
  data = path.read_bytes()
  path.write_bytes(data[:-60] + data[-2:])  # the last blocks' pixels are gone; Pillow makes them up without a word
  assert run(folder) == 0
  [line] = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
  assert f"{path}: may be damaged (" in line


def test_names_are_counted_in_bytes(folder, capsys):
  (folder / "in" / "a.jpg").rename(folder / "in" / ("写" * 83 + ".jpg"))
  assert run(folder, "--name", "{stem}_large") == 2
  assert "its result's name would have 259 bytes" in capsys.readouterr().err


def test_files_of_other_kinds_are_told(folder, capsys):
  (folder / "in" / "b.heic").write_bytes(b"x")
  (folder / "in" / "README").write_bytes(b"x")
  assert run(folder) == 0
  [line] = capsys.readouterr().err.splitlines()
  assert line.endswith(": 1 restored; left out: 1 without suffix, 1 .heic")
  (folder / "in" / "a.jpg").unlink()
  assert run(folder) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert "has no pictures (1 without suffix, 1 .heic)" in line

"""Packed files: written from folders, read as a source, damage, the command line."""

import numpy as np
import pytest
from PIL import Image

from stablesr_jax.cli import pack as command
from stablesr_jax.data import DataConfig, SourceConfig, make_dataset, pack_images
from stablesr_jax.data.image_sources import open_source
from stablesr_jax.data.packing import pack_record, unpack_record
from stablesr_jax.errors import UserError


@pytest.fixture
def photos(tmp_path):
  folder = tmp_path / "photos"
  (folder / "trip").mkdir(parents=True)
  rng = np.random.default_rng(0)
  for k, name in enumerate(("a.png", "b.jpg", "trip/ä.webp")):
    pixels = rng.integers(0, 256, (200 + 50 * k, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
  return folder


def _open(path):
  return open_source(SourceConfig("packed", (str(path),)))


def _batches(kind, path, count=3):
  config = DataConfig((SourceConfig(kind, (str(path),)),), crop_size=128)
  batches = make_dataset(config, 4, process_index=0, process_count=1)
  taken = np.stack([next(batches)["hr"] for _ in range(count)])
  batches.close()
  return taken


def test_files_are_packed_as_they_are(photos, tmp_path):
  output = tmp_path / "x.array_record"
  assert pack_images([photos], output) == (3, {})
  source = _open(output)
  records = {source[i].name: source[i].hr for i in range(len(source))}
  assert records == {f"{output}: {name}": (photos / name).read_bytes() for name in ("a.png", "b.jpg", "trip/ä.webp")}
  np.testing.assert_array_equal(_batches("packed", output), _batches("folder", photos))
  assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["x.array_record"]


def test_unreadable_and_small_images_are_left_out(photos, tmp_path):
  (photos / "c.png").write_bytes((photos / "a.png").read_bytes()[:5000])
  (photos / "notes.txt").write_text("x")
  output = tmp_path / "x.array_record"
  output.write_text("older")
  packed, skipped = pack_images([photos, photos / "trip"], output, min_side=250)
  assert packed == 3 and len(_open(output)) == 3  # b, and ä from both folders
  assert set(skipped) == {str(photos / "a.png"), str(photos / "c.png")}
  assert skipped[str(photos / "a.png")] == "300x200 is below 250 pixels"


def test_nothing_to_pack_leaves_no_file(photos, tmp_path):
  with pytest.raises(ValueError, match="photos: no image to pack .3 skipped"):
    pack_images([photos], tmp_path / "x.array_record", min_side=1000)
  with pytest.raises(UserError, match="nowhere: no such folder"):
    pack_images([tmp_path / "nowhere"], tmp_path / "x.array_record")
  with pytest.raises(UserError, match="no such folder"):
    pack_images([photos], tmp_path / "nowhere/x.array_record")
  with pytest.raises(ValueError, match="min_side 0"):
    pack_images([photos], tmp_path / "x.array_record", min_side=0)
  assert list(tmp_path.iterdir()) == [photos]


def test_other_files_are_refused(photos, tmp_path):
  from array_record.python.array_record_module import ArrayRecordWriter

  with pytest.raises(UserError, match="nowhere: no such file"):
    _open(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="a.png: not a file of packed images"):
    _open(photos / "a.png")
  writer = ArrayRecordWriter(str(tmp_path / "foreign"), "group_size:1")
  writer.write(b"something else")
  writer.close()
  with pytest.raises(ValueError, match="foreign: not a file of packed images .a record of another kind"):
    _open(tmp_path / "foreign")


def test_a_damaged_record_is_a_bad_image(photos, tmp_path):
  output = tmp_path / "x.array_record"
  pack_images([photos], output)
  data = bytearray(output.read_bytes())
  start = data.index((photos / "b.jpg").read_bytes()[:64])
  data[start : start + 64] = bytes(64)
  output.write_bytes(data)
  config = DataConfig((SourceConfig("packed", (str(output),)),), crop_size=128)
  batches = make_dataset(config, 6, process_index=0, process_count=1)
  next(batches)
  batches.close()
  (line,) = batches.bad_images()
  assert line.startswith(f"{output}#1: cannot be read") and "\n" not in line


def test_records_hold_name_and_bytes():
  assert unpack_record(pack_record("ä/b.png", b"\0data")) == ("ä/b.png", b"\0data")
  for wrong in (b"", b"SRI1", pack_record("name", b"")[:-1], b"XXXX" + bytes(20)):
    with pytest.raises(ValueError):
      unpack_record(wrong)


def test_command_line(photos, tmp_path, capsys):
  (photos / "c.png").write_bytes(b"no image")
  output = tmp_path / "x.array_record"
  assert command.main(["--input", str(photos), "--output", str(output)]) == 0
  out, err = capsys.readouterr()
  assert out == f"{output}: 3 images packed, 1 skipped\n"
  assert f"skipped {photos / 'c.png'}: not an image" in err
  for arguments in (
    ["--input", str(tmp_path / "nowhere"), "--output", str(output)],
    ["--input", str(photos), "--output", str(output), "--min-side", "9999"],
    ["--input", str(photos)],
  ):
    with pytest.raises(SystemExit) as stop:
      command.main(arguments)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "error: " in [line for line in err.splitlines() if not line.startswith("skipped ")][-1]

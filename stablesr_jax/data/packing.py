"""Packs many image files into one ArrayRecord file, which is read faster than a folder, above all over a network."""

import importlib
import pathlib
import struct
from collections.abc import Sequence

from tqdm import tqdm

from stablesr_jax.errors import UserError, first_line
from stablesr_jax.files import atomic_write
from stablesr_jax.images import decode_image, list_images, read_file

# A record: this mark, the length of the name (32 bits, little-endian), the name in UTF-8 (or what bytes the file system
# has), the image file as it was.
_MARK = b"SRI1"
_HEADER = struct.Struct("<4sI")


def pack_images(
  folders: Sequence[str | pathlib.Path], output: str | pathlib.Path, *, min_side: int = 1, progress: bool = False
) -> tuple[int, dict[str, str]]:
  """Packs the images in folders and their subfolders, as they are; what cannot be read is left out.

  The file appears under its name when it is complete, in place of an older one. Its folder must exist.

  Args:
    min_side: images with a side below this are left out.
    progress: show a bar on stderr, if that is a terminal.

  Returns:
    How many images were packed, and why others were not, by path.

  Raises:
    UserError: a folder does not exist.
    UserError: `min_side` is below 1, there is no image to pack, the file cannot be written, or a package is missing.
  """
  if min_side < 1:
    raise UserError(f"min_side {min_side}: must be at least 1")
  output = pathlib.Path(output)
  if not output.parent.is_dir():
    raise UserError(f"{output}: no such folder: {output.parent}")
  if output.is_dir():
    raise UserError(f"{output}: is a folder")
  files = [(path, path.relative_to(folder).as_posix()) for folder in folders for path in list_images(folder)]
  try:
    writer_class = importlib.import_module("array_record.python.array_record_module").ArrayRecordWriter
  except ImportError as error:
    raise UserError(f'{error}: packing needs more packages: pip install "stablesr-jax[train]"') from error

  packed, skipped = 0, {}
  try:
    with atomic_write(output) as temporary:
      # Each record by itself, for random access; image files are compressed already.
      writer = writer_class(str(temporary), "group_size:1,uncompressed")
      for path, name in tqdm(files, disable=None if progress else True, unit="image"):
        try:
          data = read_file(path)
          height, width = decode_image(data, str(path)).rgb.shape[:2]
          if min(height, width) < min_side:
            raise UserError(f"{path}: {width}x{height} is below {min_side} pixels")
        except UserError as error:
          skipped[str(path)] = str(error).removeprefix(f"{path}: ")
          continue
        writer.write(pack_record(name, data))
        packed += 1
      writer.close()
      if not packed:
        raise UserError(f"{', '.join(map(str, folders))}: no image to pack ({len(skipped)} skipped)")
  except (OSError, RuntimeError) as error:
    raise UserError(f"{output}: cannot be written ({first_line(error)})") from error
  return packed, skipped


def pack_record(name: str, data: bytes) -> bytes:
  """A record of an image file's name and bytes."""
  encoded = name.encode(errors="surrogateescape")
  return _HEADER.pack(_MARK, len(encoded)) + encoded + data


def unpack_record(record: bytes) -> tuple[str, bytes]:
  """(name, bytes) of the image file.

  Raises:
    UserError: it is no record of `pack_record`.
  """
  mark, length = _HEADER.unpack_from(record) if len(record) >= _HEADER.size else (b"", 0)
  if mark != _MARK or len(record) < _HEADER.size + length:
    raise UserError("a record of another kind")
  start = _HEADER.size + length
  return record[_HEADER.size : start].decode(errors="surrogateescape"), record[start:]

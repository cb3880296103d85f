"""The command line that packs training images: `stablesr pack`."""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from stablesr_jax.cli.common import parse, run
from stablesr_jax.errors import UserError

_SKIPPED_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Packs the images in folders and their subfolders, as they are, into one file for training.

      {prog} --input DIV2K_train_HR Flickr2K --output photos.array_record --min-side 512

  What cannot be read is left out, and reported.
  """

  input: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FOLDER...")]
  """the folders of images"""
  output: Annotated[pathlib.Path, tyro.conf.arg(metavar="FILE.array_record")]
  """the file to write, in place of an older one"""
  min_side: int = 1
  """shortest side in pixels that an image may have; smaller ones are left out"""


def main(argv: Sequence[str] | None = None, prog: str = "stablesr pack") -> int:
  return run(prog, lambda: _main(parse(Arguments, argv, prog)))


def _main(arguments: Arguments) -> int:
  from stablesr_jax.data.packing import pack_images

  if not arguments.input:
    raise UserError("--input: give one or more folders")
  packed, skipped = pack_images(arguments.input, arguments.output, min_side=arguments.min_side, progress=True)
  for path, reason in list(skipped.items())[:_SKIPPED_SHOWN]:
    print(f"skipped {path}: {reason}", file=sys.stderr)
  if len(skipped) > _SKIPPED_SHOWN:
    print(f"skipped {len(skipped) - _SKIPPED_SHOWN} more", file=sys.stderr)
  print(f"{arguments.output}: {packed} images packed, {len(skipped)} skipped")
  return 0


if __name__ == "__main__":
  sys.exit(main(prog="python -m stablesr_jax.cli.pack"))

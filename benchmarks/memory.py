"""The memory and the time that `infer.py` takes, by the size of the result. Each picture is restored in a process.

    python benchmarks/memory.py --megapixels 1 4 16 64 100
    python benchmarks/memory.py --megapixels 16 --options --max-memory 2G

Needs `pip install ".[eval]"`: the pictures are laid out of scikit-image's photographs. Prints a line for each size: the
largest resident set of the process, and its time with starting, compiling (unless a cache has it) and writing.
"""

import argparse
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import skimage.data
from PIL import Image

_PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
_INFER = pathlib.Path(__file__).parents[1] / "infer.py"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--megapixels", type=float, nargs="+", default=[1, 4, 16], help="sizes of the results")
  parser.add_argument("--scale", type=float, default=4)
  parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="all that follows is for infer.py")
  args = parser.parse_args()
  print("| result | seconds | peak resident |\n|---|---:|---:|")
  for megapixels in args.megapixels:
    side = round(math.sqrt(megapixels * 1e6) / args.scale)
    with tempfile.TemporaryDirectory() as folder:
      source, target = pathlib.Path(folder, "input.png"), pathlib.Path(folder, "result.png")
      Image.fromarray(mosaic(side)).save(source)
      options = ["--input", source, "--output", target, "--scale", args.scale, *args.options]
      seconds, peak = measured([sys.executable, _INFER, *map(str, options)])
      with Image.open(target) as result:
        print(f"| {result.width}x{result.height} | {seconds:.0f} | {peak / 2**30:.2f} GiB |", flush=True)


def mosaic(side: int) -> np.ndarray:
  """Photographs beside and below each other, (side, side, 3) uint8."""
  photographs = [getattr(skimage.data, name)() for name in _PHOTOGRAPHS]
  height, width = (min(photograph.shape[axis] for photograph in photographs) for axis in (0, 1))
  photographs = [photograph[:height, :width] for photograph in photographs]
  counts = range(-(-side // width))
  rows = [
    np.concatenate([photographs[(row + column) % len(photographs)] for column in counts], axis=1)
    for row in range(-(-side // height))
  ]
  return np.concatenate(rows)[:side, :side]


def measured(command: list[str | pathlib.Path]) -> tuple[float, int]:
  """The seconds that a command takes, and the most bytes that it holds."""
  began = time.monotonic()
  child = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=_INFER.parent)
  _, status, usage = os.wait4(child.pid, 0)
  child.returncode = os.waitstatus_to_exitcode(status)
  if child.returncode:
    raise SystemExit(f"infer.py ended with exit code {child.returncode}")
  return time.monotonic() - began, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
  main()

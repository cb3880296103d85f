"""Restores `examples/photo.png` with a full-size model, from nothing.

    python examples/quickstart.py [--folder outputs]

Until trained weights ship with the package, the model is a synthetic one: it has the size and layout of the published
StableSR, but its weights are random, so it paints noise; wavelet colour correction keeps the photograph beneath. What
this shows is that checkpoint, conversion and restoration work on this machine. It writes about 11 GB into the
folder and removes the checkpoint when it is converted.
"""

import argparse
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(script: str, *arguments: object) -> None:
  subprocess.run([sys.executable, str(ROOT / script), *map(str, arguments)], check=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "outputs", help="where everything is written")
  folder = parser.parse_args().folder
  folder.mkdir(parents=True, exist_ok=True)
  model = folder / "synthetic_stablesr_512"
  if not (model / "model.json").exists():
    files = []
    for listing in ("stablesr_512", "cfw"):
      files.append(folder / f"{listing}.safetensors")
      run("examples/synthetic_checkpoint.py", ROOT / f"tests/reference/{listing}_checkpoint.tsv", files[-1])
    run("convert_weights.py", "--input", *files, "--output", model)
    for file in files:
      file.unlink()
  photo, restored = ROOT / "examples" / "photo.png", folder / "photo_x4.png"
  run("infer.py", "--model", model, "--input", photo, "--output", restored, "--steps", 4, "--color-fix", "wavelet")


if __name__ == "__main__":
  main()

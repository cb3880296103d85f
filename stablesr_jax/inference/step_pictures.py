"""Pictures of the way to a result: what each step took it for."""

import dataclasses
import pathlib

import numpy as np
from PIL import Image

from stablesr_jax.errors import UserError
from stablesr_jax.files import atomic_write, make_folder
from stablesr_jax.inference.plan import Job


@dataclasses.dataclass(frozen=True)
class StepPictures:
  """Writes for each result a folder of pictures, one a step, whose names sort as the steps do.

  restored/holiday/a.png has those of its steps in FOLDER/holiday/a/001.png, 002.png, ...

  Attributes:
    folder: Where to write.
    results: The folder of the results, whose tree is kept.
    every: A picture of every so many steps is written, and of the last one.
  """

  folder: pathlib.Path
  results: pathlib.Path
  every: int = 1

  def __post_init__(self):
    if self.every < 1:
      raise UserError(f"save-steps-every {self.every}: must be at least 1")

  def write(self, job: Job, step: int, steps: int, picture: np.ndarray) -> None:
    """Writes a step's picture (H, W, 3), floats in [0, 1], as PNG of 8 bits.

    Raises:
      OSError: It cannot be written.
    """
    from stablesr_jax.pixels import to_uint8  # with JAX

    folder = self.folder / job.target.relative_to(self.results).with_suffix("")
    make_folder(folder)
    with atomic_write(folder / f"{step:0{max(len(str(steps)), 3)}}.png") as temporary:
      Image.fromarray(to_uint8(picture)).save(temporary, format="PNG")

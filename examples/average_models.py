"""Averages two models of one architecture, parameter by parameter.

    python examples/average_models.py models/faithful models/crisp --share 0.75 --output models/between

A model that a discriminator has made crisp, averaged with one trained for fidelity alone, is nearly as crisp and shows
fewer of its artefacts ("network interpolation", Wang et al., "ESRGAN", 2018, 3.4). Both must come from one starting
model: those of two that were trained apart have nothing in common. Settings and null prompt are the second model's.
"""

import argparse
import dataclasses
import pathlib
import sys

import jax
import numpy as np

from stablesr_jax.checkpoints.store import NULL_PROMPT, ModelWriter, load_params, read_manifest
from stablesr_jax.errors import UserError
from stablesr_jax.models.components import COMPONENTS


def average(first: pathlib.Path, second: pathlib.Path, share: float, output: pathlib.Path) -> None:
  """Writes the model (1 - share) * first + share * second, in float32.

  Raises:
    UserError: A folder has no whole model, the two differ in architecture, or `share` is not from 0 to 1.
  """
  manifests = [read_manifest(path) for path in (first, second)]
  if manifests[0].architecture != manifests[1].architecture:
    raise UserError(f"{first}, {second}: not of one architecture")
  if not 0 <= share <= 1:
    raise UserError(f"--share {share}: must be from 0 to 1")
  architecture = manifests[1].architecture
  with ModelWriter(output) as writer:
    for part in (name for name in COMPONENTS if getattr(architecture, name) is not None):
      a, b = (load_params(path, m, (part,))[part] for path, m in zip((first, second), manifests, strict=True))
      writer.write(part, jax.tree.map(lambda x, y: (1 - share) * np.asarray(x) + share * np.asarray(y), a, b))
    if architecture.unet is not None:
      writer.copy(NULL_PROMPT, second / NULL_PROMPT)
    writer.commit(dataclasses.replace(manifests[1], name=output.resolve().name, dtype="float32"))


def main() -> int:
  parser = argparse.ArgumentParser(description="Averages two models of one architecture, parameter by parameter.")
  parser.add_argument("first", type=pathlib.Path)
  parser.add_argument("second", type=pathlib.Path)
  parser.add_argument("--share", type=float, default=0.5, help="of the second model, 0 to 1")
  parser.add_argument("--output", type=pathlib.Path, required=True)
  args = parser.parse_args()
  try:
    average(args.first, args.second, args.share, args.output)
  except UserError as error:
    print(f"average_models.py: error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())

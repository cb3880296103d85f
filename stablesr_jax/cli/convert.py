"""The command line of `convert_weights.py`."""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro

from stablesr_jax import config as configs
from stablesr_jax.cli.common import parse, run
from stablesr_jax.config import ModelConfig
from stablesr_jax.errors import UserError
from stablesr_jax.files import require_writable
from stablesr_jax.settings import from_json, read_json


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Converts published PyTorch weights into one model folder; with --to-pytorch, a model folder back.

  What a file is, is told from its contents: StableSR (512, Turbo, 768v, face), CFW, Stable Diffusion 2.1 (one file,
  or a diffusers folder), the web UI's StableSR module, an autoencoder, Real-ESRGAN (also ncnn's .param with the .bin
  beside it). Give all that belong together:

      {prog} --input stablesr_000117.ckpt vqgan_cfw_00011.ckpt --output models/stablesr_512

  LPIPS, which training compares pictures by, is made from torchvision's VGG16 and the lpips package's heads:

      {prog} --input vgg16-397923af.pth vgg.pth --output models/lpips

  A model folder as the only input, for instance one that `train.py` exported, is stored again with another --dtype:

      {prog} --input runs/cfw_512/model --output models/mine --dtype bfloat16

  No code in a file is ever run.
  """

  input: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE...")]
  """the files, diffusers folders or hf://owner/repo/file (a mirror: HF_ENDPOINT), or one model folder"""
  output: Annotated[pathlib.Path | None, tyro.conf.arg(metavar="DIR")] = None
  """the model folder to write"""
  to_pytorch: Annotated[pathlib.Path | None, tyro.conf.arg(metavar="FILE.safetensors")] = None
  """the file to write in the published layout instead; CFW goes to a second file beside it, *_cfw.safetensors"""
  dtype: Literal["float32", "bfloat16", "float16"] = "float32"
  """dtype of the stored parameters"""
  allow_nonfinite: bool = False
  """takes weights with NaN or infinity as they are, which otherwise are an error: results may be black"""
  prediction: Literal["auto", "eps", "v"] = "auto"
  """what the UNet predicts; auto: as a diffusers folder says, else v for a file with 768 in its name, else eps"""
  architecture: Annotated[str, tyro.conf.arg(metavar="NAME|JSON")] = "auto"
  """the sizes: stablesr_512, stablesr_768v, tiny, or a model.json; auto: the named one that fits the tensors"""


def main(argv: Sequence[str] | None = None, prog: str = "convert_weights.py") -> int:
  return run(prog, lambda: _main(parse(Arguments, argv, prog)))


def _main(arguments: Arguments) -> int:
  from stablesr_jax.checkpoints.conversion import convert
  from stablesr_jax.checkpoints.export import export
  from stablesr_jax.checkpoints.hub import resolve
  from stablesr_jax.checkpoints.store import MANIFEST, require_replaceable, store_as
  from stablesr_jax.parallel import start_devices

  if not arguments.input:
    raise UserError("--input: give one or more files or folders")
  if (arguments.output is None) == (arguments.to_pytorch is None):
    raise UserError("give either --output (a model folder) or --to-pytorch (a .safetensors file)")
  output = arguments.output or arguments.to_pytorch
  assert output is not None
  require_writable(output.parent)
  if arguments.output is not None:
    require_replaceable(arguments.output)  # before anything is downloaded
  start_devices()  # Orbax, which writes the model, uses them
  inputs = [resolve(reference) for reference in arguments.input]
  if arguments.to_pytorch is not None:
    if len(inputs) != 1:
      raise UserError(f"--to-pytorch takes one model folder as --input, not {len(inputs)}")
    for path in export(
      inputs[0], arguments.to_pytorch, dtype=arguments.dtype, allow_nonfinite=arguments.allow_nonfinite
    ):
      print(path)
    return 0
  if len(inputs) == 1 and (inputs[0] / MANIFEST).is_file():
    if (arguments.prediction, arguments.architecture) != ("auto", "auto"):
      raise UserError(f"{inputs[0]}: a model folder has its --prediction and --architecture already")
    store_as(inputs[0], output, arguments.dtype, allow_nonfinite=arguments.allow_nonfinite)
    print(output)
    return 0
  convert(
    inputs,
    output,
    architecture=_architecture(arguments.architecture),
    prediction=None if arguments.prediction == "auto" else arguments.prediction,
    dtype=arguments.dtype,
    allow_nonfinite=arguments.allow_nonfinite,
  )
  print(output)
  return 0


def _architecture(name: str) -> ModelConfig | None:
  if name == "auto":
    return None
  if name in configs.NAMED:
    return configs.NAMED[name]()
  path = pathlib.Path(name)
  if not path.is_file():
    raise UserError(f"--architecture {name}: neither a file nor one of {', '.join(configs.NAMED)}")
  values = read_json(path)
  return from_json(ModelConfig, values.get("architecture", values), str(path))  # of a whole model.json, or by itself


if __name__ == "__main__":
  sys.exit(main(prog="python -m stablesr_jax.cli.convert"))

"""Real-ESRGAN's generator as the program ncnn has it: a `.param` file, the graph as text, and its weights in a `.bin`.

A `.bin` file has neither names nor shapes, only numbers in the order of the graph's layers. What they are, then, stands
and falls with the graph, so each of its layers is compared with those of an RRDBNet: its kind, what it takes and its
settings. Nothing is allocated or read for what a file merely claims to hold.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from stablesr_jax.checkpoints import names
from stablesr_jax.checkpoints.torch_file import LEGACY_MAGIC
from stablesr_jax.config import RRDBNetConfig
from stablesr_jax.errors import UserError

_MAGIC = b"7767517"  # the first line of a .param file
_LONGEST = 2**20  # bytes of a .param file that are looked at; that of 23 blocks has 0.12 MB
_FLAG = 4  # bytes before a layer's weights that say what they are
_DTYPES = {0: np.dtype("<f4"), 0x01306B47: np.dtype("<f2")}
_CONVOLUTIONS_PER_BLOCK, _OTHER_CONVOLUTIONS = 15, 6

_Setting = float | tuple[float, ...]

# The settings that ncnn's layers have where a .param file does not give them.
_DEFAULTS: dict[str, dict[int, _Setting]] = {
  "Input": {},
  "Split": {},
  # 0: channels made; 1, 11: sides of the kernel; 2, 12: dilation; 3, 13: stride; 4, 14, 15, 16: padding; 5: whether it
  # has a bias. The second side is the first's by default, so of a kernel of 3 with a padding of 1 these:
  "Convolution": {11: 3, 2: 1, 12: 1, 3: 1, 13: 1, 4: 0, 14: 1, 15: 1, 16: 1, 18: 0, 5: 0, 8: 0, 9: 0, 19: 0},
  "Concat": {0: 0},
  "Eltwise": {0: 0},
  "BinaryOp": {0: 0, 1: 0, 2: 0},
  "Interp": {1: 1, 2: 1, 3: 0, 4: 0, 5: 0, 6: 0},
}
# An RRDBNet's layers. -233xx are settings of several numbers: 9 and 10 are a leaky ReLU and its slope.
_CONVOLUTION: dict[int, _Setting] = {1: 3, 4: 1, 5: 1}
_LEAKY_RELU: dict[int, _Setting] = {9: 2, 10: (0.2,)}
_FIFTH_PLUS: dict[int, _Setting] = {0: 1, 1: (0.2, 1)}  # a sum: a fifth of the first, and the second
_NEAREST_BY_2: dict[int, _Setting] = {0: 1, 1: 2, 2: 2}


@dataclasses.dataclass(frozen=True)
class _Layer:
  """One layer of a graph.

  Attributes:
    kind: of layer, by ncnn's name.
    inputs: the places in the graph of the layers whose results it takes.
    settings: by ncnn's numbers, with the defaults.
    title: for messages.
  """

  kind: str
  inputs: tuple[int, ...]
  settings: dict[int, _Setting]
  title: str = ""


@dataclasses.dataclass(frozen=True)
class _Array:
  """Where an array lies in a `.bin` file."""

  shape: tuple[int, ...]
  dtype: np.dtype
  start: int

  @property
  def end(self) -> int:
    return self.start + math.prod(self.shape) * self.dtype.itemsize


def param_file(path: pathlib.Path) -> pathlib.Path | None:
  """The `.param` file of which `path` is a part, or None if it is none of ncnn's.

  A `.param` file is known by its first line; a `.bin` by one beside it, and by not being PyTorch's.
  """
  try:
    if _is_param(path):
      return path
    if path.suffix != ".bin":
      return None
    with open(path, "rb") as f:
      head = f.read(len(LEGACY_MAGIC))
    beside = path.with_suffix(".param")
    return beside if not head.startswith((b"PK\x03\x04", LEGACY_MAGIC)) and _is_param(beside) else None
  except OSError:  # told where it is opened as any other file
    return None


def without_pairs(paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
  """The files without each `.bin` whose `.param` is among them, too: they are one source."""
  params = {path.with_suffix(".bin") for path in paths if path.suffix == ".param"}
  return [path for path in paths if path not in params]


class NcnnFile:
  """The arrays of a generator by the names that they have in PyTorch's files.

  Attributes:
    path: the `.bin` file.
    tensors: (shape, dtype) of each.
  """

  def __init__(self, param: pathlib.Path):
    """
    Raises:
      UserError: the graph is damaged, or another than an RRDBNet that enlarges by 4; there is no `.bin` file beside it,
        or it does not hold what the graph takes; one line.
    """
    try:
      with open(param, "rb") as f:
        content = f.read(_LONGEST + 1)
      if len(content) > _LONGEST:
        raise UserError("is longer than the graph of any Real-ESRGAN generator")
      layers = _parse(content.decode(errors="replace"))
      config = _config(layers)
      _compare(layers, config)
    except OSError as error:
      raise UserError(f"{param}: cannot be read ({error.strerror})") from error
    except UserError as error:
      raise UserError(f"{param}: {error}") from error
    self.path = param.with_suffix(".bin")
    try:
      self._arrays = _locate(self.path, config)
    except OSError as error:
      raise UserError(f"{self.path}: cannot be read ({error.strerror}); it has the weights of {param.name}") from error
    except UserError as error:
      raise UserError(f"{self.path}: {error}") from error
    self.tensors = {name: (array.shape, array.dtype) for name, array in self._arrays.items()}

  def read(self, name: str) -> np.ndarray:
    """An array of its own. Raises UserError if the file has become shorter."""
    array = self._arrays[name]
    value = np.fromfile(self.path, array.dtype, math.prod(array.shape), offset=array.start)
    if value.size < math.prod(array.shape):
      raise UserError(f"{self.path}: has become shorter while it was read")
    return value.reshape(array.shape)


def _is_param(path: pathlib.Path) -> bool:
  if not path.is_file():
    return False
  with open(path, "rb") as f:
    return f.read(len(_MAGIC) + 16).split()[:1] == [_MAGIC]


def _parse(text: str) -> list[_Layer]:
  """The layers in their order, but for those that only give a result several names (Split).

  Raises:
    UserError: it is no graph, or has layers that no RRDBNet has.
  """
  lines = [line.split() for line in text.splitlines() if line.strip()]
  counts = lines[1] if len(lines) > 1 else []
  if len(counts) != 2 or not counts[0].isdecimal():
    raise UserError("is damaged (its second line is not two counts); download it again")
  if counts[0] != str(len(lines) - 2):
    raise UserError(f"is truncated or damaged (it has {len(lines) - 2} of {counts[0][:20]} layers); download it again")
  if foreign := sorted({line[0] for line in lines[2:]} - _DEFAULTS.keys()):
    kinds = ", ".join(repr(kind[:40]) for kind in foreign[:4])
    raise UserError(
      f"is another network than Real-ESRGAN's RRDBNet, which has no {kinds}; of Real-ESRGAN's, realesrgan-x4plus and "
      "realesrgan-x4plus-anime can be converted"
    )
  layers: list[_Layer] = []
  made_by: dict[str, int] = {}
  for line in lines[2:]:
    title = " ".join(line[:2])[:80]
    try:
      kind, _, taken, made = line[0], line[1], int(line[2]), int(line[3])
      if min(taken, made) < 0 or len(line) < 4 + taken + made:
        raise ValueError("fewer names than it says")
      inputs, outputs = line[4 : 4 + taken], line[4 + taken : 4 + taken + made]
      settings = dict(map(_setting, line[4 + taken + made :]))
    except (ValueError, IndexError) as error:
      raise UserError(f"is damaged ({title!r} is no layer); download it again") from error
    if unknown := [name for name in inputs if name not in made_by]:
      raise UserError(f"is damaged ({title!r} takes {unknown[0][:40]!r}, which no layer before it makes)")
    if kind == "Split" and taken == 1:
      made_by |= dict.fromkeys(outputs, made_by[inputs[0]])
      continue
    made_by |= dict.fromkeys(outputs, len(layers))
    # The size that an Input may name is not used.
    settings = {} if kind == "Input" else _DEFAULTS[kind] | settings
    layers.append(_Layer(kind, tuple(made_by[name] for name in inputs), settings, title))
  return layers


def _setting(word: str) -> tuple[int, _Setting]:
  """Of "6=1728" or "-23310=1,2.0e-01", the number of the setting and its value. Raises ValueError if it is neither."""
  found = re.fullmatch(r"(-?\d{1,5})=([-+.,\de]{1,200})", word)
  if found is None:
    raise ValueError(f"no setting: {word}")
  number, values = int(found[1]), tuple(float(value) for value in found[2].split(","))
  if number > -23300:
    [value] = values
    return number, value
  if values[0] != len(values) - 1:
    raise ValueError(f"not as many values as it says: {word}")
  return -23300 - number, values[1:]


def _config(layers: list[_Layer]) -> RRDBNetConfig:
  """The sizes of the generator that the graph can be at most; whether it is that one is seen by `_compare`."""
  convolutions = [layer for layer in layers if layer.kind == "Convolution"]
  blocks, rest = divmod(len(convolutions) - _OTHER_CONVOLUTIONS, _CONVOLUTIONS_PER_BLOCK)
  if blocks < 1 or rest:
    raise UserError(f"is another network than Real-ESRGAN's RRDBNet: it has {len(convolutions)} convolutions")
  features, growth = (layer.settings.get(0) for layer in convolutions[:2])
  if not (isinstance(features, float) and features.is_integer() and isinstance(growth, float) and growth.is_integer()):
    raise UserError("is damaged (its first convolutions do not say how many channels they make)")
  return RRDBNetConfig(features=int(features), growth=int(growth), blocks=blocks)


def _compare(layers: list[_Layer], config: RRDBNetConfig) -> None:
  """Raises UserError unless the graph is an RRDBNet's of these sizes."""
  expected = _Expected(config).layers
  size = f"with {config.blocks} blocks of {config.features} and {config.growth} channels"
  for layer, wanted in zip(layers, expected, strict=False):
    if layer.kind != wanted.kind:
      difference = f"should be of the kind {wanted.kind}"
    elif layer.inputs != wanted.inputs:
      difference = "takes the results of other layers"
    elif layer.settings != wanted.settings:
      at = min(number for number, _ in layer.settings.items() ^ wanted.settings.items())
      difference = f"has the setting {at}={layer.settings.get(at)}, not {wanted.settings.get(at)}"
    else:
      continue
    raise UserError(f"is another network than Real-ESRGAN's RRDBNet {size}: {layer.title!r} {difference}")
  if len(layers) != len(expected):
    raise UserError(
      f"is another network than Real-ESRGAN's RRDBNet {size}: it has {len(layers)} layers, not {len(expected)}"
    )


class _Expected:
  """The graph of an RRDBNet (`models.rrdbnet`), layer by layer, in the order in which it is computed.

  Attributes:
    layers: all of them; inputs are places among them.
    convolutions: the path of the module and the shape (O, I, 3, 3) of the weights of each, in order.
  """

  def __init__(self, config: RRDBNetConfig):
    self.layers: list[_Layer] = []
    self.convolutions: list[tuple[str, tuple[int, ...]]] = []
    self._channels: list[int] = []
    features = config.features
    first = h = self._convolution("conv_first", self._add("Input", (), 3), features)
    for i in range(config.blocks):
      h = self._rrdb(f"body_{i}", h, config)
    h = self._convolution("conv_body", h, features)
    h = self._add("BinaryOp", (first, h), features)
    for name in ("conv_up1", "conv_up2"):
      h = self._add("Interp", (h,), features, _NEAREST_BY_2)
      h = self._convolution(name, h, features, _LEAKY_RELU)
    h = self._convolution("conv_hr", h, features, _LEAKY_RELU)
    self._convolution("conv_last", h, 3)

  def _rrdb(self, path: str, x: int, config: RRDBNetConfig) -> int:
    h = x
    for dense in range(1, 4):
      seen = [start := h]
      for i in range(1, 5):
        h = self._convolution(f"{path}/dense{dense}/conv{i}", h, config.growth, _LEAKY_RELU)
        seen.append(h)
        h = self._add("Concat", tuple(seen), sum(self._channels[place] for place in seen))
      h = self._convolution(f"{path}/dense{dense}/conv5", h, config.features)
      h = self._add("Eltwise", (h, start), config.features, _FIFTH_PLUS)
    return self._add("Eltwise", (h, x), config.features, _FIFTH_PLUS)

  def _convolution(self, path: str, x: int, channels: int, activation: dict[int, _Setting] | None = None) -> int:
    shape = (channels, self._channels[x], 3, 3)
    self.convolutions.append((path, shape))
    settings = {0: channels, 6: math.prod(shape)} | _CONVOLUTION | (activation or {})
    return self._add("Convolution", (x,), channels, settings)

  def _add(self, kind: str, inputs: tuple[int, ...], channels: int, settings: dict[int, _Setting] | None = None) -> int:
    self.layers.append(_Layer(kind, inputs, _DEFAULTS[kind] | (settings or {})))
    self._channels.append(channels)
    return len(self.layers) - 1


def _locate(path: pathlib.Path, config: RRDBNetConfig) -> dict[str, _Array]:
  """Where each array lies in the `.bin` file.

  Before a layer's weights comes a flag that says what they are; they fill whole 4 bytes. Its bias is float32 without
  a flag.

  Raises:
    UserError: the file is shorter or longer than the arrays, or they are of another kind.
  """
  arrays: dict[str, _Array] = {}
  published, size, place = names.rrdbnet(config), path.stat().st_size, 0
  with open(path, "rb") as f:
    for module, shape in _Expected(config).convolutions:
      layer = published[module]
      f.seek(place)
      flag = f.read(_FLAG)
      dtype = _DTYPES.get(int.from_bytes(flag, "little"))
      if len(flag) == _FLAG and dtype is None:
        raise UserError(
          f"the weights of {layer} are neither float32 nor float16 (their flag is 0x{flag[::-1].hex()}): they are "
          "quantised, or the file is not the .param's"
        )
      weight = _Array(shape, dtype or _DTYPES[0], place + _FLAG)
      bias = _Array(shape[:1], _DTYPES[0], weight.end + -weight.end % 4)
      place = bias.end
      if place > size:
        raise UserError(f"is truncated: {layer} ends at byte {place}, the file has {size}; download it again")
      arrays |= {f"{layer}.weight": weight, f"{layer}.bias": bias}
  if place != size:
    raise UserError(f"has {size} bytes, of which the network takes {place}: it is damaged, or not the .param's")
  return arrays

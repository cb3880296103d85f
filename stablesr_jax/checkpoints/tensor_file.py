"""Reads the tensors of PyTorch checkpoints and safetensors files, one at a time, running no code of the file.

A published `.ckpt` is a pickle that names classes of whatever packages it was trained with (Lightning callbacks,
OmegaConf settings, ...). Here each such name becomes an inert stand-in; only tensors are kept.
"""

import hashlib
import pathlib
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from stablesr_jax.errors import UserError, first_line

# Levels under which tensors are published, the preferred first: averaged weights before the others.
WRAPPERS = ("state_dict", "params_ema", "params")

_SAFETENSORS_DTYPES = {
  "BOOL": np.dtype(np.bool_),
  "U8": np.dtype(np.uint8),
  "I8": np.dtype(np.int8),
  "I16": np.dtype(np.int16),
  "U16": np.dtype(np.uint16),
  "I32": np.dtype(np.int32),
  "U32": np.dtype(np.uint32),
  "I64": np.dtype(np.int64),
  "U64": np.dtype(np.uint64),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F32": np.dtype(np.float32),
  "F64": np.dtype(np.float64),
}
_MAX_SAFETENSORS_HEADER = 100_000_000  # bytes, as the format says
_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before it wrote zip files


class TensorFile:
  """The tensors of a checkpoint, by name. Made by `open_tensors`, and to be closed.

  Attributes:
    path: the file.
  """

  def __init__(
    self,
    path: pathlib.Path,
    entries: dict[str, tuple[tuple[int, ...], np.dtype | str]],
    read: Callable[[str], np.ndarray],
  ):
    """`entries` gives shape and dtype; the dtype is its name in the file where NumPy has none for it."""
    self.path = path
    self._entries = entries
    self._read: Callable[[str], np.ndarray] | None = read

  def __iter__(self) -> Iterator[str]:
    return iter(self._entries)

  def __contains__(self, name: object) -> bool:
    return name in self._entries

  def shape(self, name: str) -> tuple[int, ...]:
    """The tensor's shape, in the file's layout. Raises UserError if there is no such tensor."""
    return self._entry(name)[0]

  def dtype(self, name: str) -> np.dtype:
    """The tensor's dtype (bfloat16 is ml_dtypes'). Raises UserError if it is missing or NumPy has no such type."""
    dtype = self._entry(name)[1]
    if isinstance(dtype, str):
      raise UserError(f"{self.path}: tensor {name!r} is of a kind that is not supported ({dtype})")
    return dtype

  def read(self, name: str) -> np.ndarray:
    """Reads one tensor: an array of its own, of `shape(name)` and `dtype(name)`.

    Raises:
      UserError: there is no such tensor, or its kind is not supported.
      ValueError: the file was closed.
    """
    self.dtype(name)
    if self._read is None:
      raise ValueError(f"{self.path}: closed")
    return self._read(name)

  def close(self) -> None:
    """Lets go of the file; names, shapes and dtypes stay known."""
    self._read = None

  def _entry(self, name: str) -> tuple[tuple[int, ...], np.dtype | str]:
    if name not in self._entries:
      raise UserError(f"{self.path}: no tensor {name!r}")
    return self._entries[name]


def open_tensors(path: str | pathlib.Path) -> TensorFile:
  """Opens a `.ckpt`, `.pth`, `.pt`, `.bin` or `.safetensors` file; its content, not its suffix, says which it is.

  Nothing in the file is run: foreign classes and functions become stand-ins that do nothing. Tensors stay in the
  file until read. Entries that are not tensors are left out. While a PyTorch file is being opened, torch's list of
  safe names holds the stand-ins, for all threads of the process.

  Raises:
    UserError: there is no such file.
    UserError: it is no checkpoint, is damaged, has no tensors, or cannot be read safely; or torch is not installed.
  """
  path = pathlib.Path(path)
  kind = _kind_of_file(path)
  return _open_safetensors(path) if kind == "safetensors" else _open_torch(path, kind)


def sha256(path: str | pathlib.Path) -> str:
  """The SHA-256 of a file, in hexadecimal. Raises UserError if there is no such file."""
  path = pathlib.Path(path)
  _check_is_file(path)
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def _check_is_file(path: pathlib.Path) -> None:
  if path.is_dir():
    raise UserError(f"{path}: is a folder, not a checkpoint file")
  if not path.exists():
    raise UserError(f"{path}: no such file")


def _kind_of_file(path: pathlib.Path) -> str:
  """ "zip", "legacy" (both PyTorch's) or "safetensors". Raises UserError for anything else."""
  _check_is_file(path)
  try:
    with open(path, "rb") as f:
      head = f.read(512)
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror})") from error
  text = head.lstrip().lower()
  if not head:
    raise UserError(f"{path}: is empty; download it again")
  if head.startswith(b"PK\x03\x04"):
    return "zip"
  if head.startswith(_LEGACY_MAGIC):
    return "legacy"
  if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_SAFETENSORS_HEADER:
    return "safetensors"
  if head.startswith(b"version https://git-lfs"):
    raise UserError(f"{path}: is a git-lfs pointer, not the checkpoint; fetch the file itself with 'git lfs pull'")
  if text.startswith(b"<"):
    raise UserError(f"{path}: is a web page (HTML), not a checkpoint; the download went wrong")
  if head[257:262] == b"ustar":
    raise UserError(f"{path}: is a tar archive; unpack it, or save it again with a current PyTorch")
  if head.startswith(b"\x80"):
    raise UserError(f"{path}: is a Python pickle that torch.save did not write; save it as .safetensors")
  raise UserError(f"{path}: is not a checkpoint (.ckpt, .pth, .pt, .bin, .safetensors), or its start is damaged")


def _open_safetensors(path: pathlib.Path) -> TensorFile:
  try:
    file = safetensors.safe_open(path, framework="np")
    entries = {}
    for name in file.keys():
      part = file.get_slice(name)
      entries[name] = (tuple(part.get_shape()), _SAFETENSORS_DTYPES.get(part.get_dtype(), part.get_dtype()))
  except safetensors.SafetensorError as error:
    raise UserError(f"{path}: truncated or damaged safetensors file ({error}); download it again") from error
  if not entries:
    raise UserError(f"{path}: has no tensors")
  return TensorFile(path, entries, file.get_tensor)


def _open_torch(path: pathlib.Path, kind: str) -> TensorFile:
  try:
    import torch
  except ImportError as error:
    raise UserError(f'{path}: reading a PyTorch checkpoint needs torch: pip install "stablesr-jax[convert]"') from error
  try:
    content = _load_zip(path) if kind == "zip" else torch.load(path, map_location="cpu", weights_only=True)
    tensors = _unwrap(path, content)
    entries = {name: (tuple(tensor.shape), _dtype_of(tensor)) for name, tensor in tensors.items()}
  except _Refused as error:
    raise UserError(str(error)) from error
  except MemoryError:
    raise
  except Exception as error:  # A pickle made by anyone may fail inside torch with any error.
    raise UserError(f"{path}: cannot be read safely as PyTorch weights ({_reason(error)})") from error

  def read(name: str) -> np.ndarray:
    tensor, dtype = tensors[name].detach(), np.dtype(entries[name][1])
    if hasattr(ml_dtypes, dtype.name):  # bfloat16, float8: torch gives NumPy the bits alone
      bits = torch.uint8 if dtype.itemsize == 1 else torch.int16
      return np.array(tensor.view(bits).numpy().view(dtype))
    return np.array(tensor.numpy())

  return TensorFile(path, entries, read)


def _dtype_of(tensor: Any) -> np.dtype | str:
  """The NumPy dtype of a torch tensor, or the name of what NumPy has no equal of."""
  import torch

  if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.device.type != "cpu":
    return f"{tensor.layout}, {tensor.dtype}, {tensor.device}"
  name = str(tensor.dtype).removeprefix("torch.")
  try:
    return np.dtype(getattr(ml_dtypes, name, name))
  except TypeError:
    return str(tensor.dtype)


class _Refused(Exception):
  """Carries a message for the user past the handler of torch's own errors."""


class _StandIn:
  """Takes the place of a foreign class or function: takes everything, keeps nothing, calls nothing."""

  def __new__(cls, *args, **kwargs):
    return super().__new__(cls)

  def __init__(self, *args, **kwargs):
    pass

  def __setstate__(self, state):
    pass

  def __setitem__(self, key, value):
    pass


class _DictStandIn(_StandIn):
  """For foreign subclasses of dict: torch sets items on plain dictionaries only."""

  def __new__(cls, *args, **kwargs):
    return OrderedDict()


class _ListStandIn(_StandIn):
  """For foreign subclasses of list: torch appends to plain lists only."""

  def __new__(cls, *args, **kwargs):
    return []


def _load_zip(path: pathlib.Path) -> Any:
  """What torch.save wrote into a zip file: tensors as pages of the file, foreign objects as stand-ins."""
  import torch

  try:
    with zipfile.ZipFile(path) as archive:
      names = {pathlib.PurePosixPath(name).name for name in archive.namelist()}
  except zipfile.BadZipFile as error:
    raise _Refused(f"{path}: truncated or damaged checkpoint ({error}); download it again") from error
  if "data.pkl" not in names:
    raise _Refused(f"{path}: is a zip archive, but not a PyTorch checkpoint")

  foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
  kinds: dict[str, type[_StandIn]] = dict.fromkeys(foreign, _StandIn)
  while True:
    stand_ins: list[Any] = [(type(name, (kind,), {"__module__": "foreign"}), name) for name, kind in kinds.items()]
    try:
      with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
      # torch names the class it will not fill with items: try again with a plain container in its place.
      reason = _reason(error)
      refused = [n for n, kind in kinds.items() if kind is _StandIn and f"<class 'foreign.{n}'>" in reason]
      if not refused or "Can only" not in reason:
        raise
      kinds[refused[0]] = _ListStandIn if "lists, but" in reason else _DictStandIn


def _reason(error: BaseException) -> str:
  """The first sentence of an error. torch wraps a pickle's in advice to read the file unsafely, which is left out."""
  if isinstance(error, pickle.UnpicklingError) and error.__context__ is not None:
    error = error.__context__
  return first_line(error).split(". ")[0].rstrip(".")


def _unwrap(path: pathlib.Path, content: Any) -> dict[str, Any]:
  """The tensors by name of what a checkpoint holds."""
  top = _tensors(content)
  if not isinstance(content, dict):
    raise _Refused(f"{path}: holds a {type(content).__name__}, not tensors by name")
  nested = {key: _tensors(value) for key, value in content.items()}
  nested = {str(key): tensors for key, tensors in nested.items() if tensors}
  for wrapper in WRAPPERS:
    if wrapper in nested:
      return nested[wrapper]
  if top:
    return top
  if len(nested) == 1:
    return next(iter(nested.values()))
  if nested:
    raise _Refused(f"{path}: holds tensors under several names ({', '.join(nested)}) and under none of {WRAPPERS}")
  raise _Refused(f"{path}: has no tensors")


def _tensors(content: Any) -> dict[str, Any]:
  import torch

  if not isinstance(content, dict):
    return {}
  return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}

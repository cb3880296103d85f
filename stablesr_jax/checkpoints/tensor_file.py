"""Reads the tensors of PyTorch checkpoints and safetensors files, one at a time, running no code of the file."""

import pathlib
from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np
import safetensors

from stablesr_jax import files
from stablesr_jax.checkpoints.ncnn import NcnnFile, param_file
from stablesr_jax.checkpoints.torch_file import LEGACY_MAGIC, TorchFile
from stablesr_jax.errors import UserError, first_line

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
# How files begin that are taken for checkpoints, and what they are.
_FOREIGN = {
  b"GGUF": "a GGUF file, whose weights are quantised",
  b"Gk0\x01": "a .bin file of ncnn without its .param file beside it",
  b"\x89HDF": "an HDF5 file (of Keras)",
  b"\x1f\x8b": "a gzip archive; unpack it",
  b"7z\xbc\xaf": "a 7z archive; unpack it",
  b"Rar!": "a RAR archive; unpack it",
  b"\xfd7zXZ": "an xz archive; unpack it",
  b"\x93NUMPY": "a NumPy array",
  b"\x80": "a Python pickle that torch.save did not write; save it as .safetensors",
}


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

  Of ncnn's two files, `.param` and `.bin`, either one opens both; `path` is then the `.bin`. Nothing in the file is
  run: foreign classes and functions stay names. Tensors stay in the file until read. Entries that are not tensors are
  left out.

  Raises:
    UserError: there is no such file, it is no checkpoint, is damaged, or has no tensors.
  """
  path = pathlib.Path(path)
  if (param := param_file(path)) is not None:
    ncnn = NcnnFile(param)
    return TensorFile(ncnn.path, {name: (shape, dtype) for name, (shape, dtype) in ncnn.tensors.items()}, ncnn.read)
  if _is_safetensors(path):
    return _open_safetensors(path)
  file = TorchFile(path)
  return TensorFile(path, {name: (tensor.shape, tensor.dtype) for name, tensor in file.tensors.items()}, file.read)


def sha256(path: str | pathlib.Path) -> str:
  """The SHA-256 of a file, in hexadecimal. Raises UserError if there is no such file."""
  path = pathlib.Path(path)
  _check_is_file(path)
  return files.sha256(path)


def _check_is_file(path: pathlib.Path) -> None:
  if path.is_dir():
    raise UserError(f"{path}: is a folder, not a checkpoint file")
  if not path.exists():
    raise UserError(f"{path}: no such file")


def _is_safetensors(path: pathlib.Path) -> bool:
  """Whether it is a safetensors file; otherwise it is PyTorch's. Raises UserError for anything else."""
  _check_is_file(path)
  try:
    with open(path, "rb") as f:
      head = f.read(512)
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror})") from error
  if not head:
    raise UserError(f"{path}: is empty; download it again")
  if head.startswith((b"PK\x03\x04", LEGACY_MAGIC)):
    return False
  text = _as_text(head)
  if head[8:9] == b"{" and text is None:
    length, size = int.from_bytes(head[:8], "little"), path.stat().st_size
    if length > min(_MAX_SAFETENSORS_HEADER, size - 8):
      raise UserError(
        f"{path}: truncated or damaged safetensors file (its header would have {length} bytes, the file has {size}); "
        "download it again"
      )
    return True
  if head.startswith(b"version https://git-lfs"):
    raise UserError(f"{path}: is a git-lfs pointer, not the checkpoint; fetch the file itself with 'git lfs pull'")
  if text is not None and text.startswith("<"):
    raise UserError(f"{path}: is a web page (HTML), not a checkpoint; the download went wrong")
  if text:
    what = "JSON" if text[0] in "{[" else "text"
    raise UserError(f"{path}: is {what}, not a checkpoint; it begins with {text[:80]!r}")
  if head[257:262] == b"ustar":
    raise UserError(f"{path}: is a tar archive; unpack it, or save it again with a current PyTorch")
  for start, what in _FOREIGN.items():
    if head.startswith(start):
      raise UserError(f"{path}: is {what}; not a checkpoint that can be read")
  raise UserError(f"{path}: is not a checkpoint (.ckpt, .pth, .pt, .bin, .safetensors), or its start is damaged")


def _as_text(head: bytes) -> str | None:
  """What a file begins with as one line, if that is text."""
  encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
  text = head.decode(encoding, errors="ignore")  # the last character may be cut in two
  text = " ".join(text.split())
  return text if text and text.isprintable() and len(text) > len(head) // 4 else None


def _open_safetensors(path: pathlib.Path) -> TensorFile:
  try:
    file = safetensors.safe_open(path, framework="np")
    entries = {}
    for name in file.keys():
      part = file.get_slice(name)
      entries[name] = (tuple(part.get_shape()), _SAFETENSORS_DTYPES.get(part.get_dtype(), part.get_dtype()))
  except (safetensors.SafetensorError, OSError) as error:
    reason = first_line(error).partition(", expected one of")[0].removeprefix("Error while deserializing header: ")
    raise UserError(f"{path}: truncated or damaged safetensors file ({reason}); download it again") from error
  if not entries:
    raise UserError(f"{path}: has no tensors")
  return TensorFile(path, entries, file.get_tensor)

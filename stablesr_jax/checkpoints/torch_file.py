"""What torch.save wrote, read without torch and without running any code of the file.

Such a file is a pickle that names classes of whatever packages it was made with (Lightning callbacks, OmegaConf
settings, ...), and beside it the tensors' bytes: as members of a zip file, or, before PyTorch 1.6, one after another.
The pickle is taken apart here by an unpickler that looks nothing up and calls nothing: every name in it stays a name.
Nothing is allocated or read for what the file merely claims to hold.
"""

import dataclasses
import io
import math
import mmap
import pathlib
import pickle
import struct
import zipfile
import zlib
from typing import Any

import ml_dtypes
import numpy as np

from stablesr_jax.errors import UserError, first_line

LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before it wrote zip files
# Levels under which tensors are published, the preferred first: averaged weights before the others.
WRAPPERS = ("state_dict", "params_ema", "params")

_DEEPEST = 6  # levels at which tensors are looked for
# A tensor may show elements of its storage several times (torch's `expand`), but only this many: 4 bytes can claim to
# be any number of gigabytes.
_MOST_REPEATED = 1 << 20

_DTYPES = {
  **{f"float{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
  **{f"int{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
  **{f"uint{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
  "bool": np.dtype(np.bool_),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
  **{f"float8_{kind}": np.dtype(getattr(ml_dtypes, f"float8_{kind}")) for kind in ("e4m3fn", "e5m2")},
}
# Classes of storages -> dtypes; of those that NumPy has no dtype for, the bytes of an element.
_STORAGES = {
  "HalfStorage": "float16",
  "FloatStorage": "float32",
  "DoubleStorage": "float64",
  "BFloat16Storage": "bfloat16",
  "CharStorage": "int8",
  "ShortStorage": "int16",
  "IntStorage": "int32",
  "LongStorage": "int64",
  "ByteStorage": "uint8",
  "BoolStorage": "bool",
  "UntypedStorage": "uint8",
}
_OTHER_STORAGES = {"ComplexFloatStorage": 8, "ComplexDoubleStorage": 16}
_OTHER_STORAGES |= {"QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4}


class Damaged(Exception):
  """Something in the file is not as torch.save writes it; says what, without the file's name."""


@dataclasses.dataclass(frozen=True)
class _Name:
  """A class or function that the pickle names."""

  module: str
  name: str

  def __str__(self) -> str:
    return f"{self.module}.{self.name}"


class _Foreign(dict):
  """What a call of something unknown would have made. It takes items, as subclasses of dict have them."""

  def __init__(self, made_by: _Name):
    super().__init__()
    self.made_by = made_by


@dataclasses.dataclass(eq=False)
class _Storage:
  """A run of bytes that tensors are views of.

  Attributes:
    key: its name in the file.
    kind: of storage, by its class's name.
    size: in elements, as the pickle says.
    start, length: where in the file its bytes begin, and how many they are, once known.
    crc: their checksum, where the file has one that is still to be compared.
  """

  key: str
  kind: str
  size: int
  start: int = -1
  length: int = 0
  crc: int | None = None

  @property
  def dtype(self) -> np.dtype | str:
    """Of its elements, or the kind's name where NumPy has none."""
    return _DTYPES[_STORAGES[self.kind]] if self.kind in _STORAGES else self.kind

  @property
  def claimed(self) -> int:
    """The bytes that the pickle says it has."""
    dtype = self.dtype
    if not isinstance(dtype, str):
      return self.size * dtype.itemsize
    if dtype not in _OTHER_STORAGES:
      raise UserError(f"has tensors of an unknown kind ({dtype})")
    return self.size * _OTHER_STORAGES[dtype]


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
  """A tensor as the pickle describes it: a view of a storage, offset and strides in elements.

  Attributes:
    dtype: as in `_Storage`.
  """

  shape: tuple[int, ...]
  dtype: np.dtype | str
  storage: _Storage | None = None
  offset: int = 0
  strides: tuple[int, ...] = ()


class TorchFile:
  """The tensors of a file, by name, and their bytes, which stay in the file until read."""

  def __init__(self, path: pathlib.Path):
    """
    Raises:
      UserError: it is damaged, no PyTorch file, or has no tensors; one line.
    """
    self._path = path
    try:
      with open(path, "rb") as f:
        self._bytes = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
      content = self._read_zip() if self._bytes[:4] == b"PK\x03\x04" else self._read_legacy()
      self.tensors = {name: _checked(name, tensor) for name, tensor in _find_tensors(content).items()}
    except UserError as error:
      raise UserError(f"{path}: {error}") from error
    except MemoryError:
      raise
    except Exception as error:  # a file made by anyone may go wrong anywhere in pickle or zipfile
      raise UserError(f"{path}: truncated or damaged checkpoint ({first_line(error)}); download it again") from error

  def read(self, name: str) -> np.ndarray:
    """An array of its own. Raises UserError if the bytes are not those that were saved."""
    tensor = self.tensors[name]
    storage, dtype = tensor.storage, np.dtype(tensor.dtype)
    assert storage is not None
    if not math.prod(tensor.shape):
      return np.zeros(tensor.shape, dtype)
    if storage.crc is not None:
      with memoryview(self._bytes) as whole, whole[storage.start : storage.start + storage.length] as part:
        if zlib.crc32(part) != storage.crc:
          raise UserError(f"{self._path}: tensor {name!r} is damaged (its checksum is wrong); download it again")
      storage.crc = None
    strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
    start = storage.start + tensor.offset * dtype.itemsize
    return np.array(np.ndarray(tensor.shape, dtype, self._bytes, start, strides), order="C")

  def _read_zip(self) -> Any:
    with zipfile.ZipFile(self._path) as archive:
      members = {info.filename: info for info in archive.infolist()}
      if len(members) < len(archive.infolist()):
        raise Damaged("a member is there twice")
      pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
      if len(pickles) != 1:
        raise UserError("is a zip archive, but not a PyTorch checkpoint")
      root = pickles[0].removesuffix("data.pkl")
      if f"{root}constants.pkl" in members:
        raise UserError("is a TorchScript program; save its state_dict() with torch.save")
      for info in members.values():
        # torch.save compresses nothing. What inflates could become any size.
        if info.filename.startswith(root) and (info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1):
          raise UserError("is a zip archive that another program compressed; pack it without compression (zip -0)")
        if info.file_size > len(self._bytes):
          raise Damaged(f"{info.filename} is larger than the file")
      if (order := members.get(f"{root}byteorder")) and self._member(order) != b"little":
        raise UserError("was saved on a big-endian machine, which is not supported; save it as .safetensors")
      unpickler = _Unpickler(io.BytesIO(self._member(members[pickles[0]])))
      content = unpickler.load()
    for storage in unpickler.storages.values():
      if (info := members.get(f"{root}data/{storage.key}")) is None:
        raise Damaged(f"data/{storage.key} is missing")
      storage.start, storage.length = self._start(info), info.file_size
      storage.crc = info.CRC or None  # 0: torch.save was told to make none
      if storage.length < storage.claimed or storage.start + storage.length > len(self._bytes):
        raise Damaged(f"data/{storage.key} is too short")
    return content

  def _member(self, info: zipfile.ZipInfo) -> bytes:
    start = self._start(info)
    data = self._bytes[start : start + info.file_size]
    if info.CRC and zlib.crc32(data) != info.CRC:
      raise Damaged(f"{info.filename} has a wrong checksum")
    return data

  def _start(self, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin."""
    header = self._bytes[info.header_offset : info.header_offset + 30]
    if header[:4] != b"PK\x03\x04":
      raise Damaged(f"{info.filename} is not where it should be")
    name, extra = struct.unpack("<2H", header[26:])
    return info.header_offset + len(header) + name + extra

  def _read_legacy(self) -> Any:
    """Magic, protocol, system, content and the storages' keys, a pickle each; then each storage's size and bytes."""
    file = self._bytes
    file.seek(len(LEGACY_MAGIC))
    _Unpickler(file).load()
    system = _Unpickler(file).load()
    if not isinstance(system, dict) or system.get("little_endian") is False:
      raise UserError("was saved on a big-endian machine, which is not supported; save it as .safetensors")
    unpickler = _Unpickler(file)
    content = unpickler.load()
    keys = _Unpickler(file).load()
    place = file.tell()
    for key in keys:
      storage = unpickler.storages[key]
      size = int.from_bytes(file[place : place + 8], "little")
      storage.start, storage.length = place + 8, storage.claimed
      place = storage.start + storage.length
      if size != storage.size or place > len(file):
        raise Damaged("the tensors' bytes are cut short")
    if any(storage.start < 0 for storage in unpickler.storages.values()):
      raise Damaged("the bytes of some tensors are missing")
    return content


_PythonUnpickler: Any = pickle._Unpickler  # the one in C allocates what an index claims


class _Unpickler(_PythonUnpickler):
  """Makes dictionaries, lists, tuples, strings, numbers, `_Name`, `_Storage`, `Tensor` and `_Foreign`, nothing else.

  All instructions that would call something, set attributes or hash what the file made are replaced.

  Attributes:
    storages: by key, of all tensors.
  """

  def __init__(self, file: Any):
    super().__init__(file, encoding="latin1")  # names in files of Python 2 are bytes
    self.storages: dict[str, _Storage] = {}

  def find_class(self, module: str, name: str) -> Any:
    return _Name(module, name)

  def persistent_load(self, pid: Any) -> Any:
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
      raise Damaged("it names something other than a storage")
    kind, key, size, view = pid[1], pid[2], pid[4], pid[5:]
    if not isinstance(kind, _Name) or not isinstance(key, str) or not _is_size(size):
      raise Damaged("a storage is described wrongly")
    if any(view):
      raise UserError("has views of storages, as before PyTorch 0.4; save it again with a current PyTorch")
    storage = self.storages.setdefault(key, _Storage(key, kind.name, size))
    if (storage.kind, storage.size) != (kind.name, size):
      raise Damaged(f"storage {key} is described in two ways")
    return storage

  def load_reduce(self) -> None:
    arguments, function = self.stack.pop(), self.stack.pop()
    if not isinstance(function, _Name):  # a method, say: of something that a call would have made
      function = _Name("something", "unknown")
    if not isinstance(arguments, tuple):
      raise Damaged("a call has no arguments")
    self.stack.append(_made(function, arguments))

  def load_newobj_ex(self) -> None:
    self.stack.pop()  # keywords
    self.load_reduce()

  def load_build(self) -> None:
    self.stack.pop()  # attributes

  def load_setitem(self) -> None:
    value, key = self.stack.pop(), self.stack.pop()
    _set_item(self.stack[-1], key, value)

  def load_setitems(self) -> None:
    items = self.pop_mark()
    for key, value in zip(items[::2], items[1::2], strict=True):
      _set_item(self.stack[-1], key, value)

  def load_dict(self) -> None:
    items = self.pop_mark()
    made: dict[Any, Any] = {}
    for key, value in zip(items[::2], items[1::2], strict=True):
      _set_item(made, key, value)
    self.stack.append(made)

  def load_append(self) -> None:
    value = self.stack.pop()
    if isinstance(self.stack[-1], list):
      self.stack[-1].append(value)

  def load_appends(self) -> None:
    values = self.pop_mark()
    if isinstance(self.stack[-1], list):
      self.stack[-1].extend(values)

  def load_additems(self) -> None:
    self.pop_mark()

  def load_frozenset(self) -> None:
    self.pop_mark()
    self.stack.append(None)

  def refuse(self) -> None:
    raise Damaged("it has an instruction that no checkpoint needs")

  dispatch = {
    **_PythonUnpickler.dispatch,
    pickle.REDUCE[0]: load_reduce,
    pickle.NEWOBJ[0]: load_reduce,
    pickle.NEWOBJ_EX[0]: load_newobj_ex,
    pickle.BUILD[0]: load_build,
    pickle.SETITEM[0]: load_setitem,
    pickle.SETITEMS[0]: load_setitems,
    pickle.DICT[0]: load_dict,
    pickle.APPEND[0]: load_append,
    pickle.APPENDS[0]: load_appends,
    pickle.ADDITEMS[0]: load_additems,
    pickle.FROZENSET[0]: load_frozenset,
    **dict.fromkeys(
      (
        op[0]
        for op in (
          pickle.INST,
          pickle.OBJ,
          pickle.EXT1,
          pickle.EXT2,
          pickle.EXT4,
          pickle.PERSID,
          pickle.BYTEARRAY8,
          pickle.NEXT_BUFFER,
          pickle.READONLY_BUFFER,
        )
      ),
      refuse,
    ),
  }


def _set_item(target: Any, key: Any, value: Any) -> None:
  """Only strings are keys: no tensor that is looked for lies under another, and what else hashes may take forever."""
  if isinstance(target, dict) and isinstance(key, str):
    target[key] = value


def _made(function: _Name, arguments: tuple[Any, ...]) -> Any:
  """What a call in the pickle stands for."""
  match str(function), arguments:
    case "collections.OrderedDict" | "builtins.dict" | "__builtin__.dict", ():
      return {}
    case "collections.OrderedDict", (list(pairs),):
      made: dict[Any, Any] = {}
      for pair in pairs:
        key, value = pair
        _set_item(made, key, value)
      return made
    case "torch._utils._rebuild_tensor", (storage, offset, size, strides):
      return _tensor(storage, offset, size, strides)
    case "torch._utils._rebuild_tensor_v2", (storage, offset, size, strides, *_):
      return _tensor(storage, offset, size, strides)
    case "torch._utils._rebuild_tensor_v3", (storage, offset, size, strides, _, _, _Name() as dtype, *_):
      return _tensor(storage, offset, size, strides, _DTYPES.get(dtype.name, str(dtype)))
    case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", (tensor, *_):
      return tensor
    case "torch._tensor._rebuild_from_type_v2", (_Name() as inner, _, tuple(inner_arguments), _):
      return _made(inner, inner_arguments)
    case "torch.Size", (tuple() as size,):
      return size
  if function.module == "torch._utils" and function.name.startswith("_rebuild_") and "tensor" in function.name:
    return Tensor((), function.name.removeprefix("_rebuild_"))  # sparse, quantised, on no device, ...
  return _Foreign(function)


def _tensor(storage: Any, offset: Any, size: Any, strides: Any, dtype: np.dtype | str | None = None) -> Tensor:
  sizes = isinstance(size, tuple) and isinstance(strides, tuple) and len(size) == len(strides) <= 32
  if not sizes or not isinstance(storage, _Storage) or not all(map(_is_size, (offset, *size, *strides))):
    raise Damaged("a tensor is described wrongly")
  return Tensor(size, storage.dtype if dtype is None else dtype, storage, offset, strides)


def _is_size(value: Any) -> bool:
  return type(value) is int and 0 <= value < 1 << 60


def _checked(name: str, tensor: Tensor) -> Tensor:
  """The tensor, whose bytes are there; one that shows them too many times is of a kind that is not supported.

  Raises:
    Damaged: they are not there.
  """
  if tensor.storage is None or isinstance(tensor.dtype, str):
    return tensor
  there, elements = tensor.storage.length // tensor.dtype.itemsize, math.prod(tensor.shape)
  axes = zip(tensor.shape, tensor.strides, strict=True)
  strides = tuple(stride if length > 1 and elements else 0 for length, stride in axes)
  last = tensor.offset + sum((length - 1) * stride for length, stride in zip(tensor.shape, strides, strict=True))
  if (elements and last >= there) or math.prod(max(1, length) for length in tensor.shape) >= 1 << 60:
    raise Damaged(f"tensor {name!r} is larger than its bytes")
  dtype = "expanded" if elements > max(there, _MOST_REPEATED) else tensor.dtype
  return dataclasses.replace(tensor, dtype=dtype, strides=strides)


def _find_tensors(content: Any) -> dict[str, Tensor]:
  """The tensors by name of what a checkpoint holds: of the outermost level that has any, the preferred ones.

  Raises:
    UserError: there are none, or several equally good ones.
  """
  if not isinstance(content, dict):
    what = "Tensor" if isinstance(content, Tensor) else type(content).__name__
    raise UserError(f"holds a {what}, not tensors by name")
  if isinstance(content, _Foreign) and not content:
    raise UserError(f"holds an object ({content.made_by}), not tensors by name; save its state_dict()")
  top, levels, seen = _tensors(content), {"": content}, {id(content)}
  for _ in range(_DEEPEST):
    inner = {}
    for place, level in levels.items():
      for key, value in level.items():
        if isinstance(value, dict) and id(value) not in seen:
          seen.add(id(value))  # what holds itself would never end
          inner[f"{place}.{key}".lstrip(".")] = value
    found = {place: tensors for place, level in inner.items() if (tensors := _tensors(level))}
    for wrapper in WRAPPERS:
      if named := {place: tensors for place, tensors in found.items() if place.rpartition(".")[2] == wrapper}:
        found = named
        break
    else:
      if top:
        return top
    if len(found) == 1:
      return next(iter(found.values()))
    if found:
      shown = ", ".join(list(found)[:5])
      raise UserError(f"holds tensors under several names ({shown}), none of which is the one that is published")
    levels = inner
  raise UserError("has no tensors")


def _tensors(level: dict[Any, Any]) -> dict[str, Tensor]:
  return {key: value for key, value in level.items() if isinstance(key, str) and isinstance(value, Tensor)}

"""The converted format: a folder with `model.json` and one Orbax checkpoint for each part of the model."""

import contextlib
import dataclasses
import errno
import glob
import json
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp
from pydantic import Field

from stablesr_jax.checkpoints.orbax_checkpoint import damage, misfit, quiet_orbax, reason
from stablesr_jax.config import ComputeConfig, LPIPSConfig, ModelConfig, SamplingConfig
from stablesr_jax.errors import UserError
from stablesr_jax.files import make_folder
from stablesr_jax.models import lpips
from stablesr_jax.models.components import COMPONENTS, abstract_params
from stablesr_jax.models.parameters import Params, flat, split
from stablesr_jax.settings import from_json, read_json, settings, to_json

FORMAT = 1
# The small model that the package brings along, trained with this code.
EMBEDDED = pathlib.Path(__file__).resolve().parents[1] / "assets" / "tiny"
MANIFEST = "model.json"
NULL_PROMPT = "null_prompt"
LPIPS_PART = "lpips"
_A_DAY = 24 * 3600.0  # seconds

StoredDtype = Literal["float32", "bfloat16", "float16"]
_Format = Annotated[int, Field(ge=FORMAT, le=FORMAT)]  # Literal[1] would take true


@settings
class Manifest:
  """What `model.json` says.

  Attributes:
    name: of the model, for people.
    architecture: sizes and parameterisation.
    sampling: the model's own defaults.
    dtype: of the stored parameters.
    sources: {"file", "sha256", "kind"} of every file it was converted from.
  """

  name: str
  architecture: ModelConfig
  sampling: SamplingConfig = SamplingConfig()
  dtype: StoredDtype = "float32"
  sources: tuple[dict[str, str], ...] = ()
  format: _Format = FORMAT

  def __post_init__(self):
    self.sampling.require_within(self.architecture.diffusion, "sampling.start_step")


@settings
class LPIPSManifest:
  """What `model.json` says in the folder of an LPIPS network; the fields are as in `Manifest`."""

  name: str
  lpips: LPIPSConfig
  dtype: StoredDtype = "float32"
  sources: tuple[dict[str, str], ...] = ()
  format: _Format = FORMAT


def require_replaceable(path: str | os.PathLike) -> None:
  """Checks that a model may be written to `path`: nothing is there, an empty folder, or a converted model alone.

  Raises:
    UserError: something else is there, or lies beside the model; one line that names it.
  """
  folder = pathlib.Path(path)
  try:
    entries = sorted(os.listdir(folder))
  except FileNotFoundError:
    return
  except NotADirectoryError:
    entries = ["a file"]
  if not entries:
    return
  if MANIFEST not in entries:
    raise UserError(f"{path}: exists and is no converted model; it will not be replaced")
  if not _is_ours(folder / MANIFEST):
    raise UserError(f"{path}: its {MANIFEST} is no converted model's; the folder will not be replaced")
  parts = (*COMPONENTS, NULL_PROMPT, LPIPS_PART)
  foreign = [name for name in entries if name != MANIFEST and not (name in parts and (folder / name).is_dir())]
  if foreign:
    more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
    raise UserError(
      f"{path}: has {', '.join(foreign[:3])}{more}, no part of a converted model; the folder will not be replaced"
    )


def _is_ours(file: pathlib.Path) -> bool:
  """Whether a `model.json` is one that this package wrote, in whichever version."""
  try:
    values = read_json(file)
  except (UserError, OSError):
    return False
  described = values.get("architecture", values.get(LPIPS_PART))
  return isinstance(values.get("name"), str) and type(values.get("format")) is int and isinstance(described, dict)


class ModelWriter:
  """Writes a model part by part into a temporary folder that `commit` puts in place, whole or not at all.

  A context manager: what was not committed when it is left is removed. Of several processes of one run all make the
  same calls, and the first one writes. Of several writers of one folder the last one's model stays.
  """

  def __init__(self, path: str | os.PathLike):
    """
    Raises:
      UserError: at `path` is something else than a converted model alone, or an empty folder.
    """
    require_replaceable(path)
    self.path = pathlib.Path(os.path.realpath(path))  # not `resolve`, which raises where a link leads to itself
    self._partial = self.path.with_name(f".{self.path.name}.{_shared_id()}.partial")
    self._writes = jax.process_index() == 0
    if self._writes:
      _remove_abandoned(self.path)
      make_folder(self._partial)
    _wait_for_all("model_made")

  def __enter__(self) -> "ModelWriter":
    return self

  def __exit__(self, *_: object) -> None:
    if self._writes:
      shutil.rmtree(self._partial, ignore_errors=True)  # gone, if it was committed

  def write(self, part: str, params: Params) -> None:
    """Stores one part's parameters (NumPy or JAX arrays), without copying them."""
    context = ocp.Context()
    context.array.saving.use_compression = False  # weights do not compress; this halves the time
    context.memory.deepcopy_host_arrays = False
    context.memory.write_concurrent_bytes = 1 << 28
    quiet_orbax()
    with context:
      ocp.save(str(self._partial / part), params)

  def copy(self, part: str, source: pathlib.Path) -> None:
    """Takes one part over from another model's folder."""
    if self._writes:
      shutil.copytree(source, self._partial / part)

  def commit(self, manifest: Manifest | LPIPSManifest) -> None:
    """Writes `model.json` and moves the folder into place; an earlier model there is replaced."""
    if self._writes:
      (self._partial / MANIFEST).write_text(json.dumps(to_json(manifest), indent=2) + "\n")
      # Orbax takes a folder without this file for unfinished, and has no setting for its text, the absolute path on
      # this machine: nobody else's business, where models are passed on.
      for note in self._partial.rglob("commit_success.txt"):
        note.write_text("stored\n")
      self._put_in_place()
    _wait_for_all("model_committed")

  def _put_in_place(self) -> None:
    replaced = self._partial.with_suffix(".replaced")
    while True:
      require_replaceable(self.path)  # again: writing takes minutes
      with contextlib.suppress(FileNotFoundError):
        self.path.rename(replaced)
      try:
        self._partial.rename(self.path)
        break
      except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
          with contextlib.suppress(OSError):
            replaced.rename(self.path)
          raise
        shutil.rmtree(replaced, ignore_errors=True)  # another writer's model came between: it is replaced, too
    shutil.rmtree(replaced, ignore_errors=True)


def _remove_abandoned(path: pathlib.Path) -> None:
  """Removes what writers of `path` left that were killed; one that is at work adds a part within a day."""
  for folder in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 32}.partial"):
    with contextlib.suppress(OSError):
      if time.time() - folder.stat().st_mtime > _A_DAY:
        shutil.rmtree(folder, ignore_errors=True)


def _shared_id() -> str:
  """32 hexadecimal digits that nobody else has; the same in all processes."""
  own = np.frombuffer(uuid.uuid4().bytes, np.uint8)
  if jax.process_count() > 1:
    own = multihost_utils.broadcast_one_to_all(own)
  return np.asarray(own, np.uint8).tobytes().hex()


def _wait_for_all(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def read_manifest(path: str | os.PathLike) -> Manifest:
  """Reads a converted model's `model.json`.

  Raises:
    UserError: the folder is no converted model, or its manifest does not fit this version; one line, named.
  """
  values = _read_json(pathlib.Path(path))
  if LPIPS_PART in values:
    raise UserError(f"{path}: an LPIPS network, not a StableSR model")
  return from_json(Manifest, values, str(pathlib.Path(path) / MANIFEST))


def read_pre_cleaner(path: str | os.PathLike) -> Manifest:
  """The `model.json` of a converted model that has a pre-cleaner.

  Raises:
    UserError: it has none, or as `read_manifest`.
  """
  manifest = read_manifest(path)
  if manifest.architecture.precleaner is None:
    raise UserError(f"{path}: this model has no precleaner (convert_weights.py makes one of Real-ESRGAN's weights)")
  return manifest


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  file = path / MANIFEST
  if not path.exists():
    raise UserError(f"{path}: no such model folder")
  if not file.is_file():
    what = "a checkpoint file" if path.is_file() else "a folder without model.json"
    raise UserError(f"{path}: {what}, not a converted model (make one with convert_weights.py)")
  values = read_json(file)
  if values.get("format") != FORMAT:
    raise UserError(f"{file}: format {values.get('format')!r} is not known to this version, which reads {FORMAT}")
  return values


def load_params(
  path: str | os.PathLike,
  manifest: Manifest,
  parts: Iterable[str],
  *,
  dtype: str = "float32",
  sharding: jax.sharding.Sharding | None = None,
  chosen: Callable[[str], bool] | None = None,
) -> dict[str, Params]:
  """Loads parts of a converted model.

  Args:
    parts: names from `COMPONENTS`, or "null_prompt".
    dtype: of the parameters in memory.
    sharding: of every parameter; by default the first device.
    chosen: Tells by its path ("down_0_0/residual/conv1/kernel") whether a parameter of a part in `COMPONENTS` is read;
      others are left out of the part's tree. By default all are read.

  Raises:
    UserError: a part is absent, damaged or of another architecture than `model.json` says.
  """
  path = pathlib.Path(path).resolve()
  loaded = {}
  for part in parts:
    if part in COMPONENTS:
      if getattr(manifest.architecture, part) is None:
        raise UserError(f"{path}: this model has no {part.replace('_', ' ')}")
      abstract = abstract_params(manifest.architecture, part)
      if chosen is not None:
        abstract = split(abstract, chosen)[0]
      loaded[part] = _load(path / part, abstract, dtype, sharding, partial=chosen is not None)
    else:
      architecture = manifest.architecture
      if architecture.unet is None:
        raise UserError(f"{path}: this model has no unet")
      abstract = {part: jax.ShapeDtypeStruct((architecture.context_length, architecture.unet.context_dim), np.float32)}
      loaded[part] = _load(path / part, abstract, dtype, sharding)[part]
  return loaded


def store_as(
  path: str | os.PathLike, output: str | os.PathLike, dtype: StoredDtype, *, allow_nonfinite: bool = False
) -> Manifest:
  """Writes a converted model again with its parameters in another dtype, under the new folder's name.

  Args:
    path: a converted model.
    output: the folder to write; it appears only when complete.
    dtype: of the stored parameters: float32, bfloat16 or float16.
    allow_nonfinite: keeps NaN and infinity.

  Raises:
    UserError: `path` is no converted model or a damaged one, a parameter is not finite or beyond the dtype's range, or
      `output` is something else or the same folder.
  """
  manifest, output = read_manifest(path), pathlib.Path(output)
  if output.resolve() == pathlib.Path(path).resolve():
    raise UserError(f"{output}: is the input; choose another output")
  parts = [part for part in COMPONENTS if getattr(manifest.architecture, part) is not None]
  if manifest.architecture.unet is not None:
    parts.append(NULL_PROMPT)
  with ModelWriter(output) as writer:
    for part in parts:
      params = flat(load_params(path, manifest, [part]))  # the null prompt's is an array of its own
      stored = {
        name: as_stored(np.asarray(leaf), dtype, f"{path}: {name}", allow_nonfinite=allow_nonfinite)
        for name, leaf in params.items()
      }
      writer.write(part, stored if part == NULL_PROMPT else unflatten_dict(stored, sep="/")[part])
    manifest = dataclasses.replace(manifest, name=output.resolve().name, dtype=dtype)
    writer.commit(manifest)
  return manifest


def as_stored(value: np.ndarray, dtype: StoredDtype, name: str, *, allow_nonfinite: bool = False) -> np.ndarray:
  """A parameter in the dtype it is stored in: float32, bfloat16 or float16.

  Args:
    name: what messages call it.
    allow_nonfinite: keeps NaN and infinity that are there; what is finite must stay so even then.

  Raises:
    UserError: it has values that are not finite, or that the dtype cannot hold.
  """
  with np.errstate(over="ignore"):
    stored = np.ascontiguousarray(value, np.dtype(dtype))
  finite = np.isfinite(stored)
  if not finite.all():
    if (np.isfinite(value) & ~finite).any():
      raise UserError(f"{name} has values beyond the range of {dtype}; choose another --dtype")
    if not allow_nonfinite:
      raise UserError(
        f"{name} has {finite.size - finite.sum()} of {finite.size} values that are not finite (NaN or infinity): its "
        "results would be black; --allow-nonfinite takes it as it is"
      )
  return stored


def load_lpips(
  path: str | os.PathLike,
  compute: ComputeConfig = ComputeConfig(),
  *,
  sharding: jax.sharding.Sharding | None = None,
) -> tuple[lpips.LPIPS, Params]:
  """Loads a converted LPIPS network; `apply` (`models.parameters`) gives its distances.

  Args:
    compute: how the module computes.
    sharding: of every parameter; by default the first device.

  Returns:
    The module and its parameters, float32.

  Raises:
    UserError: the folder holds no LPIPS network, or a damaged one.
  """
  path = pathlib.Path(path).resolve()
  values = _read_json(path)
  if LPIPS_PART not in values:
    raise UserError(f"{path}: a StableSR model, not an LPIPS network")
  config = from_json(LPIPSManifest, values, str(path / MANIFEST)).lpips
  params = _load(path / LPIPS_PART, lpips.abstract_params(config), "float32", sharding)
  return lpips.LPIPS(config, compute), params


def _load(
  path: pathlib.Path,
  abstract: Params,
  dtype: str,
  sharding: jax.sharding.Sharding | None,
  *,
  partial: bool = False,
) -> Params:
  """The tree `abstract`, in shapes alone, from one Orbax checkpoint, which has no others unless `partial`."""
  sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  if partial and not abstract:  # Orbax takes no empty tree
    return {}
  if wrong := damage(path):
    raise UserError(f"{path}: cannot be loaded: {wrong}")
  target = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, np.dtype(dtype), sharding=sharding), abstract)
  context = ocp.Context()
  context.pytree.loading.partial_load = partial
  try:
    with context:
      loaded = ocp.load(str(path), target)
  except Exception as error:
    different = misfit(path, abstract, partial=partial)
    wrong = f"the weights do not fit {MANIFEST}: {different}" if different else reason(error)
    raise UserError(f"{path}: cannot be loaded: {wrong}") from error
  # Of a partial tree, what the file lacks comes back as it was asked for.
  missing = [name for name, leaf in flat(loaded).items() if isinstance(leaf, jax.ShapeDtypeStruct)]
  if missing:
    raise UserError(f"{path}: cannot be loaded: the weights do not fit {MANIFEST}: {missing[0]} is missing")
  return loaded

"""The converted format: a folder with `model.json` and one Orbax checkpoint for each part of the model."""

import dataclasses
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp
from pydantic import Field

from stablesr_jax.config import ComputeConfig, LPIPSConfig, ModelConfig, SamplingConfig
from stablesr_jax.errors import UserError, first_line
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


class ModelWriter:
  """Writes a model part by part into a temporary folder that `commit` puts in place, whole or not at all.

  A context manager: what was not committed when it is left is removed. Of several processes all make the same calls,
  and the first one writes.
  """

  def __init__(self, path: str | os.PathLike):
    """
    Raises:
      UserError: at `path` is something else than a converted model or an empty folder.
    """
    self.path = pathlib.Path(os.path.realpath(path))  # not `resolve`, which raises where a link leads to itself
    if (
      self.path.exists() and not (self.path / MANIFEST).is_file() and (self.path.is_file() or any(self.path.iterdir()))
    ):
      raise UserError(f"{path}: exists and is no converted model; it will not be replaced")
    self._partial = self.path.with_name(f".{self.path.name}.partial")
    self._writes = jax.process_index() == 0
    if self._writes:
      shutil.rmtree(self._partial, ignore_errors=True)
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
      replaced = self.path.with_name(f".{self.path.name}.replaced")
      shutil.rmtree(replaced, ignore_errors=True)
      if self.path.exists():
        self.path.rename(replaced)
      self._partial.rename(self.path)
      shutil.rmtree(replaced, ignore_errors=True)
    _wait_for_all("model_committed")


def quiet_orbax() -> None:
  """Keeps out of the log the traceback that each of Orbax's threads writes of an error that the caller gets anyway.

  From now on: threads may outlive the call that they fail in.
  """
  logging.getLogger("absl").addFilter(_is_news)  # once: it is the same function each time


def _is_news(record: logging.LogRecord) -> bool:
  return not (record.exc_info and "orbax" in pathlib.Path(record.pathname).parts)


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


def store_as(path: str | os.PathLike, output: str | os.PathLike, dtype: StoredDtype) -> Manifest:
  """Writes a converted model again with its parameters in another dtype, under the new folder's name.

  Args:
    path: a converted model.
    output: the folder to write; it appears only when complete.
    dtype: of the stored parameters: float32, bfloat16 or float16.

  Raises:
    UserError: `path` is no converted model or a damaged one, a parameter is beyond the dtype's range, or `output` is
      something else or the same folder.
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
      stored = {name: as_stored(np.asarray(leaf), dtype, f"{path}: {name}") for name, leaf in params.items()}
      writer.write(part, stored if part == NULL_PROMPT else unflatten_dict(stored, sep="/")[part])
    manifest = dataclasses.replace(manifest, name=output.resolve().name, dtype=dtype)
    writer.commit(manifest)
  return manifest


def as_stored(value: np.ndarray, dtype: StoredDtype, name: str) -> np.ndarray:
  """A parameter in the dtype it is stored in: float32, bfloat16 or float16.

  Args:
    name: what messages call it.

  Raises:
    UserError: it has values that the dtype cannot hold.
  """
  with np.errstate(over="ignore"):
    stored = np.ascontiguousarray(value, np.dtype(dtype))
  if not np.isfinite(stored).all():
    beyond = f"beyond the range of {dtype}" if np.isfinite(value).all() else "that are not finite"
    raise UserError(f"{name} has values {beyond}")
  return stored


def load_lpips(
  path: str | os.PathLike,
  compute: ComputeConfig = ComputeConfig(),
  *,
  sharding: jax.sharding.Sharding | None = None,
) -> tuple[lpips.LPIPS, Params]:
  """Loads a converted LPIPS network; `module.apply({"params": params}, a, b)` gives distances.

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
  target = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, np.dtype(dtype), sharding=sharding), abstract)
  context = ocp.Context()
  context.pytree.loading.partial_load = partial
  try:
    with context:
      loaded = ocp.load(str(path), target)
  except Exception as error:  # Orbax's errors are many and long; the first line says what is wrong, but for misfits.
    different = misfit(path, abstract, partial=partial)
    reason = f"the weights do not fit {MANIFEST}: {different}" if different else first_line(error)
    raise UserError(f"{path}: cannot be loaded: {reason}") from error
  # Of a partial tree, what the file lacks comes back as it was asked for.
  missing = [name for name, leaf in flat(loaded).items() if isinstance(leaf, jax.ShapeDtypeStruct)]
  if missing:
    raise UserError(f"{path}: cannot be loaded: the weights do not fit {MANIFEST}: {missing[0]} is missing")
  return loaded


def misfit(path: pathlib.Path, wanted: Any, *, partial: bool = False) -> str | None:
  """How the tree in an Orbax checkpoint first differs from one of arrays or their shapes.

  Args:
    partial: Whether the checkpoint may have more than is wanted.

  Returns:
    One line that names the leaf; None if they do not differ, or the checkpoint cannot be read.
  """
  try:
    stored = _shapes(ocp.metadata(str(path)).metadata)
  except Exception:  # The error of whoever asks says more.
    return None
  shapes = _shapes(wanted)
  for name, shape in shapes.items():
    if name not in stored:
      return f"{name} is missing"
    if stored[name] != shape:
      return f"{name} is of shape {stored[name]}, not {shape}"
  return None if partial else next((f"{name} is one too many" for name in stored if name not in shapes), None)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}

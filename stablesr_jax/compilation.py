"""How programs are compiled, and where they are kept from run to run."""

import functools
import math
import pathlib
import re
import sys
import tempfile
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import platformdirs

from stablesr_jax.config import Platform

# XLA's CPU backend hands matrix products, reductions and convolutions to a kernel library. Its convolutions are slower
# than XLA's own (twice, on the UNet's smaller scales), so it is given the others only.
# Its default order of operations keeps up to 2.4 GB of intermediate results in a denoising step, this one 0.1 GB; it is
# also faster, as fewer new pages are touched.
_CPU: dict[str, bool | str] = {
  "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
  "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
}


def compiler_options(platform: Platform | None) -> dict[str, bool | str]:
  """The options for `jax.jit(..., compiler_options=...)` of the large networks on a kind of device."""
  return dict(_CPU) if platform == "cpu" and _are_known() else {}


@functools.cache
def _are_known() -> bool:
  """Whether this jaxlib has the options: they are experimental and may go away."""
  try:
    jax.jit(lambda x: x).lower(jnp.zeros(())).compile(compiler_options=_CPU)
  except Exception:  # JAX's own error type for it is not public
    return False
  return True


def enable_cache(setting: str, warn: Callable[[str], None] = functools.partial(print, file=sys.stderr)) -> None:
  """Keeps compiled programs from run to run. Where that is not possible the program runs without.

  Args:
    setting: A folder; "auto" is one in the user's cache directory, "off" keeps nothing.
    warn: Is called once, with one line, if programs cannot be kept, now or later in the run.
  """
  if setting == "off":
    return
  try:
    folder = pathlib.Path(platformdirs.user_cache_dir("stablesr_jax")) / "xla" if setting == "auto" else setting
  except RuntimeError as error:  # this user has no home folder
    warn(f"no folder for the compile cache ({error}); everything is compiled anew, unless --compile-cache names one")
    return
  folder = pathlib.Path(folder)
  keep_from_seconds = 0.0  # Small programs too: there are dozens, and together they take seconds.
  try:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # who can write to it can have this user run programs
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    warn(f"compile cache {folder}: cannot be written ({error.strerror}); what it lacks is compiled anew in each run")
    if not folder.is_dir():
      return
    keep_from_seconds = math.inf  # what somebody else put there is of use all the same
  _warn_once_of_the_cache(folder, warn)
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", keep_from_seconds)


def _warn_once_of_the_cache(folder: pathlib.Path, warn: Callable[[str], None]) -> None:
  """Tells the first failure in reading or writing the cache; JAX tells one for each of many programs."""
  show = warnings.showwarning
  told = False

  def show_once(message, category, filename, lineno, file=None, line=None):
    nonlocal told
    parts = re.match(r"Error (reading|writing) persistent compilation cache entry for .*?: (.*)", str(message))
    if parts is None:
      show(message, category, filename, lineno, file, line)
    elif not told:
      told = True
      what = "read" if parts[1] == "reading" else "written"
      warn(f"compile cache {folder}: cannot be {what} ({parts[2]})")

  warnings.showwarning = show_once

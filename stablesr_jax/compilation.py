"""How programs are compiled, and where they are kept from run to run."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import platformdirs

# XLA's CPU backend hands matrix products, reductions and convolutions to a kernel library. Its convolutions are slower
# than XLA's own (twice, on the UNet's smaller scales), so it is given the others only.
# Its default order of operations keeps up to 2.4 GB of intermediate results in a denoising step, this one 0.1 GB; it is
# also faster, as fewer new pages are touched.
_CPU: dict[str, Any] = {
  "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
  "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
}


def compiler_options() -> dict[str, Any]:
  """Options for `jax.jit(..., compiler_options=...)` of the large networks on the default backend."""
  return dict(_CPU) if jax.default_backend() == "cpu" and _are_known() else {}


@functools.cache
def _are_known() -> bool:
  """Whether this jaxlib has the options: they are experimental and may go away."""
  try:
    jax.jit(lambda x: x).lower(jnp.zeros(())).compile(compiler_options=_CPU)
  except Exception:  # JAX's own error type for it is not public
    return False
  return True


def enable_cache(setting: str) -> None:
  """Keeps compiled programs from run to run.

  Args:
    setting: a folder; "auto" is one in the user's cache directory, "off" keeps nothing.
  """
  if setting == "off":
    return
  folder = pathlib.Path(platformdirs.user_cache_dir("stablesr_jax")) / "xla" if setting == "auto" else setting
  jax.config.update("jax_compilation_cache_dir", str(folder))
  # Small programs too: there are dozens, and together they take seconds.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

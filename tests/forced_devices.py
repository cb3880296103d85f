"""Programs that run on several CPU devices, in a process of their own: a process has as many as it began with."""

import os
import subprocess
import sys

import jax


def run(program: str, devices: int) -> str:
  """Runs Python code and returns what it printed, without blanks around it; fails if it ended with an error.

  What it compiles is kept for the time of the tests: a program that it runs and then looks at is compiled once.
  """
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
  environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  environment |= {
    "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
  }
  done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout.strip()

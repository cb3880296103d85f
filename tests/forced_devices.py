"""Programs that run on several CPU devices, in a process of their own: a process has as many as it began with."""

import os
import subprocess
import sys


def run(program: str, devices: int) -> None:
  """Runs Python code, which prints "same" if all it asserts holds."""
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
  environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
  assert done.stdout.strip() == "same", done.stderr[-2000:]

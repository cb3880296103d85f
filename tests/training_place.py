"""Where runs of train.py are tested, how they are started and killed, and what they left. Micro networks."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
from PIL import Image

from stablesr_jax.checkpoints.store import load_params, read_manifest
from stablesr_jax.cli import train
from stablesr_jax.models.components import COMPONENTS
from stablesr_jax.models.parameters import flat
from tests import micro
from tests.micro import photograph

ROOT = pathlib.Path(__file__).parents[1]
STOPPED = 75

CONFIG = """
from stablesr_jax.training.config import *
from tests.recipes import *

def get_config():
  return {}
"""


class Place:
  """A folder that train.py is run in. Its runs share what they compile."""

  def __init__(self, folder: pathlib.Path, compiled: pathlib.Path):
    self.folder, self.compiled = folder, compiled

  def start(
    self, config: str, workdir: str, *flags: object, devices: int = 1, optimize: bool = False
  ) -> subprocess.Popen:
    """A process that trains what the expression `config`, of names in `recipes`, says.

    Without `optimize` its programs are compiled quickly, but not as quickly as in this process: with no optimisation
    at all a step is half as fast, and one that accumulates, a loop, fifteen times slower. Runs that are to agree to
    the bit are all in processes of their own, or none.
    """
    command = [sys.executable, ROOT / "train.py", *self._arguments(config, workdir, *flags)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
    environment["XLA_FLAGS"] = "" if optimize else "--xla_backend_optimization_level=1"
    with (self.folder / workdir).with_suffix(".log").open("a") as log:
      return subprocess.Popen(list(map(str, command)), cwd=self.folder, env=environment, stdout=log, stderr=log)

  def run(self, config: str, workdir: str, *flags: object, **settings: Any) -> pathlib.Path:
    """The folder of a run that ended well: in this process, or with `settings` in one of its own."""
    if settings:
      self.wait(self.start(config, workdir, *flags, **settings), workdir, 0)
      return self.folder / workdir
    arguments = list(map(str, self._arguments(config, workdir, *flags)))
    with contextlib.chdir(self.folder), (self.folder / workdir).with_suffix(".log").open("a") as log:
      with contextlib.redirect_stderr(log):
        code = train.main(arguments)
    assert code == 0, self.log(workdir)[-3000:]
    return self.folder / workdir

  def wait(self, process: subprocess.Popen, workdir: str, code: int) -> None:
    try:
      found = process.wait(timeout=600)
    finally:
      process.kill()
    assert found == code, self.log(workdir)[-3000:]

  def log(self, workdir: str) -> str:
    return (self.folder / workdir).with_suffix(".log").read_text()

  def _arguments(self, config: str, workdir: str, *flags: object) -> list[object]:
    file = self.folder / f"{workdir.replace('/', '_')}.py"
    file.write_text(CONFIG.format(config))
    (self.folder / workdir).mkdir(parents=True, exist_ok=True)
    return ["--config", file, "--workdir", workdir, "--compile-cache", self.compiled, *flags]


def make_place(folder: pathlib.Path, compiled: pathlib.Path) -> Place:
  """With pictures, pairs of them and a prior."""
  for number in range(4):
    hr = Image.fromarray(np.roll(photograph(80, 96), 8 * number, axis=1))
    for name, image in (("hr", hr), ("lr", hr.resize((24, 20), Image.Resampling.BICUBIC))):
      (folder / "pictures" / name).mkdir(parents=True, exist_ok=True)
      image.save(folder / "pictures" / name / f"{number}.png")
  unet = dataclasses.replace(micro.UNET, conditioning="none")
  micro.write(folder / "models" / "prior", dataclasses.replace(micro.MODEL, unet=unet, time_aware_encoder=None))
  return Place(folder, compiled)


def free_port() -> int:
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def start_two(place: Place, config: str, workdir: str, *flags: object) -> list[subprocess.Popen]:
  together = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", 2]
  return [place.start(config, workdir, *flags, *together, "--process", i, devices=2) for i in range(2)]


def kill_when(process: subprocess.Popen, ready: Callable[[], bool], kind: signal.Signals) -> None:
  """Sends the signal as soon as it is time; the process must still run then."""
  deadline = time.monotonic() + 300
  while not ready():
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.002)
  process.send_signal(kind)


def at_step(folder: pathlib.Path, step: int) -> Callable[[], bool]:
  file = folder / "metrics.jsonl"
  return lambda: file.exists() and f'"step": {step},' in file.read_text()


def metrics(folder: pathlib.Path, name: str = "loss") -> dict[int, float]:
  """One of a run's numbers by step; each step has it once."""
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  found = [(line["step"], line[name]) for line in lines if name in line]
  assert len(dict(found)) == len(found)
  return dict(found)


def checkpoints(folder: pathlib.Path) -> list[int]:
  return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal())


def state_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """The last checkpoint's arrays by path."""
  state: Any = ocp.load(str((folder / "checkpoints" / str(checkpoints(folder)[-1])).resolve()))
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(state)}


def model_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """A model's parameters by path, "unet/conv_in/kernel" for instance."""
  manifest = read_manifest(folder)
  parts = [part for part in COMPONENTS if getattr(manifest.architecture, part) is not None]
  return {path: np.asarray(leaf) for path, leaf in flat(load_params(folder, manifest, parts)).items()}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
  return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)

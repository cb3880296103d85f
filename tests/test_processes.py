"""Two processes that restore one folder together."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from stablesr_jax.errors import UserError
from stablesr_jax.inference import processes
from stablesr_jax.inference.processes import Outcome, Place, find_place, together
from tests import micro
from tests.micro import photograph

ROOT = pathlib.Path(__file__).parents[1]
VARIABLES = ("SLURM_PROCID", "SLURM_NTASKS", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
  for name in VARIABLES:
    monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
  "variables, place",
  [
    ({}, Place(0, 1)),
    ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, Place(2, 4)),
    ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, Place(1, 2)),
    ({"TPU_WORKER_HOSTNAMES": "a,b,c", "TPU_WORKER_ID": "2"}, Place(2, 3)),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, Place(0, 1)),
  ],
)
def test_the_place_is_found_out(monkeypatch, variables, place):
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  assert find_place() == place
  assert find_place(8, 5) == Place(5, 8)


@pytest.mark.parametrize(
  "given, message",
  [((2, None), "give both or none"), ((0, 0), "processes 0"), ((2, 2), r"process 2: must be 0 to processes - 1 \(1\)")],
)
def test_wrong_places(given, message):
  with pytest.raises(UserError, match=message):
    find_place(*given)


def test_a_cluster_that_says_nonsense_is_one_line(monkeypatch):
  monkeypatch.setenv("SLURM_PROCID", "x")
  monkeypatch.setenv("SLURM_NTASKS", "2")
  with pytest.raises(UserError, match="give --processes and --process"):
    find_place()


def test_the_first_learns_of_the_others(tmp_path, monkeypatch):
  monkeypatch.setattr(processes, "_SECONDS_TO_START", 0.5)
  told = []
  with together(tmp_path, Place(0, 4)) as first:
    with together(tmp_path, Place(1, 4)) as second:
      second.finish(Outcome(3, 1))
      with pytest.raises(UserError, match="process 1 of 4 is running already"):
        with together(tmp_path, Place(1, 4)):
          pass
      with pytest.raises(UserError, match="a run of 4 processes is at work there, not of 2"):
        with together(tmp_path, Place(1, 2)):
          pass
    with together(tmp_path, Place(2, 4)):
      pass  # ends without a word
    assert first.outcomes(told.append) == [
      Outcome(3, 1),
      Outcome(fault="ended early"),
      Outcome(fault="was not started"),
    ]
  assert told == ["waiting for process 3 of 4"]
  assert not list(tmp_path.iterdir())


def test_what_an_earlier_run_left_is_not_taken_for_this_ones(tmp_path, monkeypatch):
  """Of an earlier run, and of one of another number of processes; all that were not started share one wait."""
  monkeypatch.setattr(processes, "_SECONDS_TO_START", 0.5)
  for place in (Place(1, 9), Place(2, 9), Place(3, 4)):
    with together(tmp_path, place) as earlier:
      earlier.finish(Outcome(5, 0))
  time.sleep(0.6)
  with together(tmp_path, Place(4, 8)) as recent:
    recent.finish(Outcome(5, 0))
  began = time.monotonic()
  with together(tmp_path, Place(0, 9)) as first:
    outcomes = first.outcomes(lambda message: None)
  assert outcomes == [Outcome(fault="was not started")] * 8 and time.monotonic() - began < 4
  assert not list(tmp_path.iterdir())


def test_one_that_still_runs_keeps_its_place_when_the_first_is_stopped(tmp_path):
  with together(tmp_path, Place(1, 2)):
    with pytest.raises(KeyboardInterrupt):
      with together(tmp_path, Place(0, 2)):
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="is running already"):
      with together(tmp_path, Place(1, 2)):
        pass


PROGRAM = """
import sys, time
from stablesr_jax import StableSR
from stablesr_jax.cli import infer
restore = StableSR.upscale_batch
def slowly(*args, **options):
  time.sleep({pause})
  return restore(*args, **options)
StableSR.upscale_batch = slowly
sys.exit(infer.main(sys.argv[1:]))
"""


@pytest.mark.full  # eight programs one after the other
def test_two_processes_restore_a_folder_and_one_that_is_killed_loses_only_its_own(tmp_path, compile_cache):
  model = micro.write(tmp_path / "model")
  for number in range(20):
    (tmp_path / "in" / str(number % 2)).mkdir(parents=True, exist_ok=True)
    Image.fromarray(photograph(16, 16)).save(tmp_path / "in" / str(number % 2) / f"{number:02}.png")

  def start(process: int, output: str, pause: float = 0.0) -> subprocess.Popen:
    arguments = ["--input", tmp_path / "in", "--output", tmp_path / output, "--model", model]
    arguments += ["--compile-cache", compile_cache, "--processes", 2, "--process", process]
    command = [sys.executable, "-c", PROGRAM.format(pause=pause), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

  def finish(process: subprocess.Popen) -> tuple[int, list[str], list[str]]:
    """Its exit code, the results' names, and what it told in the end."""
    out, err = process.communicate(timeout=300)
    told = [line for line in err.splitlines() if line.startswith("infer.py: ")]
    assert "restores its own part of the input" in told.pop(0)
    return process.returncode, out.splitlines(), [line for line in told if "waiting for process 1 of 2" not in line]

  def there(output: str) -> list[str]:
    return sorted(path.name for path in (tmp_path / output).rglob("*.png"))

  everything = [f"{number:02}.png" for number in range(20)]
  both = [start(process, "out") for process in (0, 1)]
  (code, names, told), (other_code, other_names, other_told) = map(finish, both)
  assert code == other_code == 0, (told, other_told)
  assert len(names) == len(other_names) == 10 and not set(names) & set(other_names)
  assert told == ["infer.py: 2 of 2 processes: 20 pictures restored, 0 could not be"] and not other_told
  assert there("out") == everything
  assert not (tmp_path / "out" / ".stablesr_processes").exists()

  first, second = start(0, "again"), start(1, "again", pause=1.0)
  deadline = time.monotonic() + 200
  while not any(int(pathlib.Path(name).stem) % 4 in (1, 2) for name in there("again")) and time.monotonic() < deadline:
    if len(there("again")) > 12:
      break
    time.sleep(0.05)
  second.send_signal(signal.SIGKILL)
  second.communicate()
  code, names, told = finish(first)
  assert code == 2 and len(names) == 10 and set(name.rpartition("/")[2] for name in names) <= set(there("again"))
  assert told[0] == "infer.py: 1 of 2 processes: 10 pictures restored, 0 could not be"
  assert told[1] == "infer.py: error: process 1 ended early; run the same again for what is left"
  left = 20 - len(there("again"))
  assert left > 0
  both = [start(process, "again") for process in (0, 1)]
  (code, names, told), (other_code, other_names, _) = map(finish, both)
  assert code == other_code == 0 and len([name for name in names + other_names if name.endswith(".png")]) == left
  assert told == [f"infer.py: 2 of 2 processes: {left} pictures restored, 0 could not be"]
  assert there("again") == everything

"""Measuring a new device: what is planned, that a broken section is one section, and the quickest with tiny sizes."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from benchmarks.accelerator import __main__ as accelerator
from benchmarks.accelerator.plan import SECTIONS, make_plan
from benchmarks.accelerator.trace import operations

ROOT = pathlib.Path(__file__).parents[1]

# Stands in for a section's process: says what it was told; `peak` then dies, and `trace` hangs with a child of its own.
STAND_IN = """
import json, os, subprocess, sys
name, options = sys.argv[1], sys.argv[2:]
print(json.dumps({"section": name, "what": "JAX, bfloat16 product", "tflops": 700.0, "options": options}), flush=True)
print("no JSON")
if name == "peak":
  os.abort()
if name == "trace":
  subprocess.run([sys.executable, "-c", "import time; time.sleep(60)"])
"""


@pytest.fixture
def stand_in(monkeypatch):
  monkeypatch.setattr(
    accelerator, "command", lambda job, options: [sys.executable, "-c", STAND_IN, job.section.name, *options]
  )


def rows(text: str) -> list[dict]:
  return [json.loads(line) for line in text.splitlines()]


def test_the_plan_is_told_without_jax():
  program = (
    "import sys; from benchmarks.accelerator.__main__ import main; main(['--plan']); assert 'jax' not in sys.modules"
  )
  done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert all(f"\n  {section.name} " in done.stdout for section in SECTIONS)
  assert "step 8\n" in done.stdout and "at most 480 s in all" in done.stdout


def test_timings_come_before_compiling():
  ample, short = (make_plan(["step", "peak"], compile=None, budget=budget, tiny=False) for budget in (480, 80))
  expected = sum(section.seconds for section in SECTIONS if section.name in ("step", "peak"))
  assert ample.compile_seconds == 480 - expected
  assert [job.name for job in ample.compiling] == ["step 8", "step 1", "step 16", "step 4", "step 32"]
  assert [job.name for job in ample.timing] == ["peak", "step"]
  assert not short.compiling and short.timing == ample.timing


def test_each_pass_alone():
  only = make_plan(["step"], compile=True, budget=60, tiny=False)
  assert only.compiling and not only.timing and only.compile_seconds == 60
  without = make_plan(["step"], compile=False, budget=480, tiny=False)
  assert not without.compiling and [job.name for job in without.timing] == ["step"]


def test_a_section_that_crashes_is_one_section(stand_in, tmp_path, capsys):
  arguments = ["--sections", "peak", "step", "--no-compile", "--output", str(tmp_path)]
  assert accelerator.main(arguments) == 1
  told = capsys.readouterr()
  found = rows(told.out)
  assert found == rows((tmp_path / "rows.jsonl").read_text())
  ends = {row["section"]: row["status"] for row in found if row["what"] == "ended"}
  assert ends["peak"] < 0 and ends["step"] == 0
  [options] = [row["options"] for row in found if row["section"] == "step" and "options" in row]
  assert options[options.index("--peak") + 1] == "700.0"
  assert "no JSON" in told.err and (tmp_path / "logs" / "step.txt").exists()


def test_a_section_that_hangs_is_ended(stand_in, monkeypatch, capsys):
  monkeypatch.setattr(accelerator, "LEAST_SECONDS", 0.5)
  [job] = make_plan(["trace"], compile=False, budget=100, tiny=True).timing
  runner, began = accelerator.Runner(None, 100, []), time.monotonic()
  runner.run(job, 2)
  assert time.monotonic() - began < 20 and runner.failed
  assert rows(capsys.readouterr().out)[-1]["status"] == "time limit"


def test_sections_without_time_are_named(stand_in, capsys):
  accelerator.main(["--sections", "step", "--no-compile", "--budget", "5"])
  [row] = rows(capsys.readouterr().out)
  assert row["what"] == "left out" and row["section"] == "step"


def test_a_trace_by_operations():
  names = [
    {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "/device:GPU:0"}},
    {"ph": "M", "name": "thread_name", "pid": 1, "tid": 1, "args": {"name": "Stream #1(Compute)"}},
    {"ph": "M", "name": "thread_name", "pid": 1, "tid": 2, "args": {"name": "XLA Ops"}},
  ]
  span = lambda name, tid, dur: {"ph": "X", "name": name, "pid": 1, "tid": tid, "dur": dur}
  found = operations([*names, span("a", 1, 1000), span("b", 1, 5000), span("a", 1, 3000), span("b", 2, 9000)], 2)
  assert [(o.name, o.ms, o.calls) for o in found] == [("b", 2.5, 0.5), ("a", 2.0, 1.0)]
  assert operations(names, 2) == []


@pytest.mark.training
def test_the_quickest_sections(compile_cache, tmp_path):
  command = [sys.executable, "-m", "benchmarks.accelerator", "--tiny", "--no-compile", "--output", str(tmp_path)]
  command += ["--sections", "step", "guidance", "degradation", "--compile-cache", str(compile_cache)]
  done = subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  found = rows(done.stdout)
  assert not [row for row in found if "failed" in row], found
  by_section = {row["section"]: row for row in found if row["what"] == row["section"]}
  assert all(row["finite"] for row in by_section.values()) and len(by_section) == 3
  assert by_section["step"]["ms"] > 0 and by_section["degradation"]["images_a_s"] > 0
  assert by_section["guidance"]["difference"] < 0.1

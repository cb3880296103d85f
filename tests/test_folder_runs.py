"""Folders that are gone on with: what counts as done, whose a name is, kills at any moment, two runs at once."""

import json
import os
import pathlib
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from stablesr_jax.errors import UserError
from stablesr_jax.files import claim, temporary_name
from stablesr_jax.inference import manifest
from stablesr_jax.inference.jobs import Job, Summary, restore_folder, run_jobs
from stablesr_jax.inference.manifest import FILE, Manifest, Record, Results, Stamp, clean_up, stamp
from stablesr_jax.inference.plan import find_jobs, make_plan
from tests.stub import Stub

ROOT = pathlib.Path(__file__).parents[1]


def picture(path: pathlib.Path, value: int = 0) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(path)
  return path


@pytest.fixture
def inputs(tmp_path):
  for number, name in enumerate("abc"):
    picture(tmp_path / "in" / f"{name}.png", 10 * number)
  return tmp_path / "in"


def restore(source, target, **options) -> Summary:
  return restore_folder(Stub(), source, target, scale=options.pop("scale", 2), **options)


def names(jobs) -> list[str]:
  return [job.target.name for job in jobs]


def pngs(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


# What is done


def test_a_second_run_has_nothing_to_do(inputs, tmp_path):
  assert names(restore(inputs, tmp_path / "out").restored) == ["a.png", "b.png", "c.png"]
  again = restore(inputs, tmp_path / "out")
  assert not again.restored and again.current == 3 and str(again) == "0 restored, 3 as before"
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [FILE, "a.png", "b.png", "c.png"]


def test_other_settings_and_another_input_are_restored_again(inputs, tmp_path):
  restore(inputs, tmp_path / "out")
  picture(inputs / "a.png", 200)
  summary = restore(inputs, tmp_path / "out")
  assert names(summary.restored) == ["a.png"] and summary.current == 2
  (tmp_path / "out" / "b.png").unlink()
  assert names(restore(inputs, tmp_path / "out", seed=7).restored) == ["a.png", "b.png", "c.png"]
  assert restore(inputs, tmp_path / "out", seed=7).current == 3


def test_a_touched_or_moved_folder_is_done(inputs, tmp_path):
  restore(inputs, tmp_path / "out")
  os.utime(inputs / "a.png")
  os.utime(tmp_path / "out" / "b.png")
  assert restore(inputs, tmp_path / "out").current == 3
  inputs.rename(tmp_path / "moved")
  assert restore(tmp_path / "moved", tmp_path / "out").current == 3


def test_a_file_of_somebody_elses_is_not_replaced(inputs, tmp_path):
  restore(inputs, tmp_path / "out")
  (tmp_path / "out" / "a.png").write_bytes(b"")
  picture(tmp_path / "out" / "b.png", 99)  # the user's own hand
  summary = restore(inputs, tmp_path / "out")
  assert not summary.restored and summary.current == 1
  empty, changed = (str(error) for _, error in summary.failed)
  assert "is there and is empty (--existing redo replaces it" in empty
  assert "is there and was changed since it was restored" in changed
  assert (tmp_path / "out" / "a.png").read_bytes() == b""
  assert restore(inputs, tmp_path / "out", existing="skip").left == {
    "is empty": 1,
    "was changed since it was restored": 1,
  }
  with pytest.raises(UserError, match="a.png: is there, is empty, and 1 more"):
    restore(inputs, tmp_path / "out", existing="error")
  assert len(restore(inputs, tmp_path / "out", existing="redo").restored) == 3
  assert restore(inputs, tmp_path / "out", existing="error").current == 3


def test_auto_precision_takes_either():
  made = {"precision": "bfloat16", "seed": 1}
  assert not manifest.differences(made, {"precision": "auto", "seed": 1})
  assert manifest.differences(made, {"precision": "float32", "seed": 2}) == [
    "precision 'bfloat16', now 'float32'",
    "seed 1, now 2",
  ]


# Names


def test_a_name_stays_whatever_comes_and_goes(inputs, tmp_path):
  restore(inputs, tmp_path / "out")
  before = pngs(tmp_path / "out")
  picture(inputs / "a.jpg", 90)
  assert names(restore(inputs, tmp_path / "out").restored) == ["a.jpg.png"]
  assert before.items() <= pngs(tmp_path / "out").items()
  (inputs / "a.jpg").unlink()
  assert restore(inputs, tmp_path / "out").current == 3
  picture(inputs / "a.gif", 50)
  picture(inputs / "a.jpg", 90)
  assert names(restore(inputs, tmp_path / "out").restored) == ["a.gif.png"]
  (inputs / "a.png").unlink()
  assert restore(inputs, tmp_path / "out").current == 4  # a.gif is still a.gif.png


def test_names_that_differ_in_case_alone_are_two(tmp_path):
  picture(tmp_path / "in" / "A.jpg")
  picture(tmp_path / "in" / "a.png")
  assert names(restore(tmp_path / "in", tmp_path / "out").restored) == ["A.png", "a.png.png"]


def test_two_folders_into_one_keep_both_results(tmp_path):
  picture(tmp_path / "one" / "a.png", 1)
  picture(tmp_path / "two" / "a.png", 2)
  restore(tmp_path / "one", tmp_path / "out")
  assert names(restore(tmp_path / "two", tmp_path / "out").restored) == ["a.png.png"]
  assert restore(tmp_path / "one", tmp_path / "out").current == restore(tmp_path / "two", tmp_path / "out").current == 1


def test_a_name_that_is_too_long_is_told_before_the_work(tmp_path):
  picture(tmp_path / "in" / f"{'n' * 250}.bmp")
  picture(tmp_path / "in" / f"{'n' * 250}.png")
  found = find_jobs(tmp_path / "in", tmp_path / "out")
  assert len(found.jobs) == 1
  [(_, error)] = found.refused
  assert str(error) == "its result's name would have 258 bytes, of which the file system takes 255"


# What is read


def test_results_are_no_inputs(inputs, tmp_path):
  restore(inputs, inputs / "sub")
  picture(inputs / "sub" / "photo.png")
  summary = restore(inputs, tmp_path / "out")
  assert sorted(names(summary.restored)) == ["a.png", "b.png", "c.png", "photo.png"]
  assert summary.left == {"results of earlier runs": 3}
  (inputs / "sub" / "photo.png").unlink()
  with pytest.raises(UserError, match=r"has no pictures \(3 results of earlier runs\)"):
    find_jobs(inputs / "sub", tmp_path / "new")


def test_each_folder_is_read_once(inputs, tmp_path):
  picture(tmp_path / "album" / "x.png")
  (tmp_path / "album" / "back").symlink_to(inputs)
  (inputs / "a_link").symlink_to(tmp_path / "album")
  (inputs / "b_link").symlink_to(tmp_path / "album")
  (inputs / "up").symlink_to(tmp_path)
  (inputs / "notes.txt").touch()
  (inputs / "noext").touch()
  (inputs / ".hidden.png").touch()
  found = find_jobs(inputs, tmp_path / "out")
  assert [str(job.target.relative_to(tmp_path / "out")) for job in found.jobs] == [
    "a.png",
    "a_link/x.png",
    "b.png",
    "c.png",
  ]
  assert found.passed == {
    ".txt": 1,
    "without suffix": 1,
    "hidden": 1,
    "linked folders that are read by another name": 2,
    "links to folders above": 1,
  }


def test_a_folder_that_cannot_be_read_is_told(inputs, tmp_path, monkeypatch):
  (inputs / "secret").mkdir()
  scan = os.scandir

  def refuse(path):
    if pathlib.Path(path).name == "secret":
      raise PermissionError(13, "Permission denied")
    return scan(path)

  monkeypatch.setattr(os, "scandir", refuse)
  found = find_jobs(inputs, tmp_path / "out")
  assert len(found.jobs) == 3 and [str(error) for error in found.unread] == [
    f"{inputs / 'secret'}: cannot be read (Permission denied)"
  ]


# The manifest


def record(folder: pathlib.Path, result: str, content: bytes) -> Record:
  path = folder / temporary_name(result)
  path.write_bytes(content)
  return Record(result, stamp(path), "../in/a.png", Stamp(1, 2, "x"), {"seed": 1})


def test_a_torn_line_is_passed_over(tmp_path):
  first = Manifest(tmp_path)
  first.add(record(tmp_path, "a.png", b"a"))
  with (tmp_path / FILE).open("ab") as file:
    file.write(b'{"result": "b.png", "outp')  # killed here
  second = Manifest(tmp_path)
  second.add(record(tmp_path, "c.png", b"c"))
  first.refresh()
  assert [record.result for record in first] == [record.result for record in second] == ["a.png", "c.png"]
  (tmp_path / FILE).write_bytes(b'\x00\xff\n[]\n{"result": 1}\n5\n{"digest": 1}\n' + (tmp_path / FILE).read_bytes())
  assert [record.result for record in Manifest(tmp_path)] == ["a.png", "c.png"]


def test_what_was_recorded_gets_its_name_and_the_rest_is_removed(tmp_path):
  """A run that was killed between a record and its result's name; one that was killed before."""
  known = Manifest(tmp_path)
  known.add(record(tmp_path, "a.png", b"whole"))
  (tmp_path / temporary_name("b.png")).write_bytes(b"half")
  alive = claim(tmp_path / "c.png")
  assert alive is not None and claim(tmp_path / "c.png") is None
  clean_up(tmp_path)
  assert (tmp_path / "a.png").read_bytes() == b"whole" and known.matching("a.png")
  assert sorted(path.name for path in tmp_path.iterdir()) == [alive.temporary.name, FILE, "a.png"]
  alive.drop()


def test_a_picture_that_another_run_has_in_work_is_left_out(inputs, tmp_path):
  (tmp_path / "out").mkdir()
  theirs = claim(tmp_path / "out" / "b.png")
  assert theirs is not None
  summary = restore(inputs, tmp_path / "out")
  assert names(summary.restored) == ["a.png", "c.png"] and names(summary.claimed) == ["b.png"]
  assert str(summary) == "2 restored; left out: 1 in work by another run"
  theirs.drop()
  assert names(restore(inputs, tmp_path / "out").restored) == ["b.png"]


def test_what_another_run_has_restored_meanwhile_is_not_restored_again(inputs, tmp_path):
  results = Results({"seed": 1, "precision": "float32"})
  plan = make_plan(find_jobs(inputs, tmp_path / "out"), results, "update")
  assert len(plan.jobs) == 3
  run_jobs(Stub(), plan.jobs[:2], scale=2, results=Results(results.wanted))
  summary = run_jobs(Stub(), plan.jobs, scale=2, results=results)
  assert names(summary.restored) == ["c.png"] and summary.current == 2


def test_a_file_that_comes_during_the_run_is_not_replaced(inputs, tmp_path):
  results = Results({"seed": 1, "precision": "float32"})
  plan = make_plan(find_jobs(inputs, tmp_path / "out"), results, "update")
  picture(tmp_path / "out" / "b.png", 3)
  summary = run_jobs(Stub(), plan.jobs, scale=2, results=results)
  [(job, error)] = summary.failed
  assert job.target.name == "b.png" and "was not made by this program" in str(error)


def test_without_results_nothing_is_noted(inputs, tmp_path):
  assert run_jobs(Stub(), [Job(inputs / "a.png", tmp_path / "x.png", "a.png")], scale=2).restored
  assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "x.png"]


# Kills


PROGRAM = """
import sys, time
from stablesr_jax.inference.jobs import restore_folder
from tests.stub import Stub

class Slow(Stub):
  def upscale_batch(self, images, **options):
    time.sleep(0.02)
    return super().upscale_batch(images, **options)

print("ready", flush=True)
print(restore_folder(Slow(), sys.argv[1], sys.argv[2], scale=2), flush=True)
"""


def start(source: pathlib.Path, target: pathlib.Path) -> subprocess.Popen:
  """A run in a process of its own, at the moment when it begins."""
  command = [sys.executable, "-c", PROGRAM, str(source), str(target)]
  process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
  assert process.stdout is not None and process.stdout.readline() == "ready\n"
  return process


@pytest.mark.parametrize("runs", [1, 2])
def test_killed_at_any_moment_a_run_goes_on_and_does_nothing_twice(tmp_path, runs):
  for number in range(12):
    picture(tmp_path / "in" / f"{number:02}.png", number)
  restore(tmp_path / "in", tmp_path / "whole")
  rng, out = random.Random(runs), tmp_path / "out"
  for _ in range(4):
    processes = [start(tmp_path / "in", out) for _ in range(runs)]
    time.sleep(rng.uniform(0, 0.12))
    for process in processes:
      process.kill()
      process.communicate()
    for name, content in pngs(out).items():
      assert content == (tmp_path / "whole" / name).read_bytes()
  processes = [start(tmp_path / "in", out) for _ in range(runs)]
  for process in processes:
    process.communicate(timeout=60)
    assert process.returncode == 0
  assert pngs(out) == pngs(tmp_path / "whole")
  assert sorted(path.name for path in out.iterdir()) == [FILE, *pngs(out)]
  lines = [json.loads(line) for line in (out / FILE).read_text().splitlines() if line.endswith("}")]
  recorded = [line["result"] for line in lines if "result" in line]
  assert sorted(recorded) == list(pngs(out))

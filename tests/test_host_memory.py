"""What is free in the machine's memory, by control groups of both versions, and how sizes are written."""

import math

import pytest

from stablesr_jax import host_memory
from stablesr_jax.errors import UserError


def write(folder, **files):
  folder.mkdir(parents=True, exist_ok=True)
  for name, text in files.items():
    (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_the_narrowest_of_nested_groups_counts(tmp_path):
  (tmp_path / "membership").write_text("0::/outer/inner\n")
  stat = "anon 50\ninactive_file 20\nactive_file 10"
  write(tmp_path / "outer", memory__max=1000, memory__current=900, memory__stat=stat)
  write(tmp_path / "outer/inner", memory__max="max", memory__current=100, memory__stat=stat)
  assert host_memory.control_group_room(tmp_path / "membership", tmp_path) == 1000 - (900 - 30)
  write(tmp_path / "outer/inner", memory__max="150", memory__current=100, memory__stat=stat)
  assert host_memory.control_group_room(tmp_path / "membership", tmp_path) == 150 - (100 - 30)


def test_groups_of_the_first_version(tmp_path):
  (tmp_path / "membership").write_text("9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/\n")
  # A container sees its group at the mount alone.
  files = {"memory__limit_in_bytes": 500, "memory__usage_in_bytes": 300, "memory__stat": "total_inactive_file 100"}
  write(tmp_path / "memory", **files)
  assert host_memory.control_group_room(tmp_path / "membership", tmp_path) == 300


def test_without_limits_the_system_says_what_is_free(tmp_path):
  assert host_memory.control_group_room(tmp_path / "none") == math.inf
  (tmp_path / "membership").write_text("0::/\n")
  assert host_memory.control_group_room(tmp_path / "membership", tmp_path) == math.inf
  assert 0 < host_memory.resident() and 0 <= host_memory.available() < 2**60


@pytest.mark.parametrize(
  "text, size",
  [("8G", 8 * 2**30), ("500M", 500 * 2**20), ("1.5 GiB", 3 * 2**29), ("4096", 4096), ("2gb", 2**31), ("1t", 2**40)],
)
def test_sizes(text, size):
  assert host_memory.parse_size(text, "max-memory") == size


@pytest.mark.parametrize("text", ["", "0", "0G", "much", "-1G", "1e9", "8 GG", "inf", "٣G", "9" * 5000])
def test_what_is_no_size(text):
  with pytest.raises(UserError, match=r"^max-memory .*: must be a size such as 8G or 500M$"):
    host_memory.parse_size(text, "max-memory")


@pytest.mark.parametrize("size, text", [(1, "1M"), (500 * 2**20, "500M"), (2**30, "1G"), (2**30 + 1, "1.1G")])
def test_sizes_are_told_rounded_up(size, text):
  assert host_memory.format_size(size) == text
  assert host_memory.parse_size(text, "") >= size

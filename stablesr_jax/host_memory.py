"""The machine's memory: what is free, what this process holds, and sizes as people write them."""

import math
import pathlib
import re

import psutil

from stablesr_jax.errors import UserError
from stablesr_jax.settings import shorten

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_size(text: str, name: str) -> int:
  """The bytes that "8G", "500M" or "1.5GiB" stand for; a thousand is 1024.

  Raises:
    UserError: It is no size; the message calls it `name`.
  """
  found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) ?([kmgt]?)(?:i?b)?", text.strip().lower())
  if found is None or float(found[1]) == 0:
    raise UserError(f"{name} {shorten(text)}: must be a size such as 8G or 500M")
  return int(float(found[1]) * _UNITS[found[2]])


def format_size(size: float) -> str:
  """A number of bytes as a person reads it, such as "7.5G"; rounded up, so that it can be given as a bound."""
  if size < 1000 * 2**20:
    return f"{math.ceil(size / 2**20)}M"
  return f"{math.ceil(size / 2**30 * 10) / 10:g}G"


def resident() -> int:
  """The bytes of this process that are in memory."""
  return psutil.Process().memory_info().rss


def available() -> float:
  """The bytes that can still be taken: what the system says, or less where this process's control group has less."""
  return min(psutil.virtual_memory().available, control_group_room())


def control_group_room(
  membership: pathlib.Path = pathlib.Path("/proc/self/cgroup"), mount: pathlib.Path = pathlib.Path("/sys/fs/cgroup")
) -> float:
  """What the control groups of this process, of both versions, leave below their limits, in bytes.

  A container sees its own group at the mount, whatever path it is told. Infinite where there is no limit.
  """
  try:
    lines = membership.read_text().splitlines()
  except OSError:
    return math.inf  # not Linux
  room = math.inf
  for line in lines:
    _, controllers, path = line.split(":", 2)
    if controllers == "":
      root, names, prefix = mount, ("memory.max", "memory.current"), ""
    elif "memory" in controllers.split(","):
      root, names, prefix = mount / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_"
    else:
      continue
    group = root / path.lstrip("/")
    while True:
      room = min(room, _room(group, *names, prefix))
      if group == root or root not in group.parents:
        break
      group = group.parent
  return room


def _room(group: pathlib.Path, limit: str, usage: str, prefix: str) -> float:
  try:
    most = (group / limit).read_text().strip()
    if most == "max":
      return math.inf
    used = int((group / usage).read_text())
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    cache = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))  # given back when needed
    return max(int(most) - max(used - cache, 0), 0)
  except (OSError, ValueError):
    return math.inf

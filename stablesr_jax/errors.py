"""The one error for what a person can mend, and what libraries' errors say."""

import re


class UserError(ValueError):
  """Something in a file, a folder, a setting or the surroundings is wrong, and the message says in one line what.

  The command lines show the message alone and end with exit code 2. Every other exception is a bug and keeps its
  traceback.
  """


def first_line(error: BaseException) -> str:
  """The first line of an error's message, or its type's name where it has none: libraries write whole pages."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


def system_errno(error: BaseException) -> int | None:
  """The system's number for an error (`errno`), or None if the system refused nothing.

  TensorStore, which writes models and checkpoints, has the number in the text of a ValueError.
  """
  if isinstance(error, OSError):
    return error.errno
  code = re.search(r"\[os_error_code='(\d+)'\]", str(error))
  return int(code[1]) if code else None


def is_out_of_memory(error: BaseException) -> bool:
  """Whether an error says that there is no memory left, on the host or on a device."""
  # JAX's own class for it, a RuntimeError, is not imported here: `--help` should answer at once.
  return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error))

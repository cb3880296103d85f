"""The one error for what a person can mend."""


class UserError(ValueError):
  """Something in a file, a folder, a setting or the surroundings is wrong, and the message says in one line what.

  The command lines show the message alone and end with exit code 2. Every other exception is a bug and keeps its
  traceback.
  """


def first_line(error: BaseException) -> str:
  """The first line of an error's message, or its type's name where it has none: libraries write whole pages."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]

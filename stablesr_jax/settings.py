"""Settings that are checked where they are made, and their JSON.

A settings class is a frozen standard dataclass (`dataclasses.replace`, `fields` and tyro know it) that pydantic checks:
every value has exactly its field's type and is within its bounds, whether it comes from Python, a command line or a
file. What is wrong raises `UserError`, one line that names the field.
"""

import dataclasses
import functools
import json
import pathlib
import re
import typing
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from stablesr_jax.errors import UserError, first_line

T = TypeVar("T")

Count = Annotated[int, Field(ge=1)]
"""At least 1."""
Natural = Annotated[int, Field(ge=0)]
"""At least 0."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What JAX and NumPy both take as a seed."""
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
"""A probability, or a weight of 0 to 1."""
Name = Annotated[str, Field(min_length=1)]
"""A string that is not empty."""

_SHOWN = 120  # characters

# strict: True is no integer, "1" is none, and 1.0 is none either; an integer is taken for a float.
_CHECKS = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@typing.dataclass_transform(frozen_default=True)
def settings(cls: type[T]) -> type[T]:
  """Makes a class a frozen dataclass whose values are checked when one is made.

  Bounds are written as `Annotated` types, where an `AfterValidator` raises UserError with what the value must be. Rules
  between fields belong into `__post_init__`, as calls of `require`.

  Raises:
    UserError: (of the class that is made) a value is missing, unknown, of another type or out of bounds; the message
      names its field as the command line does.
  """
  made: Any = pydantic.dataclasses.dataclass(frozen=True, config=_CHECKS)(cls)
  init = made.__init__

  @functools.wraps(init)
  def checked(self: Any, *args: Any, **kwargs: Any) -> None:
    try:
      init(self, *args, **kwargs)
    except ValidationError as error:
      name, text = _explain(made, error)
      raise UserError(f"{_as_flag(name)}{text}".lstrip()) from error

  made.__init__ = checked
  return made


class _BrokenRule(UserError):
  """A rule between fields does not hold. Its parts are kept, for a place in a larger object to be put before them."""

  def __init__(self, field: str, value: object, wanted: str):
    super().__init__(f"{_as_flag(field)}{_said(value, wanted)}")
    self.field, self.value, self.wanted = field, value, wanted


def require(ok: bool, field: str, value: object, wanted: str) -> None:
  """Checks a rule between fields, in `__post_init__` or where settings meet.

  Args:
    ok: whether the rule holds.
    field: the field to name, dotted where it is a nested one.
    value: its value.
    wanted: what it must be.

  Raises:
    UserError: it does not hold: "FIELD VALUE: WANTED".
  """
  if not ok:
    raise _BrokenRule(field, value, wanted)


def within(least: float, most: float = float("inf")) -> AfterValidator:
  """The bounds of a pair (low, high), both ends included, for its `Annotated` type."""

  def check(pair: tuple[float, float]) -> tuple[float, float]:
    if not least <= pair[0] <= pair[1] <= most:
      limits = f"at least {least}" if most == float("inf") else f"within {least} to {most}"
      raise UserError(f"must be (low, high), {limits}")
    return pair

  return AfterValidator(check)


def to_json(value: Any) -> dict[str, Any]:
  """Settings as plain JSON values (tuples are left for `json` to write as lists)."""
  return dataclasses.asdict(value)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The JSON object in a file.

  Raises:
    UserError: it holds none, or a key twice in one object; one line that names the file.
    OSError: it cannot be read.
  """
  try:
    values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once_each)
  except UserError as error:
    raise UserError(f"{path}: {error}") from error
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path}: not valid JSON ({first_line(error)})") from error
  if not isinstance(values, dict):
    raise UserError(f"{path}: expected an object, found {type(values).__name__}")
  return values


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """A JSON object's keys and values; of a key that is there twice the last would win in silence."""
  values = dict[str, Any]()
  for key, value in pairs:
    if key in values:
      raise UserError(f"{key}: is given twice")
    values[key] = value
  return values


def from_json(cls: type[T], values: object, where: str) -> T:
  """The settings class `cls` from plain JSON values; fields that are left out keep their defaults.

  Args:
    cls: a settings class.
    values: what `read_json` returned, or a part of it.
    where: the file that they are from, for messages.

  Raises:
    UserError: a required key is missing, a key is unknown, or a value does not fit its field; the message names the
      file and the key.
  """
  try:
    # As text again: pydantic's JSON mode alone takes lists for tuples and objects for dataclasses, and is strict.
    return TypeAdapter(cls).validate_json(json.dumps(values))
  except RecursionError as error:
    raise UserError(f"{where}: nested too deep") from error
  except ValidationError as error:
    raise UserError(f"{where}: {''.join(_explain(cls, error)).lstrip()}") from error


def _explain(cls: Any, errors: ValidationError) -> tuple[str, str]:
  """The first of pydantic's errors: the dotted name of a field, and " VALUE: what it must be"."""
  error = errors.errors(include_url=False)[0]
  path, value, context = list(error["loc"]), error["input"], error.get("ctx", {})
  wanted = re.sub("^(Input|Tuple|String) should", "must", error["msg"]).replace(" after validation", "")
  cause = context.get("error")
  names = [field.name for field in dataclasses.fields(cls)]
  if path and isinstance(path[0], int):  # an argument by its place
    path[0] = names[path[0]] if path[0] < len(names) else str(path[0])
  match error["type"]:
    case "missing" if isinstance(path[-1], int):
      *path, _ = path
      wanted = "has too few values"
    case "missing":
      return _name(path), ": is missing"
    case "unexpected_keyword_argument":
      known = [field.name for field in dataclasses.fields(_class_at(cls, path[:-1]))]
      return _name(path), f": is unknown (known: {', '.join(known)})"
    case "dataclass_exact_type" if path and path[-1] == context["class_name"]:  # one of a union's
      *path, _ = path
      wanted = "must be " + " or ".join(str(e["loc"][-1]) for e in errors.errors() if list(e["loc"][:-1]) == path)
    case "value_error" if isinstance(cause, _BrokenRule):
      path, value, wanted = [*path, cause.field], cause.value, cause.wanted
    case "value_error" if isinstance(cause, UserError) and not path:  # of a rule between fields
      return "", str(cause)
    case "value_error" if isinstance(cause, UserError):
      wanted = str(cause)
    case "value_error" | "assertion_error" if cause is not None:  # a bug in a rule
      raise cause
  return _name(path), _said(value, wanted)


def _name(path: list[int | str]) -> str:
  return ".".join(map(str, path))


def _as_flag(name: str) -> str:
  return name.replace("_", "-")


def _said(value: object, wanted: str) -> str:
  return f" {shorten(repr(value))}: {wanted}"


def shorten(text: str) -> str:
  """What of a value is shown in a line."""
  return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]} ..."


def _class_at(cls: Any, path: list[int | str]) -> Any:
  """The settings class that the value at a path of keys and indices is made of."""
  for key in path:
    if isinstance(key, str):
      hint = typing.get_type_hints(cls)[key]
      cls = next(t for t in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(t))
  return cls

"""Every field of every recipe and of a model.json refuses what is wrong, in one line that names it."""

import copy
import dataclasses
import importlib
import json
import math
import pathlib
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest

from stablesr_jax.checkpoints.store import MANIFEST, LPIPSManifest, Manifest, load_lpips, read_manifest
from stablesr_jax.config import LPIPSConfig, ModelConfig, RRDBNetConfig, SamplingConfig
from stablesr_jax.errors import UserError
from stablesr_jax.settings import from_json, require, settings, to_json

RECIPES = sorted(
  path.stem for path in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py") if path.stem != "__init__"
)
MANIFESTS = [
  Manifest("whole", ModelConfig(precleaner=RRDBNetConfig()), sources=({"file": "x", "sha256": "0", "kind": "cfw"},)),
  LPIPSManifest("lpips", LPIPSConfig()),
]


def wrong_values(hint: Any, many: type) -> list[Any]:
  """Values that a field of this type never takes; `many` is the type of sequences, list for JSON, else tuple."""
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if origin is Annotated:
    return wrong_values(arguments[0], many)
  if origin is Literal:
    return ["nonsense", 3, None]
  if origin is tuple:
    item = arguments[0]
    values = [3, "x", None, {}, *(many([value]) for value in wrong_values(item, many))]
    return values if arguments[-1] is ... else [*values, many([1.0] * (len(arguments) + 1)), many([1.0]), many([])]
  if origin is dict:
    return [3, [], "x", {"key": 3}, {3: "value"} if many is tuple else {"key": None}]
  if arguments:  # a union
    parts = [part for part in arguments if part is not type(None)]
    return [value for value in wrong_values(parts[0], many) if value is not None or len(parts) == len(arguments)]
  if dataclasses.is_dataclass(hint):
    return [3, "x", [], None]
  return {
    bool: [1, "true", 0.5, None],
    int: ["1", True, 1.5, -1, math.nan, 10**30 + 0.5, None, []],
    float: ["1", True, -1, math.nan, math.inf, -math.inf, None, []],
    str: [3, True, None, ["x"]],
  }[hint]


def parts_of(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
  """All settings objects in one, itself the first, with their paths."""
  if dataclasses.is_dataclass(value):
    yield path, value
    for field in dataclasses.fields(value):
      yield from parts_of(getattr(value, field.name), (*path, field.name))
  elif isinstance(value, tuple):
    for number, item in enumerate(value):
      yield from parts_of(item, (*path, number))


def required(settings_class: Any) -> list[str]:
  return [field.name for field in dataclasses.fields(settings_class) if field.default is dataclasses.MISSING]


def assert_names(make: Any, name: str, case: Any) -> None:
  """`make` raises a UserError of one line that begins with the name."""
  try:
    made = make()
  except UserError as error:
    line = str(error)
    assert line.startswith((f"{name} ", f"{name}: ", f"{name}.")) and "\n" not in line and len(line) < 400, line
  else:
    raise AssertionError(f"{name} {case!r} was taken: {made}")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_field_of_a_recipe(recipe):
  config = importlib.import_module(f"configs.{recipe}").get_config()
  for _, part in parts_of(config):
    hints = typing.get_type_hints(type(part), include_extras=True)
    given = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    assert type(part)(**given) == part
    for name, hint in hints.items():
      for value in wrong_values(hint, tuple):
        change = lambda part=part, name=name, value=value: dataclasses.replace(part, **{name: value})
        assert_names(change, name.replace("_", "-"), value)
    assert_names(lambda part=part: dataclasses.replace(part, nonsense=1), "nonsense", 1)
    for name in required(part):
      others = {key: value for key, value in given.items() if key != name}
      assert_names(lambda part=part, others=others: type(part)(**others), name.replace("_", "-"), "nothing")


@pytest.mark.parametrize("manifest", MANIFESTS, ids=["model", "lpips"])
def test_every_key_of_a_manifest(manifest):
  whole = json.loads(json.dumps(to_json(manifest)))
  assert from_json(type(manifest), whole, "model.json") == manifest

  def read(path, change):
    values = copy.deepcopy(whole)
    place = values
    for key in path:
      place = place[key]
    change(place)
    return lambda: from_json(type(manifest), values, "model.json")

  for path, part in parts_of(manifest):
    called = lambda name, path=path: "model.json: " + ".".join([*map(str, path), name])
    for name, hint in typing.get_type_hints(type(part), include_extras=True).items():
      for value in wrong_values(hint, list):
        make = read(path, lambda place, name=name, value=value: place.__setitem__(name, value))
        assert_names(make, called(name), value)
    assert_names(read(path, lambda place: place.__setitem__("nonsense", 1)), called("nonsense"), 1)
    for name in required(part):
      assert_names(read(path, lambda place, name=name: place.__delitem__(name)), called(name), "nothing")
  for value in (3, "x", [], None):
    assert_names(lambda value=value: from_json(type(manifest), value, "model.json"), "model.json:", value)


@pytest.mark.parametrize(
  "text, message",
  [
    ('{"format": 1, "architecture": {}}', "name: is missing"),
    ('{"format": 1, "name": "x", "architecture": {"unte": {}}}', "architecture.unte: is unknown (known: unet, "),
    ('{"format": 1, "name": "x", "architecture": {"unet": {"channels": "many"}}}', "unet.channels 'many': must be"),
    ('{"format": 1, "name": "x", "architecture": {"diffusion": {"beta_end": NaN}}}', "must be a finite number"),
    ('{"format": 1, "name": "x", "architecture": {}, "sampling": {"start_step": 1000}}', "sampling.start_step 1000: "),
    ('{"format": 1, "name": "x", "architecture": {}, "dtype": "int8"}', "dtype 'int8': must be 'float32', "),
    ('{"format": true, "name": "x", "architecture": {}}', "format True: must be a valid integer"),
    ('{"format": 2, "nothing": "as it was"}', "format 2 is not known to this version, which reads 1"),
    ('{"format": 1, "name": "x", "name": "x", "architecture": {}}', "name: is given twice"),
    ('{"format": 1, "name": "x", "architecture": {"unet": {"channels": 8, "channels": 9}}}', "channels: is given"),
    ('{"format": 1', "not valid JSON"),
    ('{"format": 1, "name": 1%s}' % ("0" * 5000), "not valid JSON"),
    ("[]", "expected an object, found list"),
    ('{"name": %s}' % ("[" * 100_000), "not valid JSON"),
    ('{"format": 1, "name": %s1' % ("[" * 900) + "]" * 900 + "}", "name"),
    ('{"format": 1, "name": "x", "architecture": {"unet": {"channels": 1%s}}}' % ("0" * 30), "must be less than or "),
    ('{"format": 1, "name": "x", "architecture": {"unet": {"channel_multipliers": [%s1]}}}' % ("1, " * 8), "channel_"),
    ('{"format": 1, "name": "x", "architecture": {"diffusion": {"steps": 1000000}}}', "diffusion.steps 1000000: must "),
  ],
)  # fmt: skip
def test_a_wrong_model_json(tmp_path, text, message):
  (tmp_path / MANIFEST).write_text(text)
  with pytest.raises(UserError) as error:
    read_manifest(tmp_path)
  assert str(error.value).startswith(f"{tmp_path / MANIFEST}: ") and message in str(error.value)
  assert "\n" not in str(error.value)


def test_a_wrong_model_json_of_an_lpips_network(tmp_path):
  (tmp_path / MANIFEST).write_text('{"format": 1, "name": "x", "lpips": {"width": 0}}')
  with pytest.raises(UserError, match="lpips.width 0: must be greater than or equal to 1$"):
    load_lpips(tmp_path)


def test_arguments_by_their_place():
  with pytest.raises(UserError, match="^sampler 'euler': must be 'ddpm' or 'ddim'$"):
    SamplingConfig("euler")  # pyright: ignore[reportArgumentType]


def test_integers_are_taken_for_floats_and_nothing_else_is_converted():
  assert SamplingConfig(eta=1).eta == 1.0
  assert from_json(SamplingConfig, {"eta": 1}, "x") == SamplingConfig(eta=1.0)


def test_a_long_value_is_cut():
  with pytest.raises(UserError) as error:
    SamplingConfig(steps="many " * 1000)  # pyright: ignore[reportArgumentType]
  assert str(error.value).startswith("steps 'many many") and len(str(error.value)) < 200


def test_a_rule_in_a_nested_object_names_its_path():
  @settings
  class Inner:
    low: int = 0
    high: int = 1

    def __post_init__(self):
      require(self.low <= self.high, "high", self.high, f"is below low, {self.low}")

  @settings
  class Outer:
    inner_pair: tuple[Inner, ...] = ()

  with pytest.raises(UserError, match=r"^file: inner_pair.1.high -1: is below low, 0$"):
    from_json(Outer, {"inner_pair": [{}, {"high": -1}]}, "file")
  with pytest.raises(UserError, match=r"^high -1: is below low, 0$"):
    Inner(high=-1)


@pytest.mark.parametrize("bug", [KeyError, AssertionError, ValueError])
def test_a_bug_in_a_rule_is_no_mistake_of_the_user(bug):
  @settings
  class Broken:
    value: int = 0

    def __post_init__(self):
      raise bug("a bug")

  for make in (Broken, lambda: from_json(Broken, {}, "file")):
    with pytest.raises(bug, match="a bug") as error:
      make()
    assert not isinstance(error.value, UserError)

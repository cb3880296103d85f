"""The command lines of `infer.py` and `convert_weights.py`, with the micro model."""

import dataclasses
import errno
import functools
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import zlib

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from PIL import Image, ImageCms

from stablesr_jax import OutputSize, SamplingConfig, StableSR, files
from stablesr_jax.checkpoints.store import NULL_PROMPT, load_params, read_manifest
from stablesr_jax.cli import convert, infer
from stablesr_jax.inference import manifest
from stablesr_jax.inference.jobs import SEED
from tests.micro import SAMPLING, photograph

ARTIST = 0x013B


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
  """Every run of a program loads its model; here runs with the same options share it, and what it compiled."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(StableSR, "load", functools.cache(StableSR.load))
    yield


@pytest.fixture
def run(model_folder):
  """Calls `infer.py` in this process and returns its exit code; options that are not given have fast values."""

  def call(source, target, *options, folder=model_folder) -> int:
    arguments = ["--input", source, "--output", target, "--model", folder, *options]
    if "--compile-cache" not in options:
      arguments += ["--compile-cache", "off"]
    try:
      return infer.main([str(argument) for argument in arguments])
    except SystemExit as stop:
      return stop.code

  return call


@pytest.fixture
def calls(monkeypatch):
  """What `upscale_batch` is called with; it only enlarges, and fails where `calls.error` is set."""

  class Calls(list):
    error: Exception | None = None

  made = Calls()

  def upscale_batch(self, images, *, scale, keys, sampling, progress, tell):
    made.append({"model": self, "scale": scale, "keys": keys, "sampling": sampling})
    if made.error is not None:
      raise made.error
    return [np.repeat(np.repeat(image, 4, axis=0), 4, axis=1) for image in images]

  monkeypatch.setattr(StableSR, "upscale_batch", upscale_batch)
  return made


def save(path: pathlib.Path, height: int = 12, width: int = 16, **options) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(photograph(height, width)).save(path, **options)
  return path


def pixels(path: pathlib.Path) -> np.ndarray:
  with Image.open(path) as image:
    return np.asarray(image)


def tree(folder: pathlib.Path) -> list[str]:
  """The files in a folder, without manifests."""
  files = (path for path in folder.rglob("*") if path.is_file() and path.name != manifest.FILE)
  return sorted(path.relative_to(folder).as_posix() for path in files)


def one_error(capsys, prog: str = "infer.py") -> str:
  """The only line on stderr, without its beginning."""
  captured = capsys.readouterr()
  [line] = captured.err.splitlines()
  assert line.startswith(f"{prog}: error: ") and captured.out == ""
  return line


# One picture


def test_a_file_to_a_file(run, tmp_path, capsys):
  target = tmp_path / "new" / "restored.png"
  assert run(save(tmp_path / "photo.png"), target) == 0
  captured = capsys.readouterr()
  assert captured.out == f"{target}\n" and captured.err == ""
  assert pixels(target).shape == (48, 64, 3)


def test_a_file_to_a_folder(run, calls, tmp_path):
  source = save(tmp_path / "photo.jpg")
  (tmp_path / "there").mkdir()
  for folder in ("there", "new"):
    assert run(source, tmp_path / folder) == 0
    assert tree(tmp_path / folder) == ["photo.png"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_the_suffix_chooses_the_format(run, calls, tmp_path, suffix):
  assert run(save(tmp_path / "photo.png"), tmp_path / f"out{suffix}") == 0
  assert pixels(tmp_path / f"out{suffix}").shape == (48, 64, 3)


def test_what_is_not_given_is_the_models(run, calls, tmp_path):
  assert run(save(tmp_path / "photo.png"), tmp_path / "out.png") == 0
  assert calls[0]["sampling"] == SAMPLING and calls[0]["scale"] == OutputSize(scale=4)


def test_every_option_arrives(run, calls, tmp_path, monkeypatch):
  monkeypatch.setattr(StableSR, "check", lambda self, sampling: None)  # the micro model has no text encoder
  monkeypatch.setattr(infer, "require_able", lambda *args: None)
  load, loaded = StableSR.load, []
  monkeypatch.setattr(StableSR, "load", lambda path, **options: loaded.append(options) or load(path, **options))
  wanted = SamplingConfig(
    sampler="ddim",
    steps=7,
    start_step=500,
    start_noise=0.5,
    eta=0.25,
    guidance_scale=3.5,
    prompt="Good photo.",
    negative_prompt="Bad photo.",
    fidelity_weight=0.75,
    color_fix="none",
    color_fix_weight=0.5,
    reference_weight=0.2,
    tile_size=32,
    tile_overlap=4,
  )
  options = []
  for field, value in dataclasses.asdict(wanted).items():
    assert value != getattr(SAMPLING, field)
    options += [f"--{field.replace('_', '-')}", value]
  others = ["--scale", 2.5, "--tile-batch", 3, "--autoencoder-tile", 256, "--precision", "bfloat16", "--seed", 7]
  assert run(save(tmp_path / "photo.png"), tmp_path / "out.png", *options, *others) == 0
  [call] = calls
  assert call["sampling"] == wanted and call["scale"] == OutputSize(scale=2.5)
  [options] = loaded
  assert {"precision": "bfloat16", "tile_batch": 3, "autoencoder_tile": 256}.items() <= options.items()
  assert run(tmp_path / "photo.png", tmp_path / "out.png", "--seed", 8) == 0
  assert (jax.random.key_data(calls[1]["keys"][0]) != jax.random.key_data(call["keys"][0])).any()


def test_the_compile_cache_is_where_it_is_wanted(run, calls, tmp_path, monkeypatch):
  from stablesr_jax import compilation

  wanted = []
  monkeypatch.setattr(compilation, "enable_cache", lambda setting, _: wanted.append(setting))
  assert run(save(tmp_path / "photo.png"), tmp_path / "out.png", "--compile-cache", "somewhere") == 0
  assert wanted == ["somewhere"]


def test_alpha_exif_and_profile_are_kept(run, calls, tmp_path):
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
  exif = Image.Exif()
  exif[ARTIST] = "Ada"
  alpha = np.full((12, 16, 1), 255, np.uint8)
  alpha[:, :8] = 0
  picture = Image.fromarray(np.concatenate([photograph(12, 16), alpha], axis=2))
  picture.save(tmp_path / "photo.png", icc_profile=profile, exif=exif)
  assert run(tmp_path / "photo.png", tmp_path / "out.png") == 0
  with Image.open(tmp_path / "out.png") as image:
    assert image.info["icc_profile"] == profile and image.getexif()[ARTIST] == "Ada"
    assert image.mode == "RGBA" and image.size == (64, 48)
    restored = np.asarray(image)[..., 3]
  assert (restored[:, :24] == 0).all() and (restored[:, 40:] == 255).all()
  assert run(tmp_path / "photo.png", tmp_path / "out.jpg") == 0  # no alpha there: over white
  assert (pixels(tmp_path / "out.jpg")[:, :24] > 250).all()


def test_orientation_is_applied(run, calls, tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  assert run(save(tmp_path / "photo.jpg", 12, 16, exif=exif), tmp_path / "out.png") == 0
  with Image.open(tmp_path / "out.png") as image:
    assert image.size == (48, 64) and 0x0112 not in image.getexif()


def test_the_result_depends_on_seed_and_file_name_alone(run, tmp_path):
  for name in ("a.png", "b.png", "below/c.png"):
    save(tmp_path / "in" / name)
  assert run(tmp_path / "in", tmp_path / "all") == 0
  first = {name: pixels(tmp_path / "all" / name) for name in ("a.png", "b.png", "below/c.png")}
  for name, image in first.items():
    assert run(tmp_path / "in" / name, tmp_path / "alone.png") == 0
    np.testing.assert_array_equal(pixels(tmp_path / "alone.png"), image)
  assert (first["a.png"] != first["b.png"]).any()  # the pictures are equal, the noise is not
  assert run(tmp_path / "in" / "a.png", tmp_path / "other.png", "--seed", 1) == 0
  assert (pixels(tmp_path / "other.png") != first["a.png"]).any()


# Folders


def test_a_folder_is_mirrored_and_what_is_no_picture_skipped(run, calls, tmp_path):
  save(tmp_path / "in" / "a.png")
  save(tmp_path / "in" / "2024" / "may" / "b.JPG")
  (tmp_path / "in" / "notes.txt").write_text("hello")
  (tmp_path / "in" / ".hidden.png").write_bytes(b"")
  assert run(tmp_path / "in", tmp_path / "out") == 0
  assert tree(tmp_path / "out") == ["2024/may/b.png", "a.png"]


def test_a_damaged_picture_does_not_stop_the_others(run, calls, tmp_path, capsys):
  for name in ("a.png", "b.png", "c.png"):
    save(tmp_path / "in" / name)
  (tmp_path / "in" / "b.png").write_bytes((tmp_path / "in" / "b.png").read_bytes()[:60])
  assert run(tmp_path / "in", tmp_path / "out") == 2
  assert tree(tmp_path / "out") == ["a.png", "c.png"]
  damaged, summary = capsys.readouterr().err.splitlines()
  assert damaged.startswith(f"infer.py: error: {tmp_path / 'in' / 'b.png'}: cannot be read")
  assert summary == "infer.py: 2 restored, 1 could not be"


def test_what_is_no_file_does_not_stop_the_others(run, calls, tmp_path, capsys):
  for name in ("a.png", "folder.png", "z.png"):
    save(tmp_path / "in" / name)
  (tmp_path / "in" / "loop.png").symlink_to("loop.png")
  (tmp_path / "in" / "nothing.png").symlink_to("nowhere.png")
  os.mkfifo(tmp_path / "in" / "pipe.png")
  (tmp_path / "out" / "folder.png").mkdir(parents=True)
  assert run(tmp_path / "in", tmp_path / "out") == 2
  assert tree(tmp_path / "out") == ["a.png", "z.png"] and len(calls) == 2
  *told, _ = (line.removeprefix("infer.py: error: ") for line in capsys.readouterr().err.splitlines())
  assert told == [
    f"{tmp_path / 'in' / 'folder.png'}: {tmp_path / 'out' / 'folder.png'}: is a folder",
    f"{tmp_path / 'in' / 'loop.png'}: cannot be read (Too many levels of symbolic links)",
    f"{tmp_path / 'in' / 'nothing.png'}: no such file",
    f"{tmp_path / 'in' / 'pipe.png'}: is no regular file",
  ]


def test_names_of_any_bytes(run, calls, tmp_path, monkeypatch):
  """What is no UTF-8 has noise of its own, too; what standard output cannot show is escaped there."""
  for name in ("caf\u00e9.png", os.fsdecode(b"caf\xe9.png")):
    save(tmp_path / "in" / name)
  shown = io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True)
  monkeypatch.setattr(sys, "stdout", shown)
  assert run(tmp_path / "in", tmp_path / "out") == 0
  assert shown.buffer.getvalue().splitlines() == [
    *(os.fsencode(tmp_path / "out") + name for name in (rb"/caf\xe9.png", rb"/caf\udce9.png"))
  ]
  keys = [
    jax.random.fold_in(jax.random.key(SEED), np.uint32(zlib.crc32(name)))
    for name in (b"caf\xc3\xa9.png", b"caf\xe9.png")
  ]
  assert [call["keys"] for call in calls] == [[key] for key in keys]


def test_an_output_that_cannot_be_written_is_told_before_the_model_is_loaded(run, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(StableSR, "load", lambda *_, **__: pytest.fail("loaded"))

  def read_only(**_):
    raise OSError(errno.EROFS, "Read-only file system")

  monkeypatch.setattr(files.tempfile, "TemporaryFile", read_only)
  assert run(save(tmp_path / "photo.png"), tmp_path / "new" / "out.png") == 2
  assert one_error(capsys).endswith(f"{tmp_path}: cannot be written to (Read-only file system)")
  assert tree(tmp_path) == ["photo.png"]


def test_running_out_of_memory_is_told_with_a_remedy(run, calls, tmp_path, capsys):
  calls.error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 42 bytes.\nBuffers: ...")
  source = save(tmp_path / "photo.png")
  assert run(source, tmp_path / "out.png") == 2
  wanted = f"infer.py: error: {source}: out of memory; try a smaller --tile-batch or --autoencoder-tile"
  assert one_error(capsys) == wanted and not (tmp_path / "out.png").exists()


def test_a_run_goes_on_where_it_was(run, calls, tmp_path, capsys):
  for name in ("a.png", "b.jpg", "below/c.jpg"):
    save(tmp_path / "in" / name)
  assert run(tmp_path / "in", tmp_path / "out") == 0 and len(calls) == 3
  capsys.readouterr()
  assert run(tmp_path / "in", tmp_path / "out") == 0 and len(calls) == 3
  nothing, summary = capsys.readouterr().err.splitlines()
  assert "nothing to do" in nothing and summary == "infer.py: 0 restored, 3 as before"
  (tmp_path / "out" / "below" / "c.png").unlink()
  assert run(tmp_path / "in", tmp_path / "out") == 0 and len(calls) == 4
  assert capsys.readouterr().out == f"{tmp_path / 'out' / 'below' / 'c.png'}\n"
  assert run(tmp_path / "in", tmp_path / "out", "--existing", "redo") == 0 and len(calls) == 7


def test_two_pictures_of_one_stem_become_two_files(run, calls, tmp_path):
  save(tmp_path / "in" / "a.jpg", 12, 16)
  save(tmp_path / "in" / "a.png", 16, 12)
  for _ in range(2):
    assert run(tmp_path / "in", tmp_path / "out") == 0 and len(calls) == 2
    assert tree(tmp_path / "out") == ["a.png", "a.png.png"]
  assert pixels(tmp_path / "out" / "a.png").shape == (48, 64, 3)
  assert pixels(tmp_path / "out" / "a.png.png").shape == (64, 48, 3)


def test_the_output_may_lie_within_the_input_or_around_it(run, calls, tmp_path):
  save(tmp_path / "photos" / "raw" / "a.jpg")
  assert run(tmp_path / "photos" / "raw", tmp_path / "photos" / "raw" / "restored") == 0
  assert run(tmp_path / "photos" / "raw", tmp_path / "photos" / "raw" / "restored", "--existing", "redo") == 0
  assert tree(tmp_path / "photos") == ["raw/a.jpg", "raw/restored/a.png"]
  assert run(tmp_path / "photos" / "raw", tmp_path / "photos") == 0
  assert tree(tmp_path / "photos") == ["a.png", "raw/a.jpg", "raw/restored/a.png"]


@pytest.mark.parametrize(
  "source, target, message",
  [
    ("in/a.png", "in/a.png", "is the input"),
    ("in/a.png", "in", "is the input"),
    ("in", "in", "is the input"),
    ("in", "link", "is the input"),
    ("in/raw", "in", "results would replace the inputs"),
  ],
)
def test_inputs_are_never_replaced(run, calls, tmp_path, capsys, source, target, message):
  names = ["a.png", "raw/a.png", "raw/raw/a.png"]
  before = [save(tmp_path / "in" / name).read_bytes() for name in names]
  (tmp_path / "link").symlink_to(tmp_path / "in")
  assert run(tmp_path / source, tmp_path / target, "--existing", "redo") == 2
  assert message in one_error(capsys)
  assert [(tmp_path / "in" / name).read_bytes() for name in names] == before and not calls


# Mistakes


@pytest.mark.parametrize(
  "source, target, options, message",
  [
    ("nowhere.png", "out.png", [], "nowhere.png: no such file or folder"),
    ("notes.txt", "out.png", [], "notes.txt: not an image"),
    ("empty.png", "out.png", [], "empty.png: cannot be read (the file is empty)"),
    ("no_pictures", "out", [], "no_pictures: has no pictures"),
    ("folder", "notes.txt", [], "notes.txt: is a file, but the input is a folder"),
    ("photo.png", "out.gif", [], "out.gif: cannot write .gif (use "),
    ("photo.png", "out.png", ["--fidelity-weight", 2], "fidelity-weight 2.0: must be less than or equal to 1"),
    ("photo.png", "out.png", ["--steps", 0], "steps 0: must be greater than or equal to 1"),
    ("photo.png", "out.png", ["--eta", 2], "eta 2.0: must be less than or equal to 1"),
    ("photo.png", "out.png", ["--tile-overlap", 16], "tile-overlap 16: must be 0 to 15"),
    ("photo.png", "out.png", ["--scale", 0], "scale 0.0: must be greater than 0"),
    ("photo.png", "out.png", ["--scale", "nan"], "scale nan: must be a finite number"),
    ("photo.png", "out.png", ["--seed", 2**32], "seed 4294967296: must be 0 to 4294967295"),
    ("photo.png", "out.png", ["--tile-batch", 0], "tile-batch 0: must be 1 to 4096"),
    ("photo.png", "out.png", ["--max-memory", "much"], "max-memory much: must be a size such as 8G or 500M"),
    ("photo.png", "out.png", ["--autoencoder-tile", 0], "autoencoder-tile 0: must be auto or at least 64 pixels"),
    ("photo.png", "out.png", ["--stepz", 4], "--steps"),
    ("photo.png", "out.png", ["--steps", "many"], "--steps"),
    ("photo.png", "out.png", ["--sampler", "euler"], "invalid choice 'euler' for argument '--sampler'"),
    ("photo.png", "notes.txt/out.png", [], "notes.txt: is a file, not a folder"),
    ("folder", "notes.txt/below/out", [], "notes.txt: is a file, not a folder"),
    ("photo.png", "out.png", ["--input", "other.png"], "--input: is given twice"),
    ("photo.png", "out.png", ["--input=other.png"], "--input: is given twice"),
    ("photo.png", "out.png", ["--compile-cache", ""], "--compile-cache: must not be empty"),
    ("photo.png", "out.png", ["--compile_cache="], "--compile-cache: must not be empty"),
    ("pipe.png", "out.png", [], "pipe.png: is neither a regular file nor a folder"),
  ],
)  # fmt: skip
def test_a_mistake_is_one_line(run, calls, tmp_path, capsys, source, target, options, message):
  save(tmp_path / "photo.png")
  save(tmp_path / "folder" / "photo.png")
  (tmp_path / "no_pictures").mkdir()
  (tmp_path / "notes.txt").write_text("hello")
  (tmp_path / "empty.png").write_bytes(b"")
  os.mkfifo(tmp_path / "pipe.png")
  assert run(tmp_path / source, tmp_path / target, *options) == 2
  assert message in one_error(capsys)
  assert not calls and not (tmp_path / "out.png").exists()


def test_a_folder_that_is_no_model(run, tmp_path, capsys):
  source = save(tmp_path / "photo.png")
  assert run(source, tmp_path / "out.png", folder=tmp_path) == 2
  assert "a folder without model.json, not a converted model" in one_error(capsys)
  assert run(source, tmp_path / "out.png", folder=tmp_path / "nowhere") == 2
  assert "no such model folder" in one_error(capsys)


def test_prompts_need_a_text_encoder(run, tmp_path, capsys):
  for option in ("--prompt", "--negative-prompt"):
    assert run(save(tmp_path / "photo.png"), tmp_path / "out.png", option, "Good photo.") == 2
    assert f"{option[2:]} 'Good photo.': this model has no text encoder" in one_error(capsys)


def test_a_required_option_that_is_missing(capsys):
  with pytest.raises(SystemExit, match="2"):
    infer.main(["--input", "photo.png"])
  line = one_error(capsys)
  assert "--output" in line


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_folder_is_stored_in_another_dtype(model_folder, tmp_path, capsys, dtype):
  model, output = model_folder, tmp_path / "small"
  assert convert.main(["--input", str(model), "--output", str(output), "--dtype", dtype]) == 0
  before, after = read_manifest(model), read_manifest(output)
  assert after == dataclasses.replace(before, name="small", dtype=dtype)
  for part in ("unet", NULL_PROMPT):
    stored = ocp.load(str((output / part).resolve()))  # as it lies there
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(stored)} == {dtype}
    [old, new] = (load_params(folder, manifest, [part]) for folder, manifest in ((model, before), (output, after)))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(dtype), b), old, new)


def test_a_model_folder_that_cannot_be_stored(model_folder, tmp_path, capsys):
  def error(source, target, *options) -> str:
    with pytest.raises(SystemExit, match="2"):
      convert.main(["--input", str(source), "--output", str(target), *options])
    return one_error(capsys, "convert_weights.py")

  assert "is the input" in error(model_folder, model_folder)
  assert "has its --prediction" in error(model_folder, tmp_path / "new", "--prediction", "v")
  broken = tmp_path / "broken"
  shutil.copytree(model_folder, broken)
  shutil.rmtree(broken / "unet")
  assert f"{broken / 'unet'}: " in error(broken, tmp_path / "new")
  assert not list(tmp_path.glob("*new*")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--input", "a.ckpt", "--outputs", "model"], "--output "),
    (["--output", "model"], "--input"),
    (["--input", "--output", "model"], "--input: give one or more"),
    (["--input", "nowhere.ckpt", "--output", "model"], "nowhere.ckpt: no such file or folder"),
    (["--input", "a.ckpt"], "give either --output"),
    (["--input", "a.ckpt", "--output", "model", "--to-pytorch", "a.safetensors"], "give either --output"),
    (["--input", "notes.txt", "notes.txt", "--to-pytorch", "a.safetensors"], "takes one model folder"),
    (["--input", "notes.txt", "--to-pytorch", "a.ckpt"], "ends in .safetensors"),
    (["--input", "pipe.ckpt", "--output", "model"], "pipe.ckpt: is neither a regular file nor a folder"),
    (["--input", "notes.txt", "--output", "notes.txt/model"], "notes.txt: is a file, not a folder"),
    (["--input", "notes.txt", "--output", "model"], "notes.txt: "),
    (["--input", "notes.txt", "--output", "model", "--architecture", "huge"], "neither a file nor one of stablesr_512"),
    (["--input", "notes.txt", "--output", "model", "--architecture", "notes.txt"], "notes.txt: not valid JSON"),
    (["--input", "notes.txt", "--output", "model", "--dtype", "int8"], "invalid choice 'int8'"),
  ],
)  # fmt: skip
def test_a_mistake_in_converting_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "notes.txt").write_text("hello")
  os.mkfifo(tmp_path / "pipe.ckpt")
  with pytest.raises(SystemExit, match="2"):
    convert.main(arguments)
  assert message in one_error(capsys, "convert_weights.py")
  assert tree(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("module", ["infer", "convert"])
def test_help_is_quick(module):
  """It needs none of the libraries that take seconds to import."""
  program = f"""
import sys
from stablesr_jax.cli import {module}
try:
  {module}.main(["--help"])
except SystemExit as stop:
  assert stop.code == 0
sys.exit(" ".join(name for name in ("jax", "torch", "transformers", "tensorflow", "diffusers") if name in sys.modules))
"""
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
  assert done.stderr.strip() == "" and "--input" in done.stdout


@pytest.mark.parametrize(
  "options, message",
  [
    (("--start-step", 1000), "start-step 1000: must be at most 999, the diffusion's last timestep"),
    (("--prompt", "hello"), "prompt 'hello': this model has no text encoder; only the null prompt is possible"),
    (("--tile-batch", 0), "tile-batch 0: must be 1 to 4096"),
    (("--group", "9" * 5000), f"group {'9' * 116} ...: must be auto or at least 1"),
    (("--name", "{"), "name '{': "),
  ],
)
def test_a_dry_run_refuses_what_the_run_would(run, model_folder, tmp_path, capsys, options, message):
  save(tmp_path / "photo.png")
  for more in ((), ("--dry-run",)):
    assert run(tmp_path / "photo.png", tmp_path / "out.png", *options, *more) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_a_model_without_an_autoencoder_is_refused_in_a_line(run, model_folder, tmp_path, capsys):
  folder = shutil.copytree(model_folder, tmp_path / "model")
  values = json.loads((folder / "model.json").read_text())
  values["architecture"]["autoencoder"] = None
  (folder / "model.json").write_text(json.dumps(values))
  save(tmp_path / "photo.png")
  for more in ((), ("--dry-run",)):
    assert run(tmp_path / "photo.png", tmp_path / "out.png", *more, folder=folder) == 2
    assert "this model has no autoencoder, so it cannot restore pictures" in one_error(capsys)

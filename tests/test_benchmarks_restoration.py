"""What the benchmarks of restored photographs compute, with the micro model and made-up pictures."""

import dataclasses
import importlib.util
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from stablesr_jax.degradation import PRESETS
from tests.micro import SAMPLING, photograph


def load(name: str):
  spec = importlib.util.spec_from_file_location(name, pathlib.Path(__file__).parents[1] / "benchmarks" / f"{name}.py")
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


restoration, tile_edges = load("restoration"), load("tile_edges")


@pytest.mark.parametrize(
  "size, expected",
  [((512, 512), (512, 512)), ((300, 451), (256, 448)), ((872, 1000), (512, 512)), ((700, 640), (512, 512))],
)
def test_the_part_of_a_photograph_that_is_used(size, expected):
  assert restoration.prepare(photograph(*size)).shape == (*expected, 3)
  assert restoration.prepare(photograph(*size), side=192).shape == (192, 192, 3)


def test_the_middle_is_used():
  image = photograph(140, 200)
  np.testing.assert_array_equal(restoration.prepare(image), image[6:134, 4:196])


def test_a_pair_depends_on_its_name_and_the_draw_only(monkeypatch):
  def degrade(key, images, settings):
    return jax.random.uniform(key[0], (1, images.shape[1] // 4, images.shape[2] // 4, 3))

  monkeypatch.setattr(restoration, "degrade", degrade)
  make = lambda name, draws: (
    restoration.make_pair(name, photograph(64, 128), draws, 0, PRESETS["stablesr_512"]).degraded
  )
  assert make("a", 3).shape == (3, 16, 32, 3) and make("a", 3).dtype == np.uint8
  np.testing.assert_array_equal(make("a", 3)[:2], make("a", 2))
  assert (make("a", 2)[0] != make("a", 2)[1]).any() and (make("a", 1) != make("b", 1)).any()


@pytest.mark.slow
def test_rows_and_tables(model, tmp_path):
  original = photograph(192, 192)
  degraded = np.asarray(Image.fromarray(original).resize((48, 48), Image.Resampling.BOX))
  pair = restoration.Pair("waves", original, np.stack([degraded] * 2))
  methods = restoration.main_methods("micro", model, SAMPLING)
  rows = restoration.evaluate([pair], methods, 0, tmp_path)
  assert [row["method"] for row in rows] == ["original", *["bicubic"] * 2, *["micro w=1"] * 2, *["micro w=0.5"] * 2]
  by_method = {row["method"]: row for row in rows}
  assert by_method["original"]["ssim"] == pytest.approx(1) and np.isinf(by_method["original"]["psnr"])
  assert by_method["bicubic"]["psnr"] > 20 > by_method["micro w=1"]["psnr"]
  assert by_method["micro w=1"]["psnr"] != by_method["micro w=0.5"]["psnr"]
  assert len(list(tmp_path.iterdir())) == 7

  lines = restoration.tables(rows).splitlines()
  assert lines[0] == "| | PSNR | SSIM | sharpness | NIQE |" and len(lines) == 6 + 1 + 6
  assert lines[-1].startswith("| waves | micro w=0.5 | ")


def test_ablations_are_all_combinations_of_the_named_settings(model):
  methods = restoration.ablations("micro", model, SAMPLING, ["sampler", "steps"])
  assert [method.name for method in methods] == [
    f"micro sampler {sampler}, steps {steps}" for sampler in ("ddim", "ddpm") for steps in (4, 20, 50, 200)
  ]
  wanted = dataclasses.replace(SAMPLING, sampler="ddpm", steps=200)
  assert methods[-1].sampling == wanted


def test_borders_of_tiles():
  assert tile_edges.borders(1024, tile=64, overlap=32, factor=8) == [256, 512, 768]
  assert tile_edges.borders(700, tile=64, overlap=16, factor=8) == [192, 512]  # the second tile is moved back
  assert tile_edges.borders(512, tile=64, overlap=32, factor=8) == []


def test_a_seam_stands_out():
  flat = np.random.default_rng(0).integers(100, 140, (512, 640, 3)).astype(np.uint8)
  seam = flat.copy()
  seam[256:] += 20
  places = [tile_edges.borders(side, 64, 32, 4) for side in (512, 640)]
  even, uneven = (
    tile_edges.compare([tile_edges.profile(image, axis) for axis in (0, 1)], places, places, 4)
    for image in (flat, seam)
  )
  assert even["ratio"] == pytest.approx(1, abs=0.05) and even["worst"] < 1.1
  assert uneven["worst"] > 2 and uneven["ratio"] > even["ratio"] + 0.1

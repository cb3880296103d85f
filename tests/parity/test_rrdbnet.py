"""Real-ESRGAN's generator at small width; its full-size file is converted too."""

import json

import jax
import numpy as np
import pytest

from stablesr_jax.checkpoints import names
from stablesr_jax.checkpoints.conversion import convert
from stablesr_jax.checkpoints.layout import to_ours
from stablesr_jax.config import RRDBNetConfig
from stablesr_jax.models.rrdbnet import RRDBNet
from tests.reference_data import FOLDER, load, nhwc, relative_error, salt, synthetic_rule, write_checkpoint


def test_rrdbnet():
  data, meta = load("small_rrdbnet"), json.loads((FOLDER / "meta.json").read_text())
  config = RRDBNetConfig(features=16, blocks=2, growth=8)
  module, image, rule = RRDBNet(config), nhwc(data["image"]), synthetic_rule()
  name_map = names.rrdbnet(config)

  def fill(path, leaf):
    path = "/".join(str(key.key) for key in path)
    [name] = names.leaf_names(name_map, path)
    kind = path.rpartition("/")[2]
    torch_shape = (leaf.shape[3], leaf.shape[2], *leaf.shape[:2]) if kind == "kernel" else leaf.shape
    value = np.float32(meta["rrdb_scale"]) * rule.tensor(f"rrdb.{name}", torch_shape, salt())
    return to_ours(value, kind, leaf.shape)

  abstract = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
  params = jax.tree_util.tree_map_with_path(fill, abstract)
  result = jax.jit(module.apply)({"params": params}, image)
  assert relative_error(result, nhwc(data["result"])) <= 1e-5


@pytest.mark.full
def test_full_size_file_is_converted(tmp_path):
  file = write_checkpoint("realesrgan_x4plus_checkpoint", tmp_path / "RealESRGAN_x4plus.pth")
  manifest = convert([file], tmp_path / "model", report=lambda line: None)
  assert manifest.architecture.precleaner == RRDBNetConfig()
  assert manifest.sources[0]["kind"] == "real_esrgan"

"""A model that only enlarges."""

from stablesr_jax.checkpoints.store import Manifest
from tests.micro import MODEL, SAMPLING


class Stub:
  """In the model's place: repeats pixels. A picture whose first value is in `errors` fails with that error."""

  path, precision = None, "float32"

  def __init__(self):
    self.manifest = Manifest("stub", MODEL, sampling=SAMPLING)
    self.errors: dict[float, Exception] = {}

  def check(self, sampling):
    pass

  def has_room(self, sizes, **_):
    return False

  def upscale_batch(self, images, *, scale, keys, sampling, progress=None, tell=None):
    if error := self.errors.get(float(images[0][0, 0, 0])):
      raise error
    return [image.repeat(2, axis=0).repeat(2, axis=1) for image in images]

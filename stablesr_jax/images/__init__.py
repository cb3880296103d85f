"""Pictures in files: read with all that belongs to them, and written in every format that is promised."""

from stablesr_jax.images.alpha import fill_transparent, over_white, resize_alpha
from stablesr_jax.images.kinds import IMAGE_SUFFIXES, WRITABLE_SUFFIXES
from stablesr_jax.images.picture import Picture
from stablesr_jax.images.reading import decode_image, image_size, list_images, read_file, read_image
from stablesr_jax.images.writing import Output, require_holds, write_image

__all__ = [
  "IMAGE_SUFFIXES",
  "WRITABLE_SUFFIXES",
  "Output",
  "Picture",
  "decode_image",
  "fill_transparent",
  "image_size",
  "list_images",
  "over_white",
  "read_file",
  "read_image",
  "require_holds",
  "resize_alpha",
  "write_image",
]

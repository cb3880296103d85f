"""Training data: images and pairs from folders, TensorFlow Datasets and packed files, as batches of crops.

Needs the extra packages of `pip install "stablesr-jax[train]"`; importing does not.
"""

from stablesr_jax.data.batches import Batches, make_dataset
from stablesr_jax.data.config import DataConfig, SourceConfig
from stablesr_jax.data.packing import pack_images

__all__ = ["Batches", "DataConfig", "SourceConfig", "make_dataset", "pack_images"]

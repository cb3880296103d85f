"""Training data: images and pairs from folders, TensorFlow Datasets and packed files, as batches of crops.

Needs the extra packages of `pip install "stablesr-jax[train]"`; importing does not.
"""

from stablesr_jax.data.config import DataConfig, SourceConfig
from stablesr_jax.data.pack import pack_images
from stablesr_jax.data.pipeline import Batches, make_dataset

__all__ = ["Batches", "DataConfig", "SourceConfig", "make_dataset", "pack_images"]

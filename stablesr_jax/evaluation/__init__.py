"""Measures of restored images."""

from stablesr_jax.evaluation.metrics import luma, niqe, psnr_y, sharpness, ssim_y

__all__ = ["luma", "niqe", "psnr_y", "sharpness", "ssim_y"]

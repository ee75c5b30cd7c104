"""Segment Anything: images, prompts and masks."""

from __future__ import annotations

from icp_jax.vision.image_settings import ImageSettings
from icp_jax.vision.predictor import Prediction, SamPredictor
from icp_jax.vision.process import Frame, postprocess, preprocess

__all__ = ["Frame", "ImageSettings", "Prediction", "SamPredictor", "postprocess", "preprocess"]

"""From features and prompts to label maps."""

from __future__ import annotations

from tcl_core.segmentation.features import FeatureCache, ImageFeatures
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.session import ImageSession

__all__ = ["FeatureCache", "ImageFeatures", "ImageSession", "Segmenter"]

"""Layers for images that grow."""

from lamella_pixels.normalization import FilterResponseNormalization, MeanOnlyBatchNormalization
from lamella_pixels.subpixel import DepthToSpace, SubpixelConv2D

__all__ = ["DepthToSpace", "FilterResponseNormalization", "MeanOnlyBatchNormalization", "SubpixelConv2D"]

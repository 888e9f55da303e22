"""Task networks made of LieConv layers."""

from lieconv.models.potential import potential
from lieconv.models.resnet import LieResNet, Resolutions

__all__ = ["LieResNet", "Resolutions", "potential"]

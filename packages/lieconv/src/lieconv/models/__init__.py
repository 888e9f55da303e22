"""Task networks made of LieConv layers."""

from lieconv.models.resnet import LieResNet

__all__ = ["LieResNet"]

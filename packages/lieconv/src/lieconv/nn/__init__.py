"""Layers on point sets: convolution, normalisation, blocks, pooling, vector outputs."""

from lieconv.nn.blocks import BottleneckBlock, masked_mean, pool
from lieconv.nn.conv import LieConv
from lieconv.nn.kernel import KernelNetwork
from lieconv.nn.neighbourhood import Neighbourhood
from lieconv.nn.norm import MaskedBatchNorm, PointLayerNorm
from lieconv.nn.vectors import VectorReadout

__all__ = [
    "BottleneckBlock",
    "KernelNetwork",
    "LieConv",
    "MaskedBatchNorm",
    "Neighbourhood",
    "PointLayerNorm",
    "VectorReadout",
    "masked_mean",
    "pool",
]

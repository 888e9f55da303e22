"""From neighbourhoods to features; knows no data set."""

from lieconv.nn.blocks import BottleneckBlock, masked_mean
from lieconv.nn.conv import LieConv
from lieconv.nn.norm import MaskedBatchNorm

__all__ = ["BottleneckBlock", "LieConv", "MaskedBatchNorm", "masked_mean"]

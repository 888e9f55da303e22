"""Robots from files: URDF and MJCF, read into bodies, joints and forces; knows no system, network or command."""

from chnn.formats.assemble import Motion, assemble
from chnn.formats.read import read_robot
from chnn.formats.shapes import Mass, Shape
from chnn.formats.tree import FEATURES, WORLD, Joint, Link, Loop, Tree

__all__ = [
    "FEATURES",
    "WORLD",
    "Joint",
    "Link",
    "Loop",
    "Mass",
    "Motion",
    "Shape",
    "Tree",
    "assemble",
    "read_robot",
]

"""Data sets as labelled point sets."""

from lieconv.data.point_sets import DATA_SETS, MAX_CLASSES, PointSets, load_data, load_digits, load_npz, split

__all__ = ["DATA_SETS", "MAX_CLASSES", "PointSets", "load_data", "load_digits", "load_npz", "split"]

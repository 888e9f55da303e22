"""Photographs to measure on."""

from liederivative.images.photographs import Photograph, folder_photographs, load_photographs, sample_photographs

__all__ = ["Photograph", "folder_photographs", "load_photographs", "sample_photographs"]

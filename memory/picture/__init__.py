"""The Memory Inspector's picture, drawn with Pillow: for the IMAGE output and for PNG files."""

from .drawing import PictureView, draw_inspection, readable_size

__all__ = ["PictureView", "draw_inspection", "readable_size"]

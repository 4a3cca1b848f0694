"""Text-grounded masks, their polygons and their COCO export."""

__version__ = "0.1.0"

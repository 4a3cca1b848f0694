"""Refiners: score maps that follow the edges of the image."""

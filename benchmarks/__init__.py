"""Measurements for developers; what users measure with is part of the packages."""

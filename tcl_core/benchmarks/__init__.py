"""Measurements behind the figures this project promises, each one a command that anybody can repeat."""

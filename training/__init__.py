"""Recipes, data and the engine that trains (``tcl-annotate train``); the embedded model's own training beside them."""

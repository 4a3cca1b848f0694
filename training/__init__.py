"""Recipes, data pipelines and the training loop; not part of the installed package."""

"""Exporters: regions become the files of an annotation format."""

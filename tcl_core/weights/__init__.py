"""Model files: their format, their download, and the import of upstream checkpoints."""

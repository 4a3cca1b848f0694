"""Image and text towers, and their tokenizers."""

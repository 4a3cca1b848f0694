"""Training the embedded model on the playground world, from pictures and captions only."""

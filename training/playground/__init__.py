"""Training the embedded model on the playground world, from images and captions only."""

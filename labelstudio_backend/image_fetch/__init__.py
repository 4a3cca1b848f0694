"""Getting images from where tasks say they are, and from nowhere else."""

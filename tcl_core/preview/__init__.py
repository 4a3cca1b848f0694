"""Pages and pictures that show what was found."""

"""Pages and images that show what was found."""

"""From features and prompts to label maps."""

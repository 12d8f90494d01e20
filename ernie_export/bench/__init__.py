"""Speed and memory of a bundle."""

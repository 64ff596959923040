"""Evidence: what a trained classifier is worth on held-out images, and where it looks."""

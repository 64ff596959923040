"""Self-supervised methods."""

"""Studies: what several runs show together."""

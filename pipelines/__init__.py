"""Data in motion: DALI graphs (decode, augment, lobes) and the Loader."""

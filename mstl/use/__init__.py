"""Using a trained network: on image files, in other programs, and saying what it is fit for."""

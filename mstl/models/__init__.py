"""Networks: residual backbones with attention, and the classifier over them."""

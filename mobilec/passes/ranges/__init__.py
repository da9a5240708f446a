"""What the activations of a program are, and what half precision would do to them."""

"""Models in fewer bits: 8-bit weights and activations, palettes, what to leave out of it, and what it costs."""

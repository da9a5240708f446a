"""Capture, rewrite and measure graphs (knows nothing of the zoo or of any file format)."""

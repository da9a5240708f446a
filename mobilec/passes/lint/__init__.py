"""What a target can run, and which operators of a graph would leave it."""

"""The zoo: architectures, their checkpoints, their preprocessing (knows nothing of passes)."""

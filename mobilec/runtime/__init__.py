"""Sessions over artefacts, parity and accuracy."""

"""Artefact folders and one writer a backend."""

"""Devices, timing and statistics."""

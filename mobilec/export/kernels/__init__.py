"""Kernels for CPUs: loop nests written statement by statement, in vectors and registers of a given target."""

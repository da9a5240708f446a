"""Helpers shared by the tests (on the import path through pytest's ``pythonpath``)."""

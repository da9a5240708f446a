"""What each MIL op computes: one small function an op, one dictionary an area, merged in ``table.py``."""

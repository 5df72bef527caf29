"""Data sets: one file each, and what their labels mean."""

"""Runs the machine code of GPUs on the CPU, and counts what it does."""

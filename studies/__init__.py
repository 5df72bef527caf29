"""Studies: each a program, its settings, what it found and a test."""

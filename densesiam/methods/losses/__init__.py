"""The parts of the methods' losses."""

"""Which images make an epoch, and their random draws."""

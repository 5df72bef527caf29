"""Lightning's data modules."""

"""Training runs: their folder, options, checkpoints, reports and pictures."""

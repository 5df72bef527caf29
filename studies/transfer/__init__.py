"""Whether pre-training helps, tried on CamVid."""

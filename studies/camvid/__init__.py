"""What the segmentation method learns on CamVid, beside what needs no learning."""

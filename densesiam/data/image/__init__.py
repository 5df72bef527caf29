"""Images as they are read: files, the frame, changes of colour, and the way to the network."""

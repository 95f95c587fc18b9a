"""Published checkpoints to model folders: one file per project whose checkpoints are read."""

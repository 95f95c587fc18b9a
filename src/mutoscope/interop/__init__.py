"""Published checkpoints, renamed and laid out for our modules."""

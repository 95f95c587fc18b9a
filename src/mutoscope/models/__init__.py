"""One file per paper, each readable alone from configuration to loss."""

"""One folder per paper, each readable on its own: `config.py`, then `network.py`, then `model.py` with the loss."""

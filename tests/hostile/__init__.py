"""Hostile files of every kind that a verb opens, and the harness that opens them: `python -m hostile` in `tests`."""

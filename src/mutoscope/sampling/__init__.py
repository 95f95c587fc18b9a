"""Procedures that turn predictions into tokens. None of them knows an architecture."""

"""Evaluation: metrics, feature networks, protocols and the engine that joins them to figures with intervals."""

"""Environments to recordings: Gymnasium and ViZDoom, policies that play them, and a writer of LeRobot datasets."""

"""Studies: papers' comparisons at small scale, token dependencies, and speed."""

"""The verbs of the command line, one ordinary function per file.

Each takes plain values, returns the report that `--json` prints, and raises `UserError` for bad input.
Nothing heavy is imported before a verb runs, so that `--help` answers at once.
"""

"""`python -m mutoscope` is the same as the command `mutoscope`."""

import sys

from mutoscope.cli import main

if __name__ == "__main__":
    sys.exit(main())

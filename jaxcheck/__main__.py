"""``python -m jaxcheck`` is the command ``jaxcheck``."""

import sys

from jaxcheck.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""The command line as `python -m siglip2_jax`."""

import sys

from siglip2_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m mmdiff`, which torchrun and accelerate launch can start."""

import sys

from mmdiff.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())

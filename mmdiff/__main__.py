"""`python -m mmdiff`, which torchrun and accelerate launch can start."""

import os
import sys

if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]  # Python puts the working folder first: a file torch.py of a stranger's folder would be imported

from mmdiff.commands.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())

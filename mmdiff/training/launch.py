"""torchrun, whose last words are those of mmdiff: `python -m mmdiff.training.launch --nproc-per-node 8 train NAME`.

All options of torchrun go before the verb, those of many machines too (`--nnodes`, `--rdzv-endpoint`, ...). Where a
process fails, all are ended, and the exit code is that of the first to fail. What torchrun has to say of it, a
traceback of its own and a table, is left out: the process that failed has said it in one line.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the processes and wait for them. Returns the exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    for name in ("elastic", "run"):
        logging.getLogger(f"torch.distributed.{name}").setLevel(logging.CRITICAL)
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = get_args_parser()
    found = parser.parse_args(given)
    verb = [found.training_script, *found.training_script_args]
    found = parser.parse_args([*given[: len(given) - len(verb)], "-m", "mmdiff", *verb])
    try:
        run(found)
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main())

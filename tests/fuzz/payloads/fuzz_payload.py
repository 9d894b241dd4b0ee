"""What a hostile folder names: importing or calling it leaves a mark."""

import os
from typing import Any


def payload(*args: Any, **named: Any) -> None:
    if "FUZZ_MARK" in os.environ:
        open(os.environ["FUZZ_MARK"], "w").close()


payload()

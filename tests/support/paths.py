"""Where things lie: the checkout, data of the tests, and the folder of larger data beside a checkout, if it is there."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
SHARED = ROOT.parent / "shared"

"""A fuzzer that reads the description of the server: it finds no fault, and nothing accepted that it forbids."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("schemathesis")


@pytest.mark.slow
def test_the_description_survives_a_fuzzer(chat_url: str, tmp_path: Path) -> None:
    """Values that the schema permits may still be refused: a prompt longer than the model reads, say."""
    code = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
    words = ["run", f"{chat_url}/openapi.json", "--max-examples", "20", "--seed", "1", "--generation-database", "none"]
    words += ["--exclude-checks", "positive_data_acceptance"]
    found = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-4000:]

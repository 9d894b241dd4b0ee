"""Verbs of proteins that are killed, or whose disk is full or cannot be written, are given again and lose nothing."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from failures import disks, kills
from protein_models import saved

from mmdiff.commands.cli import main

NATURAL = ["MKTAYIAKQR", "ACDEFGHIKLMN", "PQRSTVWY", "MKLVAGDE"]
STEPS = "sampler.steps=3"
COMMANDS = {
    "generate": ["generate", "run", "--length", "5", "--n", "3", STEPS, "--out", "new/x.fasta"],
    "infill": ["infill", "run", "n.fasta", "--masked", "2-3", STEPS, "--out", "new/x.jsonl"],
    "design": ["design", "run", "--target", "MKTAY", "--length", "4", "--n", "2", STEPS, "--out", "new/x.csv"],
    "score": ["score", "run", "n.fasta", "--levels", "2", "--out", "new/s.tsv.gz"],
    "score of mutants": ["score", "run", "--scan", "scan.csv", "--methods", "wt_marginal", "--out", "new/m.csv"],
    "embed": ["embed", "run", "n.fasta", "--out", "new/e"],
    "embed to one file": ["embed", "run", "n.fasta", "--out", "new/e.npz"],
    "eval": ["eval", "run", "n.fasta", "--samples", "3", "--motif", "MK__", STEPS, "--report", "new/page.html"],
}
NAMES = [*COMMANDS][:-1] + [pytest.param("eval", marks=pytest.mark.needs("Bio"))]


def rounded(name: str, content: bytes) -> bytes:
    """A file that was cut within a window is resumed there, in another batch: figures are the same but for rounding."""
    text = gzip.decompress(content) if name.endswith(".gz") else content
    return re.sub(rb"\d+\.\d{5,}", lambda found: b"%.4g" % float(found[0]), text)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("protein")
    saved(home / "run")
    (home / "n.fasta").write_text("".join(f">n{i}\n{s}\n" for i, s in enumerate(NATURAL)))
    (home / "scan.csv").write_text("mutant,fitness\nM1A,0.1\nM1C,0.5\nK2A,-1\nK2D,0.2\n")
    for name in ("score of mutants", "embed to one file", "eval"):  # their imports, once
        words = [str(home / word) if "." in word or word == "run" else word for word in COMMANDS[name]]
        main(["protein", *(word if "sampler" not in word else STEPS for word in words)])
    return home


@pytest.fixture
def there(home: Path) -> Callable[[], None]:
    def links() -> None:
        for name in ("run", "n.fasta", "scan.csv"):
            Path(name).symlink_to(home / name)

    return links


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_kill_at_every_change(name: str, there: Callable[[], None], tmp_path: Path) -> None:
    words = ["protein", *COMMANDS[name]]
    table = "score of mutants"  # which is not overwritten
    again = (lambda: Path("new/m.csv").exists() or main(words)) if name == table else None
    assert kills.everywhere(words, tmp_path, prepare=there, again=again) > 2


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("disk", [disks.full, disks.small])
def test_a_full_disk(disk: Callable[..., int], name: str, there: Callable[[], None], tmp_path: Path) -> None:
    assert disk(["protein", *COMMANDS[name]], tmp_path, prepare=there, plain=rounded) > 0


@pytest.mark.parametrize("name", ["generate", *(pytest.param(n, marks=pytest.mark.slow) for n in [*COMMANDS][1:])])
def test_a_folder_that_cannot_be_written(name: str, there: Callable[[], None], tmp_path: Path) -> None:
    disks.read_only(["protein", *COMMANDS[name]], tmp_path, prepare=there)

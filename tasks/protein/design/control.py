"""Whether a design depends on its target: the same binders sampled for shuffled targets, and the bound under either."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.errors import DataError
from mmdiff.protocols import Row, Source
from mmdiff.session import Session
from mmdiff.tasks.protein.residues import permuted
from mmdiff.tasks.protein.score.log_probs import bounds as residue_bounds
from mmdiff.tasks.protein.score.log_probs import canvas
from mmdiff.tasks.protein.task import Protein

from .generate import Record, each_row, generate


def design_control(
    session: Session[Protein],
    rows: Iterable[Row] | Source,
    *,
    seed: int = 0,
    out: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    **named: Any,
) -> tuple[Iterable[Record], Iterable[Record]]:
    """Sample binders of the rows' targets, and binders under the same noise for wrong ones (`control_rows`).

    Where the two sets are alike, the design does not depend on the target: compare `bounds` of the first under its own
    and under the wrong targets. out: the second goes beside it, to `<name>.control<suffix>`. named: as for `generate`.
    Raises DataError.
    """
    own = list(each_row(rows))
    wrong = control_rows(own, seed)
    beside = None if out is None else control_file(out)
    also = {**(settings or {}), "control": {"targets": "shuffled", "seed": seed}}
    return (
        generate(session, own, out=out, settings=settings, **named),
        generate(session, wrong, out=beside, settings=also, **named),
    )


def control_file(out: Path) -> Path:
    """Where `design_control` leaves the second set."""
    return out.with_name(f"{out.stem}.control{out.suffix}")


def control_rows(rows: Sequence[Row], seed: int = 0) -> list[Row]:
    """The rows with the residues of each target in random order, by (seed, number of the row), so that length and
    composition are the same. Raises DataError for a row without a target, or with one that has no other order."""
    wrong: list[Row] = []
    for k, row in enumerate(rows):
        target, where = row.get("target"), row.get("where", f"row {k}")
        if not isinstance(target, str) or not target:
            raise DataError(f"{where}: target: {target!r}, expected residues for a control")
        if len(set(target)) == 1:
            raise DataError(f"{where}: target: one kind of residue, whose order cannot be shuffled")
        wrong.append({**row, "target": permuted(target, k, seed)})
    return wrong


def bounds(
    session: Session[Protein], rows: Iterable[Row], *, tokens: int | None = None, levels: int = 16, seed: int = 0
) -> list[float]:
    """The bound on -log p(sequence | target) of each row, in nats per residue (`mmdiff.model.likelihood.bound`).

    rows: whole sequences, records of `generate` too. Rows of one number are priced under the same noise, so those of
    two calls, with right and with wrong targets, can be compared one by one.
    """
    canvases = [canvas(session, row, session.task.letters, record=k) for k, row in enumerate(rows)]
    nats = residue_bounds(session.model, canvases, range(len(canvases)), levels=levels, tokens=tokens, seed=seed)
    return [nll / max(int(one.scored_N.sum()), 1) for nll, one in zip(nats, canvases, strict=True)]

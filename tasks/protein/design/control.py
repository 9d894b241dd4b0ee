"""Whether a design depends on its target: the same binders sampled for wrong targets, and the bound under either."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mmdiff.errors import ConfigError, DataError
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
    control: Literal["shuffled", "other"] = "shuffled",
    seed: int = 0,
    out: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    **named: Any,
) -> tuple[Iterable[Record], Iterable[Record]]:
    """Sample binders of the rows' targets, and binders under the same noise for wrong ones (`control_rows`).

    Where the two sets are alike, the design does not depend on the target: compare `bounds` of the first under its own
    and under the wrong targets. out: the second goes beside it, to `<name>.control<suffix>`. named: as for `generate`.
    Raises ConfigError, DataError.
    """
    own = list(each_row(rows))
    wrong = control_rows(own, control, seed)
    beside = None if out is None else control_file(out)
    also = {**(settings or {}), "control": {"targets": control, "seed": seed}}
    return (
        generate(session, own, out=out, settings=settings, **named),
        generate(session, wrong, out=beside, settings=also, **named),
    )


def control_file(out: Path) -> Path:
    """Where `design_control` leaves the second set."""
    return out.with_name(f"{out.stem}.control{out.suffix}")


def control_rows(rows: Sequence[Row], control: Literal["shuffled", "other"] = "shuffled", seed: int = 0) -> list[Row]:
    """The rows with wrong targets. "shuffled": the row's own residues in random order, by (seed, number of the row), so
    that length and composition are the same. "other": the next row's target that is not the same, round the end.

    Raises ConfigError for another word, DataError for a row without a target and where all have the same.
    """
    if control not in ("shuffled", "other"):
        raise ConfigError(f"control: {control!r}, expected shuffled or other")
    targets = [row.get("target") for row in rows]
    for k, (row, target) in enumerate(zip(rows, targets, strict=True)):
        if not isinstance(target, str) or not target:
            raise DataError(f"{row.get('where', f'row {k}')}: target: {target!r}, expected residues for a control")
    wrong = []
    for k, target in enumerate(map(str, targets)):
        if control == "shuffled":
            if len(set(target)) == 1:
                where = rows[k].get("where", f"row {k}")
                raise DataError(f"{where}: target: one kind of residue, whose order cannot be shuffled; use other")
            wrong.append(permuted(target, k, seed))
        else:
            others = (str(targets[(k + i) % len(targets)]) for i in range(1, len(targets)))
            wrong.append(next((other for other in others if other != target), ""))
            if not wrong[-1]:
                raise DataError("control: all rows have the same target, so there is no other one; use shuffled")
    return [{**row, "target": target} for row, target in zip(rows, wrong, strict=True)]


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

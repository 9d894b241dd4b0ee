"""The page and the table of a closed-loop evaluation."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from mmdiff.tasks.vla.rollout import report as report_module
from mmdiff.tasks.vla.rollout.report import Film, costs, rates_table, summary, write_vla_report
from mmdiff.tasks.vla.rollout.rollout import Rollout
from mmdiff.tasks.vla.rollout.success import rates


def figures() -> dict[str, Any]:
    full = [Rollout("a<b", s, s < 3, 10) for s in range(4)] + [Rollout("c", s, False, 9) for s in range(4)]
    swapped = [Rollout("c", s, s == 0, 9) for s in range(4)]
    told = {"latency_ms": {"p50": 12.34, "p95": 20.0, "n": 5}, "control_hz": 81.0, "forwards_per_chunk": 5.0}
    return {**rates(full), "ablations": {"swapped": rates(swapped)}, **told, "notes": ["noted"]}


def test_table() -> None:
    columns, rows = rates_table(figures())
    assert columns == ["all", "a<b", "c"] and list(rows) == ["policy", "another task's instruction"]
    assert [of and of["success"] for of in rows["policy"]] == [0.375, 0.75, 0.0]
    assert [of and of["success"] for of in rows["another task's instruction"]] == [0.25, None, 0.25]
    one = rates([Rollout("a", 0, True, 5)])
    assert rates_table(one) == (["a"], {"policy": [one["by_task"]["a"]]})


def test_summary_as_text() -> None:
    lines = summary(figures()).splitlines()
    assert len({line.rindex("]") for line in lines[1:3]}) == 1 and len(lines) == 7
    assert lines[0].split() == ["all", "a<b", "c"]
    assert re.split(r"\s{2,}", lines[1]) == ["policy", "0.38 [0.14, 0.69]", "0.75 [0.30, 0.95]", "0.00 [0.00, 0.49]"]
    assert re.split(r"\s{2,}", lines[2])[2] == "–"
    assert lines[3:] == [
        "latency per chunk: 12.3 ms (p50), 20.0 ms (p95), one robot",
        "control frequency: 81.0 actions per second, one robot",
        "forwards per chunk: 5.0",
        "noted",
    ]
    assert costs({}) == {}


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    film = Film("a<b", "go <there>", 7, True, 12, ("videos/x.gif",), b"GIF89a")
    extra = {"Bins": {"32": {"success": 0.5, "n": 1200}, "256": {"success": 0.25}}}
    page = write_vla_report(
        tmp_path / "report.html", title="T & U", figures=figures(), films=[film], notes=["first"], tables=extra,
        plots=[("Plot", "data:image/png;base64,AAAA")], curves="data:image/png;base64,BBBB",
    ).read_text()  # fmt: skip
    assert "T &amp; U" in page and "a&lt;b" in page and "go &lt;there&gt;" in page and "<there>" not in page
    assert f"data:image/gif;base64,{base64.b64encode(b'GIF89a').decode()}" in page
    assert page.index("first") < page.index("noted")
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)"', page)) and "href" not in page
    assert page.count('src="data:image/png') == 3  # bars, curves, plot
    assert "0.75</span>" in page and "0.30–0.95" in page and '"3 of 4 episodes, 10 steps to success"' in page
    assert "1,200" in page and "AAAA" in page and "BBBB" in page


def test_lines_break_at_the_width_of_a_phone(tmp_path: Path) -> None:
    """No rule of the style keeps a paragraph on one line or asks for two columns; tables scroll by themselves."""
    root = Path(report_module.__file__).parents[3]
    for file in (root / "mmdiff/evaluation").glob("*.html"):
        assert not re.search(r"columns: \d+;", file.read_text()), file
    for file in [*(root / "mmdiff/evaluation").glob("*.html"), Path(report_module.__file__).with_name("report.html")]:
        style = file.read_text().partition("block style")[2].partition("{% endblock")[0]
        for selectors, _ in re.findall(r"([^{}]+)\{([^{}]*white-space: (?:nowrap|pre)[^{}]*)\}", style):
            assert all(re.search(r"\btd\b", one) for one in selectors.split(",")), f"{file}: {selectors}"

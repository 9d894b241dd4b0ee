"""The site: every page is in its navigation, it is built without a warning, and nothing of it comes from elsewhere."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from paths import ROOT

import mmdiff
import mmdiff.protocols

PAGES = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))


class Plain(yaml.SafeLoader):
    """mkdocs.yml without the one function that it names."""


Plain.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
SETTINGS: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Plain)


def leaves(node: Any) -> Iterator[str]:
    """The pages of a navigation."""
    if isinstance(node, str):
        yield node
    else:
        for child in node.values() if isinstance(node, dict) else node:
            yield from leaves(child)


def test_every_page_is_in_the_navigation_once() -> None:
    named = Counter(leaves(SETTINGS["nav"]))
    assert max(named.values()) == 1
    inside = {name for name in named if not name.startswith("repository/")}
    assert inside == set(PAGES), "name the page under `nav` of mkdocs.yml"
    for name in named.keys() - inside:
        assert (ROOT / name.removeprefix("repository/")).is_file()


def test_the_reference_has_every_public_name() -> None:
    named = re.findall(r"^::: mmdiff\.(\w+)$", (ROOT / "docs/api/index.md").read_text(encoding="utf-8"), re.M)
    assert sorted(named) == sorted(mmdiff.__all__)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
@pytest.mark.needs("mkdocs")
@pytest.mark.needs("mkdocstrings")
def test_the_site_needs_nothing_from_elsewhere(site: Path) -> None:
    loads = re.compile(r"""<(?:script|img|iframe|source|video|audio)\b[^>]*?\ssrc=["']?([^"'\s>]+)""")
    sheets = re.compile(r"""<link\b[^>]*?\shref=["']?([^"'\s>]+)""")
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for address in [*loads.findall(text), *sheets.findall(text)]:
            if not address.startswith("data:"):
                base = site if page.name == "404.html" else page.parent
                target = base / address.removeprefix("/").split("?")[0].split("#")[0]
                assert target.exists(), f"{page.relative_to(site)}: {address}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"""(url\(|@import)\s*["']?(https?:)?//""", sheet.read_text(encoding="utf-8")), sheet.name


@pytest.mark.slow
@pytest.mark.needs("mkdocs")
@pytest.mark.needs("mkdocstrings")
def test_the_site_can_be_searched_from_disk(site: Path) -> None:
    index = (site / "search/search_index.js").read_text(encoding="utf-8")
    assert "masked positions of a canvas" in index and "def test_numbers_of_blocks" not in index  # no listings
    assert "iframe-worker.js" in (site / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.needs("mkdocs")
@pytest.mark.needs("mkdocstrings")
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_finds_pages_without_a_network(site: Path) -> None:
    """Opened from disk, behind a proxy that is not there."""
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--proxy-server=127.0.0.1:9"]
    address = f"{(site / 'index.html').as_uri()}?q=EntropyBound"
    done = subprocess.run(
        [*browser, "--virtual-time-budget=20000", "--dump-dom", address], capture_output=True, text=True, timeout=120
    )
    results = re.findall(r'href="[^"]*/([\w-]+)\.html[^"]*" class="md-search-result__link"', done.stdout)
    assert {"sampling", "which-sampler"} <= set(results)


@pytest.mark.slow
@pytest.mark.needs("mkdocs")
@pytest.mark.needs("mkdocstrings")
def test_links_out_of_docs_lead_to_pages_of_the_site(site: Path) -> None:
    """On the forge they lead to the file itself; `test_docs.py` looks at that."""
    page = (site / "vqa.html").read_text(encoding="utf-8")
    assert 'href="repository/mmdiff/evals/lmms_eval.py.html"' in page
    assert "lmms-eval" in (site / "repository/mmdiff/evals/lmms_eval.py.html").read_text(encoding="utf-8")
    assert 'href="../docs/' not in (site / "repository/ARCHITECTURE.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.needs("mkdocs")
@pytest.mark.needs("mkdocstrings")
def test_the_reference_shows_signatures_and_docstrings(site: Path) -> None:
    interfaces = (site / "api/protocols.html").read_text(encoding="utf-8")
    for name, value in vars(mmdiff.protocols).items():
        if inspect.isclass(value) and value.__module__ == "mmdiff.protocols":
            assert f'id="mmdiff.protocols.{name}"' in interfaces, name
    assert 'id="mmdiff.Session.predict"' in (site / "api/index.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.needs("PIL")
def test_the_picture_of_the_readme_is_of_runs(tmp_path: Path) -> None:
    """Trained anew, the models fill the same canvases: what the pages under start/ teach is learned."""
    script = [sys.executable, str(ROOT / "benchmarks/learning/unmasking.py"), "--svg", str(tmp_path / "new.svg")]
    done = subprocess.run(
        script, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-2000:]

    for file in (tmp_path / "new.svg", ROOT / "docs/unmasking.svg"):
        shown = Counter(re.findall(r'class="token">(.*?)<', file.read_text(encoding="utf-8")))
        assert shown["blue"] == 1 and shown["says"] and shown["in"]  # the answer, at the last step; the grammar
        assert shown["C"] > 6 and shown["H"] > 6  # given at all six lines, and filled in where a finger has another one

"""The site holds whatever its pages link to, so that no link needs the repository or a network. Long names may break.

Pages are written for the forge, where a link may lead out of `docs/`. The site has a page under `repository/` for each
file that is linked so, and for those that these link to: Markdown as it is, other text as a listing.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
FENCED = re.compile(r"^```.*?^```$", re.M | re.S)
CELL = re.compile(r"(?<=<td>).*?(?=</td>)", re.S)
CODE = re.compile(r"(?<=<code>).*?(?=</code>)", re.S)
NAME = re.compile(r"(?<=\w)([./_])(?=\w)")
FOLDER = "repository"
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"


def targets(text: str, file: Path) -> list[Path]:
    """Returns the files that a Markdown text links to; `file` is the one that it stands in."""
    return [(file.parent / link).resolve() for link in LINK.findall(FENCED.sub("", text))]


def address(target: Path, docs: Path) -> str:
    """Returns the page of the site that a file has: `vqa.md`, `repository/mmdiff/session.py.md`."""
    if target.is_relative_to(docs):
        return target.relative_to(docs).as_posix()
    name = f"{FOLDER}/{target.relative_to(docs.parent).as_posix()}"
    return name if name.endswith(".md") else f"{name}.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file outside `docs/` that a page leads to, and for those that the navigation names."""
    docs = Path(config.docs_dir).resolve()
    queue = [Path(str(file.abs_src_path)) for file in files.documentation_pages()]
    queue += [docs.parent / name for name in re.findall(rf"\b{FOLDER}/([^'\"]+\.md)\b", str(config.nav))]
    seen = set()
    while queue:
        file = queue.pop()
        if file in seen or not file.is_file():  # what does not exist is reported by mkdocs itself
            continue
        seen.add(file)
        text = file.read_text(encoding="utf-8") if file.suffix in (".md", ".py", "") else ""
        if not file.is_relative_to(docs):
            if file.suffix != ".md":
                listing = f"````{file.suffix[1:]}\n{text}````\n"
                text = f"{UNSEARCHED}# {file.relative_to(docs.parent).as_posix()}\n\n{listing}"
            files.append(File.generated(config, address(file, docs), content=text))
        if file.suffix == ".md":
            queue += targets(text, file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the forge into links of the site."""
    docs, here = Path(config.docs_dir).resolve(), page.file.src_uri
    outside = here.startswith(f"{FOLDER}/")
    file = docs.parent / here.removeprefix(f"{FOLDER}/") if outside else docs / here

    def site(match: re.Match[str]) -> str:
        target = (file.parent / match[1]).resolve()
        if not target.is_relative_to(docs.parent) or not outside and target.is_relative_to(docs):
            return match[1]
        return os.path.relpath(address(target, docs), Path(here).parent).replace(os.sep, "/")

    parts, end = [], 0
    for block in FENCED.finditer(markdown):  # code stays as it is
        parts += [LINK.sub(site, markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, LINK.sub(site, markdown[end:])])


def on_page_content(html: str, **_: object) -> str:
    """Let names in the cells of tables break behind a dot, a slash or an underscore; `\\|` is the forge's `|`."""

    def breaking(cell: re.Match[str]) -> str:
        return CODE.sub(lambda code: NAME.sub(r"\1<wbr>", code[0].replace("\\|", "|")), cell[0])

    return CELL.sub(breaking, html)

"""Single mutations of files, trees of JSON or YAML, text and command lines. All are drawn from a `random.Random`.

A mutation changes a folder in place and returns a sentence about what it did, which a report of a fault repeats.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import yaml

PAYLOADS = ["fuzz_payload.payload", "os.system", "subprocess.call", "os.abort", "builtins.exec", "pytest.main"]
NUMBERS = [-1, 0, 1, 2, 10**6, 2**31, 2**63, -(2**63), 1e308, 0.5, -0.5, float("nan"), float("inf"), 1e-300]
TEXTS = [
    "",
    " ",
    "x" * 5000,
    "\ud800",
    "a\x00b",
    "\u2028",
    "\x85",
    "\ufeff",
    "../../etc/passwd",
    "/dev/zero",
    "/etc",
    "${oc.env:HOME}",
    "A" * 100 + "=" * 2,
    "<script>",
    "%s%n{}",
    "\x1b[31m",
]
VALUES: list[Any] = [None, True, False, [], {}, [[]], [None], {"a": {"b": 1}}, *NUMBERS, *TEXTS]

Mutation = Callable[[Path, Random], str]


# Bytes


def bytes_of(file: Path, dice: Random) -> str:
    content = bytearray(file.read_bytes())
    size = len(content)
    at = dice.randrange(size) if size else 0
    end = min(size, at + dice.choice([1, 2, 4, 16, 200, 5000]))
    kind = dice.choice(["flip", "set", "zero", "cut", "drop", "double", "insert", "swap", "size", "append", "head"])
    if kind == "flip" and size:
        content[at] ^= 1 << dice.randrange(8)
    elif kind == "set" and size:
        content[at] = dice.choice([0, 255, 127, 128, 10, 34, 123, dice.randrange(256)])
    elif kind == "zero":
        content[at:end] = bytes(end - at)
    elif kind == "cut":
        del content[at:]
    elif kind == "drop":
        del content[at:end]
    elif kind == "double":
        content[at:at] = content[at:end]
    elif kind == "insert":
        content[at:at] = dice.randbytes(dice.choice([1, 4, 64]))
    elif kind == "swap" and size:
        other = dice.randrange(size)
        content[at], content[other] = content[other], content[at]
    elif kind == "size" and size > 12:  # a length or count in a header
        at = dice.randrange(min(size - 8, 400))
        content[at : at + 4] = struct.pack(dice.choice("<>") + "I", dice.choice([0, 1, 2**16, 2**31 - 1, 2**32 - 1]))
    elif kind == "append":
        content += dice.choice([b"\n", bytes(100), bytes(content[:1000]), b"\xff" * 10])
    else:
        content[:1] = b"\xef\xbb\xbf" + content[:1]
    renew(file, bytes(content))
    return f"{kind} at {at} of {size}"


def renew(file: Path, content: bytes) -> None:
    """Write a file anew: hard links to the old one keep what they had."""
    file.unlink()
    file.write_bytes(content)


# Files


def file_of(file: Path, dice: Random) -> str:
    kind = dice.choice(["gone", "empty", "endless", "pipe", "folder", "loop", "copy of another", "unreadable link"])
    others = [p for p in file.parent.rglob("*") if p.is_file() and p != file]
    content = dice.choice(others).read_bytes() if others else b""
    file.unlink()
    if kind == "empty":
        file.touch()
    elif kind == "endless":
        file.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "loop":
        file.symlink_to(file.name)
    elif kind == "copy of another":
        file.write_bytes(content)
    elif kind == "unreadable link":
        file.symlink_to("nowhere")
    return kind


# Trees


def keys_of(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of a tree, the root left out."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from keys_of(value, (*path, key))


def tree_of(tree: Any, dice: Random, *, payloads: bool) -> tuple[Any, str]:
    """The tree with one change: another value, a field that is missing, renamed or new, a node that names a payload."""
    places = list(keys_of(tree))
    kinds = ["value", "value", "value", "drop", "rename", "new", "swap", "deep", *(["payload"] * 4 if payloads else [])]
    kind = dice.choice(kinds)
    if not places or (kind == "value" and dice.random() < 0.03):
        return dice.choice(VALUES), "another root"
    path = dice.choice(places)
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    key, where = path[-1], ".".join(map(str, path))
    if kind == "drop":
        del parent[key]
    elif kind == "rename" and isinstance(parent, dict):
        parent[misspelt(str(key), dice)] = parent.pop(key)
    elif kind == "new" and isinstance(parent, dict):
        parent[dice.choice(["x", "target", "weights", "img", "__class__", "", "0"])] = dice.choice(VALUES)
    elif kind == "swap":
        other = tree
        for k in dice.choice(places):
            other = other[k]
        parent[key] = json.loads(json.dumps(other))
    elif kind == "deep":
        nested: Any = 1
        for _ in range(dice.choice([50, 3000])):
            nested = [nested]
        parent[key] = nested
    elif kind == "payload":
        target = dice.choice(PAYLOADS)
        forms = [target, {"target": target}, {"target": target, "command": "true"}, [{"target": target}]]
        parent[key] = dice.choice(forms)
        where += f" = {parent[key]!r}"
    else:
        kind = "value"
        parent[key] = dice.choice(VALUES)
        where += f" = {str(parent[key])[:40]!a}"
    return tree, f"{kind} {where}"


def tree_file(file: Path, dice: Random, *, payloads: bool) -> str:
    try:
        text = file.read_text(encoding="utf-8")
        tree = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return bytes_of(file, dice)
    tree, what = tree_of(tree, dice, payloads=payloads)
    renew(file, dumped(tree, file.suffix).encode("utf-8", "surrogatepass"))
    return what


def dumped(tree: Any, suffix: str) -> str:
    """JSON is YAML too, and so deep a tree that neither library writes it is written by hand."""
    try:
        return json.dumps(tree, ensure_ascii=suffix != ".yaml")
    except RecursionError:
        return "[" * 3000 + "]" * 3000


def misspelt(word: str, dice: Random) -> str:
    if len(word) < 2:
        return word + "x"
    i = dice.randrange(len(word) - 1)
    return dice.choice(
        [
            word[:i] + word[i + 1 :],
            word[: i + 1] + word[i:],
            word[:i] + word[i + 1] + word[i] + word[i + 2 :],
            word + "s",
        ]
    )


# Text


def text_of(file: Path, dice: Random) -> str:
    """One line of a text file is changed, by characters that readers stumble over."""
    lines = file.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    i = dice.randrange(len(lines))
    kind = dice.choice(["insert", "replace", "drop", "double", "join", "cr", "case", "swap", "long"])
    if kind == "insert":
        at = dice.randrange(len(lines[i]) + 1)
        lines[i] = lines[i][:at] + dice.choice([*TEXTS, "\t", ",", '"', ">", "#", "1", "-", "*"]) + lines[i][at:]
    elif kind == "replace":
        lines[i] = dice.choice(TEXTS)
    elif kind == "drop":
        del lines[i]
    elif kind == "double":
        lines.insert(i, lines[i])
    elif kind == "join" and i + 1 < len(lines):
        lines[i : i + 2] = [lines[i] + lines[i + 1]]
    elif kind == "cr":
        lines = [line + "\r" for line in lines]
    elif kind == "case":
        lines[i] = lines[i].swapcase()
    elif kind == "swap":
        j = dice.randrange(len(lines))
        lines[i], lines[j] = lines[j], lines[i]
    else:
        lines[i] = lines[i] * dice.choice([2, 500])
    renew(file, "\n".join(lines).encode("utf-8", "surrogatepass"))
    return f"{kind} in line {i + 1}"


# Words of a command line


def words_of(words: Sequence[str], dice: Random) -> tuple[list[str], str]:
    out, i = list(words), dice.randrange(len(words))
    kind = dice.choice(["drop", "double", "misspell", "value", "option", "swap", "text"])
    if kind == "drop":
        del out[i]
    elif kind == "double":
        out.insert(i, out[i])
    elif kind == "misspell":
        out[i] = misspelt(out[i], dice)
    elif kind == "value":
        key = out[i].partition("=")[0]
        out[i] = f"{key}={dice.choice(VALUES)!s}".replace("\x00", "")
    elif kind == "option":
        out.insert(
            i, dice.choice(["--", "-", "--json", "--trust", "--nope", "--help=1", "-x", "=", "a=", "=b", "x.y=1"])
        )
    elif kind == "swap":
        j = dice.randrange(len(out))
        out[i], out[j] = out[j], out[i]
    else:
        out[i] = dice.choice(TEXTS).replace("\x00", "")
    return out, f"{kind} {words[i]!r}"


# Folders


def folder_of(folder: Path, dice: Random, *, payloads: bool, only: str = "*") -> str:
    """One file of a folder is changed: its bytes, its tree, its lines, or what kind of file it is."""
    file = dice.choice(sorted(p for p in folder.rglob(only) if p.is_file()))
    name = file.relative_to(folder)
    if dice.random() < 0.12:
        return f"{name}: {file_of(file, dice)}"
    if file.suffix in (".json", ".yaml") and dice.random() < 0.75:
        return f"{name}: {tree_file(file, dice, payloads=payloads)}"
    if file.suffix in (".jsonl", ".txt", ".csv", ".fasta", ".fa", ".a3m", ".sto", "") and dice.random() < 0.7:
        return f"{name}: {text_of(file, dice)}"
    return f"{name}: {bytes_of(file, dice)}"


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, symlinks=True)
    return target

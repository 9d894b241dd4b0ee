"""`mmdiff inspect` on folders that somebody made to do harm: one line, exit code 2, nothing run, memory bounded.

All are tried in one process, after a harmless folder has imported what there is to import, so that the most memory it
ever had shows what the worst of them took.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import multimodal
from paths import ROOT

from mmdiff.backbones import load_backbone, new_backbone
from mmdiff.backbones.families.llada import toy_tokenizer
from mmdiff.backbones.family import find_family
from mmdiff.backbones.load import toy_backbone
from mmdiff.commands import cli
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.model.saving import save_model
from mmdiff.sharing.inspection import headers
from mmdiff.sharing.inspection.headers import read_headers
from mmdiff.sharing.inspection.inspect import inspect

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
Damage = Callable[[Path], Any]


def harmless(folder: Path) -> Path:
    torch.manual_seed(0)
    made = new_backbone(tokenizer=toy_tokenizer(), hidden_size=32, layers=2, heads=2, vocab_size=300)
    made.save_pretrained(folder, original_format=True)
    return folder


def head(folder: Path, text: bytes, behind: int = 0, length: int | None = None) -> None:
    first = struct.pack("<Q", len(text) if length is None else length)
    (folder / WEIGHTS).write_bytes(first + text)
    if behind:
        os.truncate(folder / WEIGHTS, len(first) + len(text) + behind)


def tensors(folder: Path, behind: Any = 0, **entries: Any) -> None:
    head(folder, json.dumps(entries).encode(), behind)


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def fields(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def replaced(file: Path, by: Callable[[Path], Any]) -> None:
    file.unlink()
    by(file)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))


def indexed(folder: Path, content: Any) -> None:
    (folder / INDEX).write_text(json.dumps(content))


def key_twice(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.rstrip().removesuffix("}") + ', "d_model": 64}')


MANY = b"[" + b"[]," * 1_600_000 + b"[]]"
DEEP = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
HOSTILE: dict[str, Damage] = {
    # heads of weights
    "no weights": lambda f: (f / WEIGHTS).unlink(),
    "empty weights": lambda f: (f / WEIGHTS).write_bytes(b""),
    "seven bytes": lambda f: (f / WEIGHTS).write_bytes(b"\x10" + bytes(6)),
    "a truncated head": lambda f: os.truncate(f / WEIGHTS, 100),
    "truncated numbers": lambda f: os.truncate(f / WEIGHTS, (f / WEIGHTS).stat().st_size - 1),
    "a head of 2^63 bytes": lambda f: head(f, b"{}", length=2**63),
    "a head of a terabyte, in a sparse file": lambda f: head(f, b"{}", behind=2**41, length=2**40),
    "a head of many lists": lambda f: head(f, MANY),
    "a head of many lists in an entry": lambda f: head(f, b'{"a":' + MANY + b"}"),
    "a head of many tensors": lambda f: tensors(f, **{f"t{i}": entry() for i in range(90_000)}),
    "a deep head": lambda f: head(f, DEEP),
    "a head that is a list": lambda f: head(f, b"[]"),
    "a head that is no text": lambda f: head(f, b"\xff\xfe\x00"),
    "a head with a wide letter": lambda f: head(f, b'{"__metadata__": {"a": "' + "\U0001f600".encode() * 1000 + b"x"),
    "a name twice": lambda f: head(f, b'{"a": 1, "a": 2}'),
    "a name of lines": lambda f: tensors(f, 4, **{"a\nb\x1b[31m": entry()}),
    "half of a surrogate": lambda f: tensors(f, 4, **{"a\ud800": entry()}),
    "a long name": lambda f: tensors(f, 4, **{"a" * 100_000: entry()}),
    "a negative size": lambda f: tensors(f, 4, a=entry(shape=[-1, -1])),
    "a huge size": lambda f: tensors(f, 4, a=entry(shape=[2**62, 2**62])),
    "a size of a thousand digits": lambda f: head(f, b'{"a": ' + b"9" * 5000 + b"}"),
    "a size that is true": lambda f: tensors(f, 4, a=entry(shape=[True])),
    "a size that is 1.0": lambda f: tensors(f, 4, a=entry(shape=[1.0])),
    "a size that is NaN": lambda f: head(f, b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', 4),
    "a hundred axes": lambda f: tensors(f, 4, a=entry(shape=[1] * 100)),
    "a dtype that is a list": lambda f: tensors(f, 4, a=entry(dtype=["F32"])),
    "a dtype that is none": lambda f: tensors(f, 4, a=entry(dtype="F33")),
    "offsets behind the file": lambda f: tensors(f, 4, a=entry(offsets=[2**40, 2**40 + 4])),
    "offsets backwards": lambda f: tensors(f, 4, a=entry(offsets=[4, 0])),
    "tensors over each other": lambda f: tensors(f, 4, a=entry(), b=entry()),
    "a gap": lambda f: tensors(f, 12, a=entry(), b=entry(offsets=[8, 12])),
    "more fields": lambda f: tensors(f, 4, a=entry(code="os.system")),
    "bytes at the end": lambda f: tensors(f, 8, a=entry()),
    "weights that are a folder": lambda f: replaced(f / WEIGHTS, Path.mkdir),
    "weights that are a pipe": lambda f: replaced(f / WEIGHTS, os.mkfifo),
    "weights that never end": lambda f: replaced(f / WEIGHTS, lambda p: p.symlink_to("/dev/zero")),
    "weights that lead nowhere": lambda f: replaced(f / WEIGHTS, lambda p: p.symlink_to("nowhere")),
    "weights that lead to themselves": lambda f: replaced(f / WEIGHTS, lambda p: p.symlink_to(p.name)),
    "pickles": pickled,
    # the index
    "an index out of the folder": lambda f: indexed(f, {"weight_map": {"a": "../../etc/passwd"}}),
    "an index to a neighbour": lambda f: indexed(f, {"weight_map": {"a": "../harmless/model.safetensors"}}),
    "an index to /": lambda f: indexed(f, {"weight_map": {"a": "/etc/passwd"}}),
    "an index to nothing": lambda f: indexed(f, {"weight_map": {"a": "b.safetensors"}}),
    "an index to itself": lambda f: indexed(f, {"weight_map": {"a": INDEX}}),
    "an index to the configuration": lambda f: indexed(f, {"weight_map": {"a": "config.json"}}),
    "an index to ..": lambda f: indexed(f, {"weight_map": {"a": ".."}}),
    "an index to ''": lambda f: indexed(f, {"weight_map": {"a": ""}}),
    "an index with a zero byte": lambda f: indexed(f, {"weight_map": {"a": "a\x00b"}}),
    "an index that is a list": lambda f: indexed(f, []),
    "an index of lists": lambda f: indexed(f, {"weight_map": {"a": ["b"]}}),
    "an index of a list": lambda f: indexed(f, {"weight_map": ["b"]}),
    "an empty index": lambda f: indexed(f, {}),
    "an index of no files": lambda f: indexed(f, {"weight_map": {}}),
    "an index of many lists": lambda f: (f / INDEX).write_bytes(b'{"weight_map":' + MANY + b"}"),
    "a deep index": lambda f: (f / INDEX).write_bytes(DEEP),
    "an index that leads nowhere": lambda f: (f / INDEX).symlink_to("nowhere"),
    # config.json
    "no configuration": lambda f: (f / "config.json").unlink(),
    "an empty configuration": lambda f: (f / "config.json").write_text(""),
    "a configuration that is a list": lambda f: (f / "config.json").write_text("[]"),
    "a configuration of bytes": lambda f: (f / "config.json").write_bytes(b"\xff\x00" * 50),
    "a key twice": key_twice,
    "NaN": lambda f: fields(f, rms_norm_eps=float("nan")),
    "infinity": lambda f: fields(f, rope_theta=float("inf")),
    "a deep configuration": lambda f: (f / "config.json").write_bytes(DEEP),
    "a long configuration": lambda f: (f / "config.json").write_bytes(MANY),
    "a pipe as configuration": lambda f: replaced(f / "config.json", os.mkfifo),
    "an endless configuration": lambda f: replaced(f / "config.json", lambda p: p.symlink_to("/dev/zero")),
    "a configuration that leads nowhere": lambda f: replaced(f / "config.json", lambda p: p.symlink_to("nowhere")),
    "no family": lambda f: fields(f, model_type="no_such"),
    "a family of lines": lambda f: fields(f, model_type="x\n" * 3000),
    "a family that is a list": lambda f: fields(f, model_type=["llada"]),
    "a family in a module of ours": lambda f: fields(f, model_type="../load"),
    "an unknown field": lambda f: fields(f, sliding_windoww=4),
    "what a Llama cannot express": lambda f: fields(f, alibi=True),
    "many layers": lambda f: fields(f, n_layers=10**9),
    "more layers than weights": lambda f: fields(f, n_layers=4000),
    "negative layers": lambda f: fields(f, n_layers=-1),
    "layers as text": lambda f: fields(f, n_layers="2"),
    "wider than the weights": lambda f: fields(f, d_model=2**40, mlp_hidden_size=2**40),
    "a negative width": lambda f: fields(f, d_model=-32),
    "no heads": lambda f: fields(f, n_heads=0),
    "a vocabulary of 2^62": lambda f: fields(f, vocab_size=2**62, embedding_size=2**62),
    "a negative vocabulary": lambda f: fields(f, vocab_size=-1, embedding_size=-1),
    "a mask id of another": lambda f: fields(f, mask_token_id=3),
    "a mask id that is text": lambda f: fields(f, mask_token_id="x"),
    "an end id of 0.5": lambda f: fields(f, eos_token_id=[257, 0.5]),
    "angles of a negative base": lambda f: fields(f, rope_theta=-1.0),
    "angles of base 0": lambda f: fields(f, rope_theta=0),
    "a context of 2^62": lambda f: fields(f, max_sequence_length="many"),
    # the tokenizer
    "a tokenizer of lists": lambda f: (f / "tokenizer.json").write_bytes(MANY),
    "a tokenizer of bytes": lambda f: (f / "tokenizer.json").write_bytes(b"\x00" * 1000),
    "a deep tokenizer": lambda f: (f / "tokenizer.json").write_bytes(DEEP),
    "a tokenizer that is a pipe": lambda f: replaced(f / "tokenizer.json", os.mkfifo),
    "deep settings of a tokenizer": lambda f: (f / "tokenizer_config.json").write_bytes(DEEP),
    "many settings of a tokenizer": lambda f: (f / "tokenizer_config.json").write_bytes(MANY),
    "a link elsewhere": lambda f: (f / "x.txt").symlink_to("nowhere"),
}

RUN = """
import json, os, re, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from mmdiff.commands import cli
from mmdiff.sharing.inspection import light

def most():  # kilobytes; not those of getrusage, which begin with the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

os.chdir({home!r})
plain, light.look = light.look, lambda *_: None
assert cli.main(["inspect", "harmless"]) == 0  # imports torch, which some of what is hostile is refused with
light.look = plain
before = most()
for name in json.loads(Path("names.json").read_text()):
    sys.stderr.write("\\x1e" + name + "\\x1f")
    sys.stderr.flush()
    at = most()
    code = cli.main(["inspect", name])
    sys.stderr.write("\\x1f" + str(code) + "\\x1f" + str(most() - at))
sys.stderr.write("\\x1e")
print(most() - before)
"""


Judged = tuple[dict[str, tuple[int, str]], int, Path]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """By folder: exit code and stderr of the command; kilobytes that all of them took; where they lie."""
    home = tmp_path_factory.mktemp("hostile")
    harmless(home / "harmless")
    for name, damage in HOSTILE.items():
        damage(copied(home / "harmless", home / name.replace("/", "|")))
    return judge(home, [name.replace("/", "|") for name in HOSTILE])


def copied(harmless: Path, folder: Path) -> Path:
    """A copy of a folder, with code in it that must not run. Returns where its weights lie."""
    shutil.copytree(harmless, folder)
    where = folder / "model" if (folder / "model").is_dir() else folder
    for name in ("modeling_llada.py", "configuration_llada.py"):
        (where / name).write_text("import os; os.mkdir('ran')\n")
    return where


def judge(home: Path, names: list[str]) -> Judged:
    (home / "names.json").write_text(json.dumps(names))
    code = RUN.format(paths=[str(ROOT)], home=str(home))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    out = {}
    for part in done.stderr.split("\x1e")[1:-1]:
        name, text, code, _ = part.split("\x1f")
        out[name] = (int(code), text)
    return out, int(done.stdout.splitlines()[-1]), home


def link_out(folder: Path) -> None:
    """Weights that are those of another folder, by a link."""
    (folder / WEIGHTS).rename(folder.parent / f"{folder.name}.outside")
    (folder / WEIGHTS).symlink_to(folder.parent / f"{folder.name}.outside" / "x")


KINDS = ["llada_moe", "llada2_moe", "esm", "bert", "modernbert", "diffusion_gemma", "GSAI-ML/LLaDA-V", "a run"]
OF_ALL = [name for name in HOSTILE if name not in (
    "an unknown field", "what a Llama cannot express", "many layers", "more layers than weights", "negative layers",
    "layers as text", "wider than the weights", "a negative width", "no heads", "a vocabulary of 2^62", "a key twice",
    "a negative vocabulary", "a mask id of another", "a mask id that is text", "an end id of 0.5", "infinity",
    "angles of a negative base", "angles of base 0", "a context of 2^62", "a link elsewhere", "no family",
    "a family of lines", "a family that is a list", "a family in a module of ours", "a head of many tensors",
) and "tokenizer" not in name]  # fmt: skip
"""What is hostile in folders of any kind: all but fields that LLaDA calls so."""
FIELDS_OF_ALL: dict[str, Damage] = {
    "a width of 2^40": lambda f: described(f, hidden_size=2**40, dim=2**40, d_model=2**40),
    "a negative width": lambda f: described(f, hidden_size=-32, dim=-32, d_model=-32),
    "a billion layers": lambda f: described(f, num_hidden_layers=10**9, n_layers=10**9),
    "4000 layers": lambda f: described(f, num_hidden_layers=4000, n_layers=4000),
    "no heads": lambda f: described(f, num_attention_heads=0, n_heads=0, n_layers=-1),
    "a vocabulary of 2^62": lambda f: described(f, vocab_size=2**62),
    "a million experts": lambda f: described(f, num_experts=10**6, n_layers=-1, vocab_size=-1),
    "a family in a module of ours": lambda f: described(f, model_type="../load"),
    "a link out of the folder": link_out,
}


def described(folder: Path, **values: Any) -> None:
    """Overwrite those of the fields that a configuration has, at whatever depth."""
    file = next(at for at in (folder / "backbone/config.json", folder / "config.json") if at.is_file())
    raw = json.loads(file.read_text())
    for fields in (raw, raw.get("text_config", {})):
        fields.update({name: value for name, value in values.items() if name in fields})
    file.write_text(json.dumps(raw))


def of_kind(kind: str, folder: Path) -> None:
    torch.manual_seed(0)
    if kind in multimodal.NAMES:
        multimodal.write_folder(folder, kind)
    elif kind == "a run":
        save_model(MMDiff(toy_backbone("GSAI-ML/LLaDA-8B-Base")), folder / "model")
    else:
        toy_backbone(next(iter(find_family(kind).PUBLISHED))).save_pretrained(folder, original_format=True)


@pytest.fixture(scope="module")
def kinds_judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    home, names = tmp_path_factory.mktemp("kinds"), []
    harmless(home / "harmless")
    for kind in KINDS:
        plain = home / f"{kind.replace('/', '|')}, as it was"
        plain.mkdir()
        of_kind(kind, plain)
        for name, damage in {**{n: HOSTILE[n] for n in OF_ALL}, **FIELDS_OF_ALL}.items():
            names.append(f"{kind}, {name}".replace("/", "|"))
            damage(copied(plain, home / names[-1]))
    return judge(home, names)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_folder_is_refused_in_one_line(kind: str, kinds_judged: Judged) -> None:
    found, kilobytes, home = kinds_judged
    for name, (code, text) in found.items():
        if name.startswith(f"{kind}, ".replace("/", "|")):
            one = text.startswith("mmdiff: error: ") and text.count("\n") == 1 and len(text) < 1500
            assert code == 2 and one, (name, code, text)
    assert not list(home.rglob("ran")) and kilobytes < 250_000


@pytest.mark.parametrize("name", HOSTILE)
def test_one_line_and_exit_code_2(name: str, judged: Any) -> None:
    code, text = judged[0][name.replace("/", "|")]
    assert code == 2 and text.startswith("mmdiff: error: ") and text.count("\n") == 1 and len(text) < 1500, text


def test_nothing_ran_and_little_memory_was_taken(judged: Any) -> None:
    _, kilobytes, home = judged
    assert not list(home.rglob("ran")) and kilobytes < 200_000


def test_lines_name_what_is_wrong(judged: Any) -> None:
    lines = {name: text for name, (_, text) in judged[0].items()}
    for name, part in {
        "an unknown field": "sliding_windoww: llada has no such field",
        "what a Llama cannot express": "alibi: True has no Llama equivalent, expected False",
        "pickles": "pickled weights are refused",
        "an index out of the folder": "names '../../etc/passwd', which is not a file of the folder",
        "a key twice": "a key twice: 'd_model'",
        "NaN": "not JSON: NaN is no number of it",
        "more layers than weights": "asks for a larger model than the weights there are of",
        "tensors over each other": "tensors overlap, or leave bytes between them",
        "truncated numbers": "follow its head",
        "a huge size": "4 bytes, expected",
        "an index to a neighbour": "which is not a file of the folder",
    }.items():
        assert part in lines[name], lines[name]


def test_code_of_a_folder_is_named_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    harmless(tmp_path)
    (tmp_path / "modeling_llada.py").write_text("import os; os.mkdir('ran')\n")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_x.X", None]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "tokenization_x.py").write_text("import os; os.mkdir('ran')\nclass X: ...\n")
    code = cli.main(["inspect", str(tmp_path), "--json"])
    out = capsys.readouterr().out
    assert code == 2 or "modeling_llada.LLaDAModelLM" in json.loads(out.splitlines()[-1])["code"]
    assert not Path("ran").exists() and not list(tmp_path.rglob("ran"))


def test_ids_that_a_folder_reserves_stand_in_its_table(tmp_path: Path) -> None:
    """A table grows for the ids that a caller asks for, not by what is in a stranger's configuration."""
    fields(harmless(tmp_path), reserve=[1])
    assert "reserve is '[1]', expected {name: how many}" in inspect(tmp_path)["problems"][0]
    fields(tmp_path, reserve={"action": 10**12})
    assert "reserve: 1000000000000 ids, but" in inspect(tmp_path)["problems"][0]
    with pytest.raises(ConfigError, match=r"reserve: 1000000000000 ids, but \d+ rows of the 300 are free"):
        load_backbone(tmp_path)
    assert load_backbone(tmp_path, reserve={"action": 500}).vocab_size > 600


@pytest.mark.parametrize("size", [-4, -0.5])
def test_blocks_have_a_size(size: float, tmp_path: Path) -> None:
    toy_backbone("JetLM/SDAR-1.7B-Chat").save_pretrained(tmp_path, original_format=True)
    fields(tmp_path, block_size=size)
    for look in (inspect, load_backbone):
        with pytest.raises(ConfigError, match="size.*whole number"):
            look(tmp_path)


def test_a_panic_of_another_language_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rust's own report of it goes past Python to the terminal."""
    file = harmless(tmp_path) / "tokenizer.json"
    content = json.loads(file.read_text())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    file.write_text(json.dumps(content))
    assert cli.main(["inspect", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "the tokenizer cannot be read" in err and err.count("\n") == 1


def test_heads_of_all_files_have_one_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "HEAD_BYTES", 220)
    files = []
    for i in range(4):
        tensors(tmp_path, 4, **{f"tensor_{i}": entry()})
        files.append((tmp_path / WEIGHTS).rename(tmp_path / f"{i}.safetensors"))
    assert [h.name for h in read_headers(files[:3])] == ["tensor_0", "tensor_1", "tensor_2"]
    with pytest.raises(ConfigError, match="expected at most 220 in all files"):
        read_headers(files)

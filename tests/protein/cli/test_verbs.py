"""`mmdiff protein ...`: what each verb prints and writes, that it goes on, and that every mistake is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from protein_models import saved

from mmdiff.commands.cli import main
from mmdiff.session import load
from mmdiff.tasks.protein.cli import sampling
from mmdiff.tasks.protein.data.fasta import Fasta, read_fasta, read_sequences
from mmdiff.tasks.protein.design import generate as designs
from mmdiff.tasks.protein.design.control import bounds
from mmdiff.tasks.protein.embed.embeddings import Embeddings, embed
from mmdiff.tasks.protein.evaluate.evaluate import evaluate_model
from mmdiff.tasks.protein.score import sequences as protein_scores
from mmdiff.tasks.protein.score.dms import score_mutants
from mmdiff.tasks.protein.score.sequences import score_sequences

Call = Callable[..., Any]
STEPS = "sampler.steps=3"
NATURAL = ["MKTAYIAKQR", "ACDEFGHIKLMN", "PQRSTVWY", "MKLVAGDE", "WYACDMKTQ", "GGASTLLKDE"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("protein")
    saved(home / "run")
    saved(home / "other", seed=1)
    (home / "deaf").mkdir()
    natural = "".join(f">n{i} of nature\n{s}\n" for i, s in enumerate(NATURAL))
    (home / "n.fasta").write_text(natural)
    (home / "same.fasta").write_text(natural)
    (home / "open.fasta").write_text(">o\nMK__A\n")
    (home / "bad.fasta").write_text(">a\nMKT\n>b\nMK1\n")
    (home / "words.csv").write_text("id,sequence\nmy protein,MK__A\n")
    (home / "pairs.csv").write_text("id,target,binder\np,MKTAYI,ACDEF\nq,LLK,GGS\n")
    (home / "labels.csv").write_text("id,label\n" + "".join(f"n{i},{'ab'[i % 2]}\n" for i in range(len(NATURAL))))
    (home / "scan.csv").write_text("mutant,fitness\nM1A,0.1\nM1C,0.5\nK2A,-1\nK2D,0.2\n")
    (home / "metrics.json").write_text('{"loss": 1}')
    return home


@pytest.fixture(autouse=True)
def in_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """The JSON object of a command that must succeed."""

    def call(*words: Any) -> Any:
        assert main(["protein", *map(str, words), "--json"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Call:
    """What a command that must succeed has on stdout."""

    def printed(*words: Any) -> str:
        assert main(["protein", *map(str, words)]) == 0
        return capsys.readouterr().out

    return printed


def test_generate_is_that_of_python(call: Call, printed: Call, tmp_path: Path) -> None:
    words = ["generate", "run", "--length", "5-9", "--n", 4, "--seed", 3, STEPS]
    found = call(*words)
    rows = [{"id": r["id"], "sequence": "_" * r["length"]} for r in found["records"]]
    assert found["n"] == 4 and {r["length"] for r in found["records"]} <= set(range(5, 10))
    assert found["records"] == designs.generate(load("run", STEPS, "sampler.seed=3"), rows)
    out = tmp_path / "new" / "x.fasta"
    assert call(*words, "--out", out)["n"] == 4
    assert printed(*words) == out.read_text()  # `> x.fasta` is `--out x.fasta`
    assert [r.sequence for r in read_fasta(out)] == [r["sequence"] for r in found["records"]]
    more = call("generate", "run", "--length", "5-9", "--n", 6, "--seed", 3, STEPS)["records"]
    assert more[:4] == found["records"]


def test_templates_and_letters(call: Call) -> None:
    words = ["--template", "MK[3-6]{ILV}C", "--n", 5, "--allow", "3:W", "--forbid", "L", "--trajectory", STEPS]
    for record in call("generate", "run", *words)["records"]:
        sequence = record["sequence"]
        assert sequence[:3] == "MKW" and sequence[-2] in "IV" and sequence[-1] == "C" and "L" not in sequence
        assert record["trajectory"][-1] == sequence and len(record["trajectory"]) == 3


def test_infill_keeps_what_is_given(call: Call) -> None:
    def of(*words: Any, file: str = "n.fasta") -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = call("infill", "run", file, *words, STEPS)["records"]
        return records

    for record, natural in zip(of("--masked", "2-3"), NATURAL, strict=True):
        assert record["sequence"][:1] + record["sequence"][3:] == natural[:1] + natural[3:]
        assert [step > 0 for step in record["steps"]] == [i in (1, 2) for i in range(len(natural))]
    for record, natural in zip(of("--keep", "1,4-5"), NATURAL, strict=True):
        assert [record["sequence"][i] for i in (0, 3, 4)] == [natural[i] for i in (0, 3, 4)]
        assert record["designed"] == len(natural) - 3
    drawn = of("--share", "0.5", "--n", 2)
    assert [r["id"] for r in drawn[:3]] == ["n0/1", "n0/2", "n1/1"]
    assert [r["designed"] for r in drawn] == [round(len(s) / 2) for s in NATURAL for _ in range(2)]
    assert len({tuple(step > 0 for step in r["steps"]) for r in drawn[2:4]}) == 2  # of one record, drawn apart
    for record, natural in zip(of("--scaffold", "2-4,6-7", "--length", "12-15"), NATURAL, strict=True):
        low, high = (part.split("-") for part in record["description"].partition("motif=")[2].split(","))
        assert record["sequence"][int(low[0]) - 1 : int(low[1])] == natural[1:4]
        assert record["sequence"][int(high[0]) - 1 : int(high[1])] == natural[5:7]
        assert 12 <= record["length"] <= 15
    (record,) = of(file="open.fasta")
    assert record["sequence"][:2] + record["sequence"][4:] == "MKA" and record["designed"] == 2


def test_design_beside_its_control(call: Call, tmp_path: Path) -> None:
    words = ["design", "run", "--target", "MKTAYI", "--length", "4-6", "--n", 3, STEPS]
    found = call(*words)
    assert [r["target"] for r in found["records"]] == ["MKTAYI"] * 3
    own = bounds(load("run"), found["records"])
    assert found["bound_own_target"] == pytest.approx(sum(own) / 3, rel=1e-5)
    assert 0 <= found["identity_with_control"] <= 1 and found["bound_shuffled_target"] > 0
    kept = call(*words, "--out", tmp_path / "b.csv")
    assert kept["bound_own_target"] == found["bound_own_target"] and (tmp_path / "b.csv.control.jsonl").is_file()
    again = call("design", "run", "--target", "MKTAYI", "--binder", "ACDEFGHI", "--share", "0.25", "--n", 2, STEPS)
    assert [r["designed"] for r in again["records"]] == [2, 2]


def test_score_is_that_of_python(call: Call, printed: Call, tmp_path: Path) -> None:
    words = ["score", "run", "n.fasta", "--levels", 4]
    found = call(*words)
    direct = list(score_sequences(load("run"), read_sequences("n.fasta"), levels=4))
    assert found["records"] == direct
    assert found["mean_bound"] == pytest.approx(sum(r["bound"] for r in direct) / len(direct))
    lines = printed(*words).splitlines()
    assert lines[0].split("\t") == ["id", "length", "scored", "bound", "bound_nats", "pseudo_perplexity"]
    assert len(lines) == 1 + len(NATURAL)
    assert call(*words, "--out", tmp_path / "s.tsv")["out"] == str(tmp_path / "s.tsv")
    assert (tmp_path / "s.tsv").read_text().splitlines()[0] == lines[0]
    pairs = call("score", "run", "pairs.csv", "--methods", "bound", "--control", "shuffled_target")
    assert [r["id"] for r in pairs["records"]] == ["p", "q"] and "bound" in pairs["records"][0]["control"]


def test_mutants_are_those_of_python(call: Call, tmp_path: Path) -> None:
    words = ["score", "run", "--wild-type", "MKTAYI", "--mutants", "M1A K2A:T3C", "--methods", "masked_marginal"]
    found = call(*words)["mutants"]
    direct = score_mutants(load("run"), "MKTAYI", ["M1A", "K2A:T3C"], "masked_marginal")
    assert [m["masked_marginal"] for m in found] == direct
    assert call(*words, "--out", tmp_path / "m.csv") == {"wild_type": "MKTAYI", "out": str(tmp_path / "m.csv")}
    assert main(["protein", *words, "--out", str(tmp_path / "m.csv")]) == 2  # is there already


@pytest.mark.needs("scipy", "Bio")
def test_a_scan(call: Call) -> None:
    found = call("score", "run", "--scan", "scan.csv", "--methods", "wt_marginal")
    assert found["wild_type"] == "MK" and set(found["columns"]["fitness"]["spearman"]) >= {"wt_marginal", "blosum62"}


@pytest.mark.needs("sklearn")
def test_embed_and_probe(call: Call, printed: Call, tmp_path: Path) -> None:
    found = call("embed", "run", "n.fasta", "--pool", "mean,std", "--out", tmp_path / "e.npz")
    embed(load("run"), read_sequences("n.fasta"), tmp_path / "direct.npz", pool=["mean", "std"])
    assert found == {"records": len(NATURAL), "width": 32, "out": str(tmp_path / "e.npz")}
    assert (Embeddings(tmp_path / "e.npz").stacked() == Embeddings(tmp_path / "direct.npz").stacked()).all()
    told = printed("probe", tmp_path / "e.npz", "labels.csv", "--folds", 2)
    assert told.startswith("classification, 6 rows in 2 folds, which keep 6 groups whole: single sequences")
    assert "shuffled" in told
    grouped = call("probe", tmp_path / "e.npz", "labels.csv", "--folds", 2, "--sequences", "n.fasta")
    assert grouped["kept_whole"] == "clusters of 50 % identity" and "composition" in grouped["scores"]


@pytest.mark.needs("Bio")
def test_eval_is_that_of_python(call: Call, printed: Call, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    words = ["eval", "run", "n.fasta", "--samples", 4, "--motif", "MK__", STEPS, "--report", page]
    found = call(*words)
    direct = evaluate_model(load("run", STEPS), Fasta("n.fasta"), samples=4, motif="MK__")
    assert {**found, "report": None} == json.loads(json.dumps({**direct, "report": None}))
    assert page.is_file() and json.loads(page.with_name("metrics.json").read_text())["bound"] == found["bound"]
    told = printed("eval", "run", "n.fasta", "--samples", 4, "--motif", "MK__", STEPS)
    assert "unigram" in told and "MK··                2  1.0000" in told and len(told.splitlines()) < 40
    assert not Path("run/protein").exists()


# Going on -------------------------------------------------------------------------------------------------------------

RESUMED = {
    "generate": (["generate", "run", "--length", "4-9", "--n", 7, STEPS], designs, "_sample_window", "fasta"),
    "infill": (["infill", "run", "n.fasta", "--share", "0.5", STEPS], designs, "_sample_window", "csv.gz"),
    "score": (["score", "run", "n.fasta", "--levels", 2], protein_scores, "bounds", "csv"),
}


@pytest.mark.parametrize("name", RESUMED)
def test_an_interrupted_command_goes_on(name: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, module, function, ending = RESUMED[name]
    words = [*map(str, words), "--tokens", "40"]
    monkeypatch.setattr(sampling, "WINDOW", 2)
    monkeypatch.setattr(protein_scores, "BATCHES", 1)  # of so many --tokens: little work between two writes
    whole = Path(call(*words, "--out", tmp_path / f"whole.{ending}")["out"])
    inner, calls = getattr(module, function), []

    def killed(*args: Any, **named: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args)
        return inner(*args, **named)

    monkeypatch.setattr(module, function, killed)
    out = tmp_path / f"x.{ending}"
    assert main(["protein", *words, "--out", str(out)]) == 130 and not out.exists()
    lines = out.with_name(out.name + ".jsonl")
    done = len(lines.read_text().splitlines())
    assert 0 < done < len(whole.with_name(whole.name + ".jsonl").read_text().splitlines())
    with open(lines, "ab") as file:
        file.write(b'{"row": 9, "id": "caf\xc3')  # cut off in the middle of a letter
    monkeypatch.setattr(module, function, lambda *args, **named: calls.append(args) or inner(*args, **named))  # type: ignore[func-returns-value]
    call(*words, "--out", out)
    if module is designs:
        rows = [k for args in calls for k, _ in args[1]]
        assert rows == list(range(len(rows)))  # nothing twice
    assert out.read_bytes() == whole.read_bytes()


def test_a_file_of_another_command_is_refused(call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for first, others in (
        (
            ["infill", "run", "n.fasta", "--masked", "2-3", STEPS],
            [
                ["infill", "other", "n.fasta", "--masked", "2-3", STEPS],
                ["infill", "run", "same.fasta", "--masked", "2-3", STEPS],
                ["infill", "run", "n.fasta", "--masked", "2-3", STEPS, "--seed", "1"],
                ["infill", "run", "n.fasta", "--masked", "2-3", "sampler.steps=2"],
                ["infill", "run", "n.fasta", "--masked", "2-4", STEPS],
                ["generate", "run", "--length", "5", STEPS],
            ],
        ),
        (
            ["score", "run", "n.fasta", "--levels", "2"],
            [
                ["score", "other", "n.fasta", "--levels", "2"],
                ["score", "run", "same.fasta", "--levels", "2"],
                ["score", "run", "n.fasta", "--levels", "3"],
                ["score", "run", "n.fasta", "--levels", "2", "--seed", "1"],
            ],
        ),
    ):
        out = str(tmp_path / f"{first[0]}.csv")
        call(*first, "--out", out)
        before = {p: p.read_bytes() for p in tmp_path.iterdir()}
        for words in others:
            assert main(["protein", *words, "--out", out]) == 2
            assert f"{out}.jsonl was written with another " in capsys.readouterr().err
        assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_an_input_that_was_edited_in_place_is_another_one(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Same ids, same lengths, another residue."""
    given = tmp_path / "given.fasta"
    for words in (["infill", "run", given, "--masked", "2-3", STEPS], ["score", "run", given, "--levels", "2"]):
        given.write_text(">a\nMKTAYI\n")
        out = tmp_path / f"{words[0]}.jsonl"
        call(*words, "--out", out)
        given.write_text(">a\nMKTAYL\n")
        assert main(["protein", *map(str, words), "--out", str(out)]) == 2
        assert "was written with another rows.sha256" in capsys.readouterr().err


# Mistakes -------------------------------------------------------------------------------------------------------------

G, F, D, S = ["generate", "run"], ["infill", "run", "n.fasta"], ["design", "run"], ["score", "run"]
L = [*G, "--length", "5"]
REFUSALS: list[tuple[list[str], str]] = [
    (["writ", "run"], 'no verb "writ"'),
    (G, "give a --length (100, 50-400, or a FASTA file with such lengths), or a --template"),
    ([*L, "--template", "MK_"], "give a --length"),
    ([*G, "--length", "0"], "lengths: 0: expected numbers from 1"),
    ([*G, "--length", "x.fa"], "lengths: 'x.fa', expected numbers and ranges, as in 100"),
    ([*G, "--template", "mk_"], "template, position 1: 'm' (did you mean 'M'?)"),
    ([*L, "--n", "0"], 'Invalid value "0" for --n. Must be >= 1.'),
    ([*L, "--n", "-3"], 'Invalid value "-3" for --n. Must be >= 1.'),
    ([*L, "--tokens", "0"], 'Invalid value "0" for --tokens. Must be >= 1.'),
    ([*L, "--seed", "-1"], 'Invalid value "-1" for --seed. Must be >= 0.'),
    ([*L, "--prefix", "a b"], 'Invalid value "a b" for --prefix. Expected one word'),
    ([*L, "--lenght", "5"], "unknown argument '--lenght' (did you mean \"--length\"?)"),
    ([*L, "--allow", "9:A"], "residues 9: expected numbers from 1 to 5"),
    ([*L, "steps=3"], "'steps=3': expected a setting by its dotted key, as in sampler.steps=20"),
    ([*L, "n.fasta"], "unknown argument 'n.fasta', expected settings"),
    ([*L, "sampler.step=3"], 'sampler.step: no such field (did you mean "steps"?)'),
    ([*L, "task.typo=1"], "task.typo: mmdiff.tasks.protein.Protein takes no such argument"),
    ([*L, "--out", "."], "--out: '.' is not the name of a file"),
    ([*L, "--out", ""], "--out: '' is not the name of a file"),
    ([*L, "--out", "x.txt"], "--out: x.txt, expected a name ending in .fa"),
    ([*L, "--out", "n.fasta"], "n.fasta is there already and was not written by this command"),
    ([*L, "--out", "n.fasta/x.fa"], "--out: n.fasta/x.fa cannot be written (n.fasta is a file)"),
    (["generate", "rum", "--length", "5", "--out", "new/x.fa"], "rum: no such folder"),
    (["generate", "deaf", "--length", "5"], "deaf: neither a saved model nor a run with one"),
    (["infill", "run"], "give one file of sequences, not none"),
    ([*F, "open.fasta", "--masked", "1"], "give one file of sequences, not n.fasta and open.fasta"),
    (["infill", "run", "m.fasta", "--masked", "1"], "m.fasta: No such file"),
    (["infill", "run", "bad.fasta", "--masked", "1"], "bad.fasta record 2 (b), line 4, residue 3: '1' is no residue"),
    (["infill", "run", "words.csv"], "words.csv record 1 (my protein): 'my protein' cannot be the id of a FASTA"),
    (F, "n.fasta record 1 (n0): no position is masked (`_`); give --masked, --keep, --share or --scaffold"),
    ([*F, "--masked", "1", "--keep", "2"], "--masked and --keep: give one of them"),
    ([*F, "--masked", "9-10"], "n.fasta record 3 (n2): residues 9-10: expected numbers from 1 to 8"),
    ([*F, "--share", "1.5"], 'Invalid value "1.5" for --share. Must be <= 1.'),
    ([*F, "--masked", "1", "--window", "3"], "--window goes with --share"),
    ([*F, "--scaffold", "1-3"], "--scaffold takes the motif's ranges"),
    ([*F, "--scaffold", "1-3", "--length", "x"], "--length 'x': expected a number or a range, as in 100 or 80-120"),
    ([*F, "--masked", "1", "--gaps", "kep"], "gaps: 'kep' (did you mean \"keep\"?)"),
    ([*D, "--length", "5"], "Parameter --target requires an argument."),
    ([*D, "--target", "mkt", "--length", "5"], "--target: 'mkt', expected residues in upper case, or a file"),
    ([*D, "--target", "MKT"], "give one of --length, --template, or --binder with --share"),
    ([*D, "--target", "MKT", "--binder", "ACD"], "--share is how much of the --binder is sampled anew"),
    (S, "give one file of sequences, not none"),
    ([*S, "open.fasta"], "open.fasta record 1 (o), line 2, residue 3: '_' is a masked position"),
    ([*S, "n.fasta", "--methods", "bond"], "methods: 'bond' (did you mean \"bound\"?)"),
    ([*S, "n.fasta", "--control", "shuffled_target"], "n.fasta record 1 (n0): no target"),
    ([*S, "n.fasta", "--out", "s.fasta"], "--out: s.fasta, expected a name ending in .csv, .tsv, .jsonl"),
    ([*S, "n.fasta", "--wild-type", "MKT"], "--wild-type goes with --scan or --mutants"),
    ([*S, "--mutants", "M1A"], "--mutants goes with the --wild-type"),
    ([*S, "--mutants", "A1M", "--wild-type", "MKT"], "mutant 'A1M': position 1: A, but the wild type has M"),
    ([*S, "--mutants", "M1A", "--wild-type", "MKT", "--out", "x.fa"], "--out: x.fa, expected a name ending in .csv"),
    ([*S, "--scan", "labels.csv"], "labels.csv line 1: no column 'mutant'"),
    (["embed", "run", "n.fasta"], "Parameter --out requires an argument."),
    (["embed", "run", "n.fasta", "--out", ""], "--out: '' is no name"),
    (["embed", "run", "n.fasta", "--out", "e", "--pool", "men"], "pool: 'men' is none (did you mean \"mean\"?)"),
    (["embed", "run", "n.fasta", "--out", "deaf/e", "--layer", "9"], "layer: 9, expected -2 to 1"),
    (["probe", "deaf", "labels.csv"], "deaf: no embeddings that this command wrote"),
    (["probe", "deaf", "labels.csv", "--folds", "1"], 'Invalid value "1" for --folds. Must be >= 2.'),
    (["eval", "run"], "run: a model without a run; give a file of held-out sequences"),
    (["eval", "run", "n.fasta", "--motif", "A1_"], "--motif: residue 2: '1' is none of"),
    (["eval", "run", "n.fasta", "--report", "x.html"], "--report: metrics.json is of something else and would be lost"),
    (["eval", "run", "n.fasta", "--limit", "0"], 'Invalid value "0" for --limit. Must be >= 1.'),
]


@pytest.mark.parametrize(("words", "message"), REFUSALS, ids=lambda value: value if isinstance(value, str) else None)
def test_every_refusal_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path().rglob("*"))
    assert main(["protein", *words]) == 2
    out, err = capsys.readouterr()
    said = err.rpartition("\r")[2]  # behind a bar that came and went
    assert out == "" and said.startswith(f"mmdiff: error: {message}") and err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before  # nothing is made for a command that does nothing

"""`mmdiff asr ...`: what each verb prints and writes, and that every mistake is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from spoken import saved, write_wave

from mmdiff.commands.cli import main
from mmdiff.session import load
from mmdiff.tasks.asr.cli import STRATEGIES
from mmdiff.tasks.asr.ctc import first_pass
from mmdiff.tasks.asr.transcribe import transcribe
from mmdiff.tasks.dialogue.choice import nll

pytestmark = pytest.mark.needs("torchaudio", "soundfile", "jiwer")

TEXTS = ["call one two", "three four", "five", "six seven eight"]
HEARD = ["call one nine", "three", "five five", "six seven eight"]
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, clips, a manifest of them, a Kaldi folder, and hypotheses."""
    home = tmp_path_factory.mktemp("asr")
    saved(home / "run")
    saved(home / "deaf", head=False)
    for n in range(4):
        write_wave(home / f"{n}.wav", 0.4 + 0.3 * n, n)
    write(home / "m.jsonl", *({"audio": f"{n}.wav", "text": text, "id": f"u{n}"} for n, text in enumerate(TEXTS)))
    write(
        home / "drafts.jsonl",
        *({"audio": f"{n}.wav", "text": t, "hypothesis": h} for n, (t, h) in enumerate(zip(TEXTS, HEARD, strict=True))),
    )
    kaldi = home / "kaldi"
    kaldi.mkdir()
    (kaldi / "wav.scp").write_text("".join(f"u{n} {home / f'{n}.wav'}\n" for n in range(4)))
    (kaldi / "text").write_text("".join(f"u{n} {text}\n" for n, text in enumerate(TEXTS)))
    (home / "heard.txt").write_text("\n".join(HEARD) + "\n")
    write(home / "heard.jsonl", *({"id": f"u{n}", "hypothesis": HEARD[n]} for n in (3, 1, 2, 0)))
    nbest = [[[h, -1.0], [t, -1.5]] for t, h in zip(TEXTS, HEARD, strict=True)]
    write(home / "nbest.jsonl", *({"id": f"u{n}", "nbest": list(one)} for n, one in enumerate(nbest)))
    (home / "text.wav").write_text("no sound")
    write_wave(home / "empty.wav", 0.0)
    return home


def write(file: Path, *rows: Any) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(autouse=True)
def in_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """The JSON object of a command that must succeed."""

    def call(*words: Any) -> Any:
        assert main(["asr", *map(str, words), "--json"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def said(result: Any) -> list[Any]:
    return [(r["id"], r.get("first_pass"), r["pred_text"]) for r in result["records"]]


def test_files_are_written_down(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    found = call("transcribe", "run", "3.wav", "0.wav", "sampler.steps=3")["records"]
    assert [r["id"] for r in found] == ["3.wav", "0.wav"] and [r["forwards"] for r in found] == [3, 3]
    session = load("run", "sampler.steps=3")
    direct = transcribe(session, [{"audio": "3.wav"}, {"audio": "0.wav"}])
    assert [r["pred_text"] for r in found] == [r["pred_text"] for r in direct]
    assert main(["asr", "transcribe", "run", "3.wav", "0.wav", "sampler.steps=3"]) == 0
    assert capsys.readouterr().out == "".join(f"{r['id']}\t{r['pred_text']}\n" for r in found)
    timed = call("transcribe", "run", "3.wav", "--word-times")["records"][0]
    assert [w["word"] for w in timed["words"]] == timed["pred_text"].split() != []


def test_manifests_and_kaldi_folders_are_the_same_rows(call: Call) -> None:
    rows = call("transcribe", "run", "--manifest", "m.jsonl")
    assert [r["id"] for r in rows["records"]] == ["u0", "u1", "u2", "u3"]
    assert [r["text"] for r in rows["records"]] == TEXTS
    assert said(rows) == said(call("transcribe", "run", "--manifest", "kaldi", "--seconds", "0.5"))


def test_a_split_of_librispeech_and_any_other_source(call: Call, tmp_path: Path) -> None:
    chapter = tmp_path / "dev" / "7" / "42"
    chapter.mkdir(parents=True)
    for n in range(2):
        (chapter / f"7-42-{n}.flac").write_bytes(Path(f"{n}.wav").read_bytes())
    (chapter / "7-42.trans.txt").write_text("7-42-0 call one two\n7-42-1 three four\n")
    found = call("transcribe", "run", "--manifest", tmp_path / "dev")
    assert [(r["id"], r["text"]) for r in found["records"]] == [("7-42-0", "call one two"), ("7-42-1", "three four")]
    source = "rows.target=mmdiff.tasks.asr.data.librispeech.LibriSpeech"
    named = call("transcribe", "run", source, f"rows.root={tmp_path}", "rows.split=[dev]", "rows.limit=1")
    assert said(named) == said(found)[:1]
    assert len(call("transcribe", "run", "--manifest", "m.jsonl", "rows.limit=3")["records"]) == 3


def test_an_interrupted_command_goes_on(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmdiff.tasks.asr import transcribe as module

    out = tmp_path / "new" / "o.jsonl"
    words = ["transcribe", "run", "--manifest", "m.jsonl", "--seconds", "1.3", "--out", out]
    inner, done = module._records, []

    def killed(*args: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(args[2])
        return inner(*args)

    monkeypatch.setattr(module, "_records", killed)
    assert main(["asr", *map(str, words)]) == 130
    assert len(out.read_text().splitlines()) == len(done[0]) < 4
    monkeypatch.setattr(module, "_records", lambda *args: done.append(args[2]) or inner(*args))  # type: ignore[func-returns-value]
    result = call(*words)
    assert sorted(i for batch in done for i in batch) == [0, 1, 2, 3] and result["out"] == str(out)
    assert said(result) == said(call("transcribe", "run", "--manifest", "m.jsonl"))
    assert [json.loads(line)["row"] for line in out.read_text().splitlines()] == [0, 1, 2, 3]


@pytest.mark.parametrize("file", ["heard.txt", "heard.jsonl"])
def test_drafts_of_a_file_are_corrected(file: str, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["deliberate", "run", "--manifest", "m.jsonl", "--hypotheses", file]
    records = call(*words)["records"]
    assert [r["first_pass"] for r in records] == HEARD
    assert [len(r["canvas"]) for r in records] == [len(h.split()) + 2 for h in HEARD]
    assert main(["asr", *words]) == 0
    assert capsys.readouterr().out.startswith(f"u0\tcall one nine\t->\t{records[0]['pred_text']}\n")
    if file == "heard.txt":
        clips = call("deliberate", "run", *(f"{n}.wav" for n in range(4)), "--hypotheses", file)
        assert [one[1:] for one in said(clips)] == [(r["first_pass"], r["pred_text"]) for r in records]
        assert call("deliberate", "run", "--manifest", "drafts.jsonl")["records"][1]["first_pass"] == "three"


def test_drafts_are_what_the_head_hears_where_there_are_none(call: Call) -> None:
    heard = first_pass(load("run").model, [{"audio": f"{n}.wav"} for n in range(4)])
    found = call("deliberate", "run", "--manifest", "m.jsonl")
    assert [r["first_pass"] for r in found["records"]] == heard
    assert said(found) == said(call("deliberate", "run", "--manifest", "m.jsonl", "--first-pass"))
    given = call("deliberate", "run", "--manifest", "drafts.jsonl", "--first-pass")  # over those of the manifest
    assert [r["first_pass"] for r in given["records"]] == heard


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_opens_its_share(name: str, call: Call) -> None:
    words = ["--manifest", "m.jsonl", "--hypotheses", "heard.txt", "--strategy", name]
    for ratio in (0.25, 0.5):
        records = call("deliberate", "run", *words, "--ratio", ratio)["records"]
        for r in records:
            n = len(r["canvas"])
            opened, forwards = sum(step > 0 for _, step, _ in r["canvas"]), int(n * ratio)
            if name == "semi_autoregressive":
                assert opened == n and r["forwards"] == n
            else:
                probes = {"random": 0, "low_confidence": 1, "leave_one_out": n}[name]
                assert (opened, r["forwards"]) == (forwards, forwards + probes)
    default = call("deliberate", "run", *words)["records"]
    assert all(len(r["canvas"]) for r in default)


def test_among_several_hypotheses_the_likeliest_is_chosen(call: Call, tmp_path: Path) -> None:
    words = ["rescore", "run", "--manifest", "m.jsonl", "--hypotheses", "nbest.jsonl"]
    records = call(*words, "--weight", "0.5", "--out", tmp_path / "r.jsonl")["records"]
    session = load("run")
    for n, record in enumerate(records):
        rows = [{"audio": f"{n}.wav", "text": text} for text in (HEARD[n], TEXTS[n])]
        cost = nll(session.model, session.task, rows)
        total = [-1.0 - 0.5 * cost[0], -1.5 - 0.5 * cost[1]]
        best = 0 if total[0] >= total[1] else 1
        assert record["pred_text"] == rows[best]["text"] and record["first_pass"] == HEARD[n]
        assert record["nbest"][0]["index"] == best
        assert record["nbest"][0]["total"] == pytest.approx(total[best], abs=1e-3)
    kept = (tmp_path / "r.jsonl").read_text()
    assert call(*words, "--weight", "0.5", "--out", tmp_path / "r.jsonl")["records"] == records
    assert (tmp_path / "r.jsonl").read_text() == kept
    first = call(*words, "--weight", "0")["records"]  # the recogniser's own order
    assert [r["pred_text"] for r in first] == HEARD


def test_errors_are_counted(call: Call, tmp_path: Path) -> None:
    report = tmp_path / "pages" / "p.html"
    found = call("eval", "run", "--manifest", "m.jsonl", "--hypotheses", "heard.txt", "--report", report)
    assert {"wer", "wer_low", "wer_high", "cer", "first_pass", "reduction", "paired", "rtf", "n"} <= set(found)
    assert found["first_pass"]["wer"] == 3 / 9 and found["n"] == 4
    assert found["reduction"] == pytest.approx(1 - found["wer"] / (3 / 9))
    assert "data:audio/" in report.read_text() and found["report"] == str(report)
    alone = call("eval", "run", "--manifest", "m.jsonl")
    assert "first_pass" not in alone and "standalone" not in alone
    both = call("eval", "run", "--manifest", "m.jsonl", "--hypotheses", "heard.txt", "--standalone")
    assert both["wer"] == found["wer"] and both["standalone"]["wer"] == alone["wer"]
    assert "first_pass" not in both["standalone"]
    heard = call("eval", "run", "--manifest", "m.jsonl", "--first-pass", "--out", tmp_path / "o.jsonl", "--standalone")
    session = load("run")
    expected = first_pass(session.model, [{"audio": f"{n}.wav"} for n in range(4)])
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [line["first_pass"] for line in lines] == expected and heard["first_pass"]["words"] == 9
    assert (tmp_path / "o.standalone.jsonl").is_file()


@pytest.mark.slow
def test_as_a_module(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", "mmdiff", "asr", "transcribe", "run", "0.wav"],
        capture_output=True,
        text=True,
        cwd=home,
    )
    assert done.returncode == 0 and done.stdout.startswith("0.wav\t")


M = ["--manifest", "m.jsonl"]
REFUSALS = [
    (["transcribe", "run"], "give audio files, or one --manifest"),
    (["transcribe", "run", "0.wav", *M], "give audio files, or one --manifest"),
    (["transcribe", "run", *M, "rows.target=x.Y"], "give --manifest, or rows.target with its arguments"),
    (
        ["transcribe", "run", "0.wav", "rows.limit=1"],
        "rows.limit: a setting of a --manifest, and there are audio files",
    ),
    (["transcribe", "run", *M, "rows.limt=1"], "rows.limt: mmdiff.tasks.asr.data.manifests.Manifest takes no such"),
    (["transcribe", "run", "9.wav"], "9.wav: no such file"),
    (["transcribe", "run", "."], ".: a folder, expected a sound file"),
    (["transcribe", "run", "text.wav"], "text.wav: not a sound file, expected WAV, FLAC, OGG or MP3"),
    (["transcribe", "run", "empty.wav"], "empty.wav: holds no samples"),
    (["transcribe", "run", "0.wav", "1.wav", "0.wav"], "0.wav: given 2 times"),
    (["transcribe", "rum", "0.wav"], "rum: no such folder"),
    (["transcribe", "run", "--manifest", "n.jsonl"], 'n.jsonl: no such file (did you mean "m.jsonl"?)'),
    (["transcribe", "run", "0.wav", "train.seed=1"], "train: a saved model takes settings of `task` and `sampler`"),
    (["transcribe", "run", "0.wav", "sampler.step=1"], 'sampler.step: no such field (did you mean "steps"?)'),
    (["transcribe", "run", "0.wav", "--seconds", "0"], "seconds: 0.0 of sound in a batch, expected more than 0"),
    (
        ["transcribe", "run", "0.wav", "--seconds", "x"],
        'Invalid value for --seconds: unable to convert "x" into float.',
    ),
    (["transcribe", "run", "0.wav", "--out", "."], "--out: '.' is not the name of a file"),
    (["transcribe", "run", "0.wav", "--out", ""], "--out: '' is not the name of a file"),
    (["transcribe", "run", "0.wav", "--out", "0.wav/o"], "--out: 0.wav/o cannot be written (0.wav is a file)"),
    (["transcribe", "run", "0.wav", "--out", "heard.txt"], "heard.txt is there already and was not written by this"),
    (["transcribe", "run", "0.wav", "--strategy", "random"], "unknown argument '--strategy'"),
    (["transcribe", "deaf", "0.wav", "--word-times"], "deaf: word times and a first pass need a CTC head"),
    (["deliberate", "deaf", "0.wav"], "deaf: word times and a first pass need a CTC head"),
    (["deliberate", "run", "0.wav", "--strategy", "randm"], "--strategy: 'randm' (did you mean \"random\"?)"),
    (["deliberate", "run", "0.wav", "--ratio", "0"], "--ratio: 0.0 is not a share above 0 and up to 1"),
    (["deliberate", "run", "0.wav", "--ratio", "1.5"], "--ratio: 1.5 is not a share above 0 and up to 1"),
    (["deliberate", "run", "0.wav", "--ratio", "nan"], "--ratio: nan is not a share above 0 and up to 1"),
    (["deliberate", "run", *M, "--hypotheses", "x.txt"], "x.txt: no such file"),
    (["deliberate", "run", "0.wav", "--hypotheses", "heard.txt"], "heard.txt: 4 hypotheses without ids for 1 rows"),
    (["deliberate", "run", "0.wav", "--hypotheses", "heard.jsonl"], "heard.jsonl: no hypothesis for 1 of 1 rows"),
    (["deliberate", "run", *M, "--hypotheses", "heard.txt", "--layout", "line"], "layout: 'line' (did you mean"),
    (["deliberate", "run", *M, "--hypotheses", "heard.txt", "--first-pass"], "give --hypotheses, or --first-pass"),
    (["rescore", "run", *M], "m.jsonl line 1: no nbest, a list of hypotheses"),
    (["rescore", "run", *M, "--hypotheses", "nbest.jsonl", "--weight", "nan"], "weight: nan, expected a finite number"),
    (["eval", "run"], "eval: give a --manifest, whose transcripts errors are counted against"),
    (["eval", "run", "0.wav"], "eval: give a --manifest, whose transcripts errors are counted against"),
    (["eval", "run", *M, "--standalone"], "--standalone compares with drafts"),
    (["eval", "run", *M, "--report", "."], "--report: '.' is not the name of a file"),
    (["evaluate", "run"], 'no verb "evaluate"'),
]


@pytest.mark.parametrize(("words", "message"), REFUSALS, ids=lambda value: value if isinstance(value, str) else None)
def test_every_refusal_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["asr", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"mmdiff: error: {message}") and err.count("\n") == 1


def test_rows_that_only_partly_have_drafts(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"audio": f"{n}.wav", "text": TEXTS[n], **({"hypothesis": "one"} if n else {})} for n in range(4)]
    write(home / "partly.jsonl", *rows)
    assert main(["asr", "deliberate", "run", "--manifest", "partly.jsonl"]) == 2
    assert capsys.readouterr().err == ("mmdiff: error: 1 of 4 rows have no hypothesis; give all of them, or none\n")
    scored = [{"id": f"u{n}", "nbest": [["one", -1.0], "two"]} for n in range(4)]
    write(home / "mixed.jsonl", *scored)
    assert main(["asr", "rescore", "run", *M, "--hypotheses", "mixed.jsonl"]) == 2
    assert "nbest: 1 of 2 hypotheses have a score, expected all or none" in capsys.readouterr().err


def test_a_file_of_another_command_is_refused(call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "o.jsonl")
    call("transcribe", "run", *M, "--out", out)
    before = Path(out).read_bytes()
    for words in (
        ["transcribe", "run", "0.wav"],
        ["transcribe", "run", *M, "sampler.steps=2"],
        ["transcribe", "deaf", *M],
        ["transcribe", "run", *M, "--word-times"],
        ["deliberate", "run", *M],
        ["rescore", "run", *M, "--hypotheses", "nbest.jsonl"],
    ):
        assert main(["asr", *words, "--out", out]) == 2
        assert f"{out} was written with another " in capsys.readouterr().err
        assert Path(out).read_bytes() == before

"""Windows: every token of every document is predicted once, behind the token that stands before it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from mmdiff.backbones import load_backbone, new_backbone
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.errors import ConfigError, DataError
from mmdiff.model.build import tokenizer_in
from mmdiff.tasks.text.data.windows import Windows
from mmdiff.tasks.text.task import PlainText
from mmdiff.tasks.text.tokenizer import byte_pairs

WORDS = [f"w{n}" for n in range(40)]
TOKENIZER = word_tokenizer(WORDS)
LENGTHS = [3, 1, 17, 0, 5, 9, 1, 30]
EOS = 1


def documents() -> list[dict[str, str]]:
    """Documents of so many words, each word other than its neighbours'."""
    return [{"text": " ".join(WORDS[(7 * d + n) % 40] for n in range(count))} for d, count in enumerate(LENGTHS)]


def expected() -> list[tuple[int, int]]:
    """(token before, token) of all predictions, document by document."""
    out = []
    for row in documents():
        ids = [4 + WORDS.index(word) for word in row["text"].split()]
        out += list(zip([EOS, *ids], [*ids, EOS], strict=True)) if ids else []
    return out


def predictions(windows: Windows) -> list[tuple[int, int]]:
    rows = [windows[i] for i in range(len(windows))]
    return [pair for row in rows for ids in row["pieces"] for pair in zip(ids[:-1], ids[1:], strict=True)]


@pytest.mark.parametrize("length", [2, 3, 5, 8, 64, 500])
@pytest.mark.parametrize("pack", [True, False])
def test_every_token_is_predicted_once_behind_the_one_before_it(length: int, pack: bool) -> None:
    windows = Windows(documents(), TOKENIZER, length, pack)
    assert predictions(windows) == expected()
    sizes = [sum(map(len, windows[i]["pieces"])) for i in range(len(windows))]
    assert max(sizes) <= length and (not pack or set(sizes[:-1]) <= {length})
    if not pack:
        assert all(len(windows[i]["pieces"]) == 1 for i in range(len(windows)))
    assert windows.predicted == len(expected())


def test_a_window_names_its_documents_and_is_the_same_in_another_process() -> None:
    windows, again = Windows(documents(), TOKENIZER, 8), Windows(iter(documents()), TOKENIZER, 8)
    assert [windows[i] for i in range(len(windows))] == [again[i] for i in range(len(again))]
    copy = pickle.loads(pickle.dumps(windows))
    assert copy[2] == windows[2] and len(copy) == len(windows)
    assert windows[0]["where"] == "document 0 to document 1" and windows[len(windows) - 1]["where"] == "document 7"


def test_a_document_that_spells_a_special_token_has_no_end_in_it() -> None:
    tokenizer = byte_pairs([{"text": "aa bb"}], 262)
    row = Windows([{"text": "a<eos>b"}], tokenizer, 64)[0]
    assert row["pieces"][0].count(tokenizer.eos_token_id) == 2  # its begin and its end
    assert tokenizer.decode(row["pieces"][0][1:-1]) == "a<eos>b"


def test_nothing_to_read_and_no_end_token() -> None:
    for rows in ([], [{"text": ""}]):
        with pytest.raises(DataError, match="no documents"):
            Windows(rows, TOKENIZER, 8)
    without: Any = word_tokenizer(WORDS)
    without.eos_token = None
    with pytest.raises(ConfigError, match="end-of-sequence"):
        Windows(documents(), without, 8)


def test_the_tokenizer_of_the_same_texts_is_the_same() -> None:
    rows = [{"text": "the cat sat on the mat"}, {"text": "the dog sat"}]
    first, second = byte_pairs(rows, 300), byte_pairs(rows, 270)
    assert first.get_vocab() == byte_pairs(list(rows), 300).get_vocab() and len(second) == 270
    text = "the cat — ☃"
    assert first.decode(first(text)["input_ids"]) == text
    with pytest.raises(ConfigError, match="at least 259"):
        byte_pairs(rows, 100)


def test_windows_of_a_folders_tokenizer_have_the_words_of_its_model(tmp_path: Path) -> None:
    """A causal model's tokenizer has no mask token, its backbone gives it one; both then count as the same words."""
    plain: Any = word_tokenizer(WORDS)
    new_backbone(family="llama", tokenizer=plain, hidden_size=16, layers=1, heads=2).save_pretrained(tmp_path)
    causal: Any = word_tokenizer(WORDS)
    causal.mask_token = None
    causal.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "mask_token_id"}))
    vocab = load_backbone(tmp_path).vocab
    row = Windows(documents(), str(tmp_path), 8)[0]
    assert PlainText().sample(row, vocab) and tokenizer_in(tmp_path).get_vocab() == vocab.tokenizer.get_vocab()
    with pytest.raises(DataError, match="another tokenizer"):
        PlainText().sample(Windows(documents(), byte_pairs(documents(), 300), 8)[0], vocab)

"""Letters and ids, against transformers' tokenizer and against the ends of an alphabet."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from mmdiff.backbones import new_backbone
from mmdiff.backbones.families import esm
from mmdiff.canvas.vocab import Vocab, word_tokenizer
from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.protein.residues import CANONICAL, LETTERS, Residues, permuted


def vocab(**more: Any) -> Vocab:
    made = {"family": "esm", "tokenizer": esm.tokenizer(), **more}
    return new_backbone(**made, hidden_size=8, layers=1, heads=1).vocab


def test_ids_are_those_of_the_esm_tokenizer_both_ways() -> None:
    """Every letter, alone and in long sequences; the tokenizer adds `<cls>` and `<eos>`, the table does not."""
    residues, tokenizer = Residues(vocab()), esm.tokenizer()
    assert residues.letters == "LAGVSERTIDPKQNFYMHWCXBUZO.-"
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list(residues.letters), n)) for n in (1, 2, 30, 300)]
    many = residues.encode_many(sequences)
    for sequence, ids in zip(sequences, many, strict=True):
        theirs = tokenizer(sequence)["input_ids"]
        assert residues.encode(sequence).tolist() == ids.tolist() == theirs[1:-1]
        assert (theirs[0], theirs[-1]) == (0, 2)
        assert residues.decode(ids) == sequence == tokenizer.decode(theirs[1:-1]).replace(" ", "")


def test_the_whole_vocabulary_is_written_and_read_as_transformers_does(tmp_path: Any) -> None:
    esm.tokenizer().save_pretrained(tmp_path)
    again = esm.folder_tokenizer(tmp_path)
    assert [again.convert_ids_to_tokens(i) for i in range(33)] == esm.TOKENS == list(again.get_vocab())[:33]


def test_open_places_are_the_mask_and_what_is_no_residue_is_a_question_mark() -> None:
    residues = Residues(vocab())
    assert residues.encode("M__K").tolist() == [20, 32, 32, 15]
    assert residues.decode([0, 20, 32, 2, 31]) == "?M_??"
    assert residues.encode("").tolist() == []


@pytest.mark.parametrize(
    ("sequence", "position"), [("MKt", "residue 3: 't'"), ("M*", "residue 2: '\\*'"), ("é", "1: 'é'")]
)
def test_an_unknown_letter_is_named_with_its_place(sequence: str, position: str) -> None:
    residues = Residues(vocab())
    with pytest.raises(DataError, match=position):
        residues.encode(sequence)
    with pytest.raises(DataError, match=position):
        residues.encode_many(["ACD", sequence])


def test_a_text_backbone_has_residues_in_a_reserved_range() -> None:
    words = word_tokenizer(["A", "protein"])
    text = vocab(family="llada", tokenizer=words, reserve={"other": 2, "residues": len(LETTERS)})
    residues = Residues(text)
    low = len(words) + 2
    assert residues.encode("ACY-").tolist() == [low, low + 1, low + 19, low + 25]
    assert residues.ranges(CANONICAL) == ((low, low + 20),)
    with pytest.raises(ConfigError, match="reserve: {residues: 26}"):
        Residues(vocab(family="llada", tokenizer=words))
    with pytest.raises(ConfigError, match="no ids for residues"):
        Residues(vocab(family="llada", tokenizer=words, reserve={"residues": 19}))


def test_ranges_join_neighbouring_ids() -> None:
    residues = Residues(vocab())
    assert residues.ranges(CANONICAL) == ((4, 24),)
    assert residues.ranges("LGA-") == ((4, 7), (30, 31))


def test_it_goes_to_data_processes() -> None:
    residues = pickle.loads(pickle.dumps(Residues(vocab())))
    assert residues.encode("MKV").tolist() == [20, 15, 7]


def test_letters_of_a_text_tokenizer_are_no_residues_unless_they_are_reserved() -> None:
    """LLaDA's has 126 thousand words, each single letter among them."""
    words = word_tokenizer([*CANONICAL.lower(), *(f"w{i}" for i in range(1000))])
    large = {letter.upper(): i for letter, i in words.get_vocab().items()}
    words.get_vocab = lambda: large
    with pytest.raises(ConfigError, match="no ids for residues"):
        Residues(vocab(family="llada", tokenizer=words))
    residues = Residues(vocab(family="llada", tokenizer=words, reserve={"residues": 26}, vocab_size=1200))
    assert residues.encode(LETTERS).tolist() == [*range(len(words), len(words) + 26)]
    assert residues.decode([0, large["A"], len(words), len(words) + 26, 1199]) == "??A??"


def test_a_permuted_sequence_has_the_same_residues_in_an_order_of_its_number() -> None:
    sequence = CANONICAL * 3
    drawn = {permuted(sequence, number, seed) for number in range(3) for seed in range(2)}
    assert len(drawn) == 6 and all(sorted(one) == sorted(sequence) and one != sequence for one in drawn)
    assert permuted(sequence, 1) == permuted(sequence, 1, 0) and permuted("", 0) == ""
    firsts = "".join(permuted(CANONICAL, number)[0] for number in range(2000))
    assert all(abs(firsts.count(letter) - 100) < 50 for letter in CANONICAL)

"""Where everything stands on the canvas.

Shape letters: B samples, L positions, K allow-sets, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import toy
from torch import Tensor

from mmdiff.canvas.batch import Batch, MediaBatch, to_device
from mmdiff.canvas.sample import Break, Item, Media, Sample, Target, Text
from mmdiff.canvas.vocab import Vocab, word_tokenizer
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError, DataError, UserError

MASK, EOS, PAD, SLOT = 19, 18, 17, 16
VOCAB = Vocab(tokenizer=None, size=20, mask_id=MASK, eos_id=EOS, pad_id=PAD, slot_id=SLOT)


class Vectors:
    """Reads a list of numbers as so many crops; two slots a crop."""

    def read(self, data: object) -> Item:
        values = torch.tensor(data, dtype=torch.float32)[:, None]
        return Item(values, layout=(len(values),))

    def slots(self, item: Item) -> int:
        return 2 * len(item.values)


READERS = {"image": Vectors(), "sound": Vectors()}


def lay(*samples: Sample, **how: Any) -> Batch:
    return collate(samples, VOCAB, READERS, **how)


# Layout ---------------------------------------------------------------------------------------------------------------


def test_right_padding() -> None:
    batch = lay([Text([1, 2]), Target([3, 4, 5]), Text([6])], [Target([7])])
    assert batch.ids_BL.tolist() == [[1, 2, 3, 4, 5, 6], [7, PAD, PAD, PAD, PAD, PAD]]
    assert batch.target_BL.int().tolist() == [[0, 0, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0]]
    assert batch.attend_BL.int().tolist() == [[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]]
    assert batch.position_ids_BL[0].tolist() == [0, 1, 2, 3, 4, 5] and batch.position_ids_BL[1, 0] == 0
    assert batch.padded and not batch.packed and len(batch) == 2
    assert not batch.segment_BL.any() and batch.slots == {} and batch.media == {} and batch.allow_BL is None


def test_left_padding_moves_everything_alike() -> None:
    samples: list[Sample] = [
        [Media("image", [0.5]), Text([1]), Target([2, 3], allow=((0, 5),))],
        [Target([4, 5, 6, 7, 8, 9, 10])],
    ]
    right, left = lay(*samples), lay(*samples, side="left")
    assert left.attend_BL.int().tolist()[0] == [0, 0, 1, 1, 1, 1, 1]
    assert left.position_ids_BL[0].tolist() == [0, 0, 0, 1, 2, 3, 4]
    for name in ("ids_BL", "target_BL", "attend_BL", "allow_BL"):
        assert torch.equal(getattr(left, name)[0], getattr(right, name)[0].roll(2)), name
    assert torch.equal(left.slots["image"][0], right.slots["image"][0].roll(2))
    assert left.slots["image"][0].tolist() == [-1, -1, 0, 1, -1, -1, -1]
    assert torch.equal(left.ids_BL[1], right.ids_BL[1])


def test_breaks_number_the_documents_of_a_row_and_its_positions_anew() -> None:
    samples: list[Sample] = [
        [Text([1]), Target([2, 3]), Break(), Break(), Text([4]), Target([5]), Break()],
        [Text([6])],
    ]
    right, left = lay(*samples), lay(*samples, side="left")
    assert right.ids_BL[0].tolist() == [1, 2, 3, 4, 5] and right.packed
    assert right.segment_BL[0].tolist() == [0, 0, 0, 1, 1] and right.segment_BL[1, 0] == 0
    assert right.position_ids_BL[0].tolist() == [0, 1, 2, 0, 1]
    assert left.position_ids_BL[0].tolist() == [0, 1, 2, 0, 1] and left.position_ids_BL[1, 4] == 0
    assert not lay([Break(), Text([1]), Target([2]), Break()]).packed  # one document


def test_what_fills_a_packed_row_up_with_eos_is_of_its_last_document() -> None:
    batch = lay([Text([1]), Target([2]), Break(), Text([3])], [Text([1, 2, 3, 4, 5])], padding="eos")
    assert batch.segment_BL[0].tolist() == [0, 0, 1, 1, 1] and batch.position_ids_BL[0].tolist() == [0, 1, 0, 1, 2]


def test_rows_of_one_length_are_not_padded() -> None:
    assert not lay([Target([1, 2])], [Text([3, 4])]).padded


def test_eos_padding_is_answered_and_attended() -> None:
    batch = lay([Text([1]), Target([2])], [Text([1, 2]), Target([3, EOS])], padding="eos")
    assert batch.ids_BL.tolist() == [[1, 2, EOS, EOS], [1, 2, 3, EOS]]
    assert batch.target_BL.int().tolist() == [[0, 1, 1, 1], [0, 0, 1, 1]]
    assert batch.attend_BL.all() and not batch.padded
    assert batch.position_ids_BL.tolist() == [[0, 1, 2, 3]] * 2


def test_answers_filled_up_to_the_longest_of_them() -> None:
    """Whatever stands before them: what a short context leaves is ignored, and a batch of one fills nothing up."""
    rows = [Text([1]), Target([2])], [Text([1, 2, 3, 4]), Target([3, 5, EOS])], [Target([6]), Text([1]), Target([2, 3])]
    batch = lay(*rows, padding="answer")
    filled = [[1, 2, EOS, EOS], [1, 2, 3, 4, 3, 5, EOS], [6, 1, 2, 3, EOS]]
    assert [ids_L[a].tolist() for ids_L, a in zip(batch.ids_BL, batch.attend_BL, strict=True)] == filled
    targets = [[0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1], [1, 0, 1, 1, 1, 0, 0]]
    assert batch.target_BL.int().tolist() == targets and batch.padded
    assert lay(rows[0], padding="answer").ids_BL.tolist() == [[1, 2]]
    assert lay(rows[0], [Target([4, 5])], padding="answer").ids_BL.tolist() == [[1, 2, EOS], [4, 5, PAD]]
    assert lay(*rows, padding="answer", side="left").target_BL[0].int().tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_empty_and_given_places_of_a_target() -> None:
    batch = lay([Text([1]), Target(length=2)], [Target([5, MASK, 6])])
    assert batch.ids_BL.tolist() == [[1, MASK, MASK], [5, MASK, 6]]
    assert batch.target_BL.int().tolist() == [[0, 1, 1], [1, 1, 1]]


def test_the_identity_of_samples() -> None:
    assert lay([Target([1])], [Target([2])]).index_B.tolist() == [0, 1]
    batch = lay([Target([1])], [Target([2])], index=[7, 3])
    assert batch.index_B.tolist() == [7, 3]


def test_ids_may_be_any_sequence() -> None:
    batch = lay([Text(np.array([1, 2])), Target(torch.tensor([3]))])  # type: ignore[arg-type]
    assert batch.ids_BL.tolist() == [[1, 2, 3]] and batch.ids_BL.dtype == torch.int64


# Media ----------------------------------------------------------------------------------------------------------------


def test_slots_count_through_the_batch_by_kind() -> None:
    """Two pictures in a row, one of two crops, a sound between them, and a row without any."""
    batch = lay(
        [Media("image", [0.1, 0.2]), Media("sound", [0.3]), Media("image", [0.4]), Target([1])],
        [Text([2]), Target([3])],
        [Text([2]), Media("image", [0.5]), Target([3])],
    )
    assert batch.slots["image"].tolist() == [
        [0, 1, 2, 3, -1, -1, 4, 5, -1],
        [-1] * 9,
        [-1, 6, 7, -1, -1, -1, -1, -1, -1],
    ]
    assert batch.slots["sound"].tolist() == [[-1, -1, -1, -1, 0, 1, -1, -1, -1], [-1] * 9, [-1] * 9]
    assert batch.ids_BL[0].tolist() == [SLOT] * 8 + [1]
    assert not (batch.target_BL & (batch.slots["image"] >= 0)).any()
    image = batch.media["image"]
    torch.testing.assert_close(image.values_N, torch.tensor([[0.1], [0.2], [0.4], [0.5]]))
    assert image.crops == [2, 1, 1] and image.layouts == [(2,), (1,), (1,)] and image.features_NTE is None


def test_an_item_is_taken_as_it_is() -> None:
    item = Item(torch.tensor([[9.0]]), layout=(3, 4))
    media = lay([Media("image", item), Target([1])]).media["image"]
    assert media.values_N.tolist() == [[9.0]] and media.layouts == [(3, 4)]


# Allowed ids ----------------------------------------------------------------------------------------------------------


def test_allow_sets() -> None:
    """Equal sets share a row; row 0 allows everything, on text, padding and targets that do not say."""
    pair = ((2, 4), (7, 8))
    batch = lay(
        [Text([1]), Target([2, 7], allow=pair), Target([11])],
        [Target([3], allow=pair), Target(length=1, allow=((5, 6),))],
    )
    assert batch.allow_BL is not None and batch.allow_KV is not None
    assert batch.allow_BL.tolist() == [[0, 1, 1, 0], [1, 2, 0, 0]]
    assert batch.allow_KV.shape == (3, 20) and batch.allow_KV[0].all()
    assert batch.allow_KV[1].nonzero().squeeze(1).tolist() == [2, 3, 7]
    assert batch.allow_KV[2].nonzero().squeeze(1).tolist() == [5]


def test_eos_padding_behind_a_restricted_target_is_free() -> None:
    batch = lay([Target([2], allow=((2, 4),))], [Target([2, 3], allow=((2, 4),))], padding="eos")
    assert batch.allow_BL is not None and batch.allow_BL.tolist() == [[1, 0], [1, 1]]


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        ([], "sample 1 of the batch is empty"),
        ([Text([]), Target(length=0)], "sample 1 of the batch is empty"),
        ([Text([1, 20])], "sample 1 of the batch: ids 1..20 do not fit a vocabulary of 20"),
        ([Target([-1])], "sample 1 of the batch: ids -1..-1 do not fit a vocabulary of 20"),
        ([Media("video", 0)], "media of kind 'video': this model reads ['image', 'sound']"),
        ([Target([1], allow=((5, 25),))], "allow: the range (5, 25) does not fit a vocabulary of 20"),
        ([Target([1], allow=((5, 5),))], "allow: the range (5, 5) does not fit a vocabulary of 20"),
        ([Target([6, 4], allow=((5, 8),))], "sample 1 of the batch: the target's `allow` leaves out its own id 4"),
    ],
)
def test_errors_are_one_line_that_names_the_sample(sample: Sample, says: str) -> None:
    with pytest.raises(DataError) as error:
        lay([Target([6])], sample)
    assert str(error.value) == says


def test_media_without_a_reader() -> None:
    with pytest.raises(UserError, match="media of kind 'image': this model reads no media"):
        collate([[Media("image", [1.0])]], VOCAB)


# Devices --------------------------------------------------------------------------------------------------------------


def test_everything_moves_and_the_original_stays() -> None:
    """The device `meta` holds no data, so whatever was left behind is seen."""
    batch = lay([Media("image", [0.1]), Target([1], allow=((0, 3),))])
    moved = to_device(batch, "meta")

    def tensors(of: Batch) -> list[Tensor]:
        media: MediaBatch = of.media["image"]
        found = [v for v in vars(of).values() if isinstance(v, Tensor)]
        return [*found, of.slots["image"], media.values_N]

    assert len(tensors(moved)) == 11 and all(t.is_meta for t in tensors(moved))
    assert not any(t.is_meta for t in tensors(batch))
    assert moved.padded == batch.padded and moved.media["image"].crops == [1]


# Vocabulary -----------------------------------------------------------------------------------------------------------


def test_the_word_tokenizer() -> None:
    tokenizer = word_tokenizer(["red", "blue"])
    vocab = Vocab(tokenizer, 6, mask_id=2, eos_id=1, pad_id=0, slot_id=0, end_ids=(1, 5), ranges={"bins": (6, 9)})
    assert vocab.encode("Red  blue green") == [4, 5, 3]
    assert vocab.decode([4, 1, 5]) == "red blue" and vocab.decode([4, 1], special=True) == "red <eos>"
    assert vocab.piece(2) == "<mask>" and vocab.range("bins") == (6, 9)
    assert vocab.until_end([4, 4, 5, 4]) == [4, 4] and vocab.until_end([4, 1, 4]) == [4]
    with pytest.raises(UserError, match=r"vocabulary range 'bin' is not reserved \(did you mean \"bins\"\?\)"):
        vocab.range("bin")
    with pytest.raises(UserError, match="a word is given twice"):
        word_tokenizer(["red", "red"])


def test_eos_is_not_put_in_front_of_a_prompt() -> None:
    vocab = toy.backbone().vocab
    with pytest.raises(ConfigError, match="^padding: eos"):
        collate([[Text([4]), Target([5])]], vocab, padding="eos", side="left")

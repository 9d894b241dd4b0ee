"""Options of a generation are checked before anything runs; guidance; what a streamer is given."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from logit_tables import EOS, MASK, VOCAB, Table, V, asked, likely
from torch import Tensor

from mmdiff.canvas.sample import Target, Text
from mmdiff.canvas.vocab import Vocab, word_tokenizer
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.samplers.deliberation import rewrite
from mmdiff.samplers.links.guidance import Guidance
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.streamers import TextStreamer


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"step": 3}, 'did you mean "steps"'),
        ({"steps": 0}, "sampler.steps=0"),
        ({"steps": 2.5}, "sampler.steps: 2.5 is not a whole number"),
        ({"block_length": -1}, "sampler.block_length=-1"),
        ({"temperature": -0.1}, "sampler.temperature=-0.1"),
        ({"temperature": float("nan")}, "sampler.temperature=nan"),
        ({"guidance_scale": "1"}, "sampler.guidance_scale: '1' is not a number"),
        ({"threshold": 0.0}, "sampler.threshold=0.0"),
        ({"threshold": 1.1}, "sampler.threshold=1.1"),
        ({"threshold": 0.9, "remasking": "random"}, "random"),
        ({"remasking": "low_confidense"}, 'did you mean "low_confidence"'),
        ({"eos_policy": "supress"}, 'did you mean "suppress"'),
        ({"max_new_tokens": 0}, "sampler.max_new_tokens=0"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(named: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        generation_config(**named)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_named_options_go_over_a_config_and_a_bad_config_is_refused() -> None:
    config = GenerationConfig(steps=7)
    assert generation_config(config, seed=3) == replace(config, seed=3) and config.seed == 0
    with pytest.raises(ConfigError, match="steps"):
        sample(likely([1]), collate([[Target(length=1)]], VOCAB), VOCAB, GenerationConfig(steps=-1))


def test_guidance_masks_the_context_and_leaves_the_media_out() -> None:
    batch = collate([[Text([1, 2]), Target([MASK, 7])], [Text([3]), Target([MASK])]], VOCAB)
    table = likely([0] * 4, [0] * 4)
    predict_BL = batch.target_BL & (batch.ids_BL == MASK)
    asked(Guidance(1.0).wrap(table, batch, VOCAB), batch.ids_BL, predict_BL, torch.arange(2))
    assert table.ids[0].tolist() == [
        [1, 2, MASK, 7], [3, MASK, EOS, EOS], [MASK, MASK, MASK, 7], [MASK, MASK, EOS, EOS],
    ]  # fmt: skip
    assert table.rows == [[0, 1, 0, 1]]
    assert table.media[0] is not None and table.media[0].tolist() == [True, True, False, False]


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_guidance_changes_nothing_for_a_model_that_ignores_the_context(scale: float) -> None:
    batch = collate([[Text([1, 2]), Target(length=5)]], VOCAB)
    table = Table(torch.randn(1, 7, V, generator=torch.Generator().manual_seed(3)))
    named: dict[str, Any] = dict(temperature=1.0, steps=3)
    plain = sample(table, batch, VOCAB, generation_config(**named))
    out = sample(table, batch, VOCAB, generation_config(**named, guidance_scale=scale))
    assert out.targets() == plain.targets() and out.calls == plain.calls


def test_a_streamer_sees_a_draft_a_step_and_the_final_canvas() -> None:
    vocab = Vocab(word_tokenizer(["one", "two", "six"]), 7, mask_id=2, eos_id=1, pad_id=0, slot_id=0)
    logits_BLV = torch.zeros(1, 4, 7)
    for position, (token, sure) in enumerate([(6, 1.0), (4, 9.0), (5, 8.0), (4, 7.0)]):
        logits_BLV[0, position, token] = sure
    file = io.StringIO()
    batch = collate([[Text([6]), Target(length=3)]], vocab)
    config = GenerationConfig(block_length=2, steps=2)
    out = sample(Table(logits_BLV), batch, vocab, config, streamer=TextStreamer(vocab, batch, file=file))
    assert file.getvalue().splitlines() == ["   1 | one two░", "   2 | one two one", "one two one"]
    assert out.calls == 2


def test_a_streamer_sees_what_is_committed_and_no_proposals() -> None:
    vocab = Vocab(word_tokenizer(["one", "two", "six"]), 7, mask_id=2, eos_id=1, pad_id=0, slot_id=0)
    logits_BLV = torch.zeros(1, 4, 7)
    for position, (token, sure) in enumerate([(6, 1.0), (4, 7.0), (5, 8.0), (4, 9.0)]):
        logits_BLV[0, position, token] = sure
    file = io.StringIO()
    batch = collate([[Text([6]), Target(length=3)]], vocab)
    sample(Table(logits_BLV), batch, vocab, GenerationConfig(), streamer=TextStreamer(vocab, batch, file=file))
    assert file.getvalue().splitlines() == [
        "   1 | ░░one",
        "   2 | ░two one",
        "   3 | one two one",
        "one two one",
    ]
    drafted = collate([[Text([6]), Target([5, 5, 4])]], vocab)
    file = io.StringIO()
    chunks = GenerationConfig(draft={"target": "mmdiff.samplers.deliberation.MaskChunks", "ratio": 0.34})
    rewrite(Table(logits_BLV), drafted, vocab, chunks, streamer=TextStreamer(vocab, drafted, file=file))
    assert file.getvalue().splitlines() == [
        "   1 | one two one",
        "   2 | one two one",
        "   3 | one two one",
        "one two one",
    ]


def test_a_score_is_a_name_a_path_or_a_node() -> None:
    batch = collate([[Target(length=3)]], VOCAB)
    path = "mmdiff.samplers.rules.score.Margin"
    for score in (path, {"target": path}):
        assert sample(likely([1, 2, 3]), batch, VOCAB, generation_config(remasking=score)).targets() == [[1, 2, 3]]
    for wrong in ([1], 3, {"target": "os.nothing"}, {}):
        with pytest.raises(ConfigError, match=r"sampler\.remasking"):
            sample(likely([1]), collate([[Target(length=1)]], VOCAB), VOCAB, GenerationConfig(remasking=wrong))  # type: ignore[arg-type]


def test_a_streamer_of_transformers_and_ours_are_called_alike() -> None:
    drafts: list[list[list[int]]] = []

    class Theirs:
        """The methods of transformers' TextDiffusionStreamer."""

        def put_draft(self, value: Tensor, **kwargs: Any) -> None:
            drafts.append(value.tolist())

        def put(self, value: Tensor) -> None: ...

        def end(self) -> None: ...

    batch = collate([[Target(length=2)]], VOCAB)
    sample(likely([1, 2], sure=[[9.0, 8.0]]), batch, VOCAB, GenerationConfig(), streamer=Theirs())
    assert drafts == [[[1, MASK]], [[1, 2]]]

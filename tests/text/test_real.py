"""`benchmarks/real.py`, behind `make real`: a small causal model in place of the trained one, and what is not there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import real
from mmdiff.backbones.families.tokenizers import byte_tokenizer

ROWS = [{"text": "The sky over the harbour was the colour of a knife.\n" * 9}]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As transformers saves it: no mask token, no row to spare."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=512, initializer_range=0.2, bos_token_id=None, eos_token_id=256, pad_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "smollm2-135m")
    byte_tokenizer(bos=None, eos="<eos>", special=()).save_pretrained(tmp_path / "smollm2-135m")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(real, "LM", tmp_path / "smollm2-135m")
    return tmp_path


def test_the_causal_model_is_that_of_transformers(folder: Path) -> None:
    found = real.logits()
    assert found["largest_difference"] < 1e-4 and found["deviation"] > 0.1 and found["same_tokens"] == "3 of 3"


@torch.no_grad()
def test_blocks_of_one_position_are_greedy_decoding(folder: Path) -> None:
    """As the needles are decoded, with the keys and values of what stands kept."""
    stock = LlamaForCausalLM.from_pretrained(folder / "smollm2-135m").eval()
    ids = [list(b"The sky over"), list(b"A knife")]
    for prompt in ids:
        made = real.causal_model().generate(
            torch.tensor([prompt]), max_new_tokens=12, block_length=1, temperature=0.0, early_stop=False
        )
        greedy = list(prompt)
        for _ in range(12):
            greedy.append(int(stock(torch.tensor([greedy])).logits[0, -1].argmax()))
        assert made.targets()[0] == greedy[len(prompt) :]


def test_the_causal_model_reads_needles_from_left_to_right(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "LENGTHS", (120, 160))

    def few(*args: Any, **named: Any) -> Any:
        return Needles(*args, documents=ROWS, **named)

    Needles = real.Needles
    monkeypatch.setattr(real, "Needles", few)
    assert real.needle(1)["found"] == {n: dict.fromkeys(("0", "0.5", "1"), 0.0) for n in ("120", "160")}


def test_what_is_not_there_is_skipped_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(real, "LM", tmp_path / "no-model")
    monkeypatch.setattr(sys, "argv", ["real.py", "--json", str(tmp_path / "a.json")])
    real.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["logits", "text", "chat", "speech", "needle"]
    assert all(f"skipped, there is no folder {tmp_path / 'no-model'}" in line for line in lines)
    assert not (tmp_path / "a.json").exists()


@pytest.mark.skipif(not real.LM.is_dir(), reason="no SmolLM2 in $MMDIFF_REAL_WEIGHTS/smollm2-135m")
def test_trained_weights_give_transformers_logits() -> None:
    found = real.logits()
    assert found["largest_difference"] < 1e-3 and found["same_tokens"] == "3 of 3"

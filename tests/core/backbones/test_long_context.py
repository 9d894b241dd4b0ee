"""Stretched rotary angles: the published factors, and a model that keeps them when it is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmdiff.backbones import load_backbone
from mmdiff.backbones.families.options import ntk_factor
from mmdiff.errors import ConfigError

LLADA: dict[str, Any] = {"theta": 5e5, "width": 128, "trained": 4096}


@pytest.mark.parametrize(("wanted", "factor"), [(8192, 4), (16384, 14), (24576, 31), (32768, 55)])
def test_longllada(wanted: int, factor: int) -> None:
    """The factors that its repository sets by hand for LLaDA-8B."""
    assert ntk_factor("longllada", wanted=wanted, **LLADA) == factor


@pytest.mark.parametrize(("wanted", "factor"), [(32768, 44.5), (65536, 158), (131072, 562)])
def test_ultrallada(wanted: int, factor: float) -> None:
    assert ntk_factor("ultrallada", wanted=wanted, **LLADA) == pytest.approx(factor, rel=5e-3)


def test_a_stretched_model_stays_stretched(tmp_path: Path) -> None:
    plain = load_backbone.toy("GSAI-ML/LLaDA-8B-Base")  # type: ignore[attr-defined]
    plain.save_pretrained(tmp_path / "plain")
    long = load_backbone(tmp_path / "plain", options={"context": 16384})
    assert long.facts.max_length == 16384
    theta = [b.model.config.rope_parameters["rope_theta"] for b in (plain, long)]
    assert theta[1] > theta[0]
    rate = [b.model.model.rotary_emb.inv_freq for b in (plain, long)]
    assert torch.equal(rate[0][:1], rate[1][:1]) and bool((rate[1][1:] < rate[0][1:]).all())
    long.save_pretrained(tmp_path / "long")
    again = load_backbone(tmp_path / "long")
    assert again.facts == long.facts and torch.equal(again.model.model.rotary_emb.inv_freq, rate[1])
    ids = torch.arange(9)[None]
    assert torch.equal(again(ids), long(ids)) and not torch.equal(long(ids), plain(ids))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 4096}, "options.context: 4096, expected a whole number above 4096"),
        ({"context": True}, "options.context: True, expected"),
        ({"context": 8192, "ntk": "yarn"}, "options.ntk: 'yarn'"),
        ({"contxt": 8192}, 'options.contxt: no such option of llada \\(did you mean "context"'),
    ],
)
def test_refusals(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    load_backbone.toy("GSAI-ML/LLaDA-8B-Base").save_pretrained(tmp_path)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=message):
        load_backbone(tmp_path, options=options)

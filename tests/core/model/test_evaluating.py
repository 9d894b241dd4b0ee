"""Evaluation mode for a block: every module has the mode it had before."""

from __future__ import annotations

import pytest
from torch import nn

from mmdiff.model.evaluating import evaluating


def test_every_module_gets_its_own_mode_back_after_an_error_too() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    model[0].eval()  # as a frozen encoder is
    before = [module.training for module in model.modules()]
    with pytest.raises(ValueError, match="within"), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise ValueError("within")
    assert [module.training for module in model.modules()] == before == [True, False, True, True]


def test_a_model_in_evaluation_mode_stays_in_it() -> None:
    model = nn.Sequential(nn.Dropout()).eval()
    with evaluating(model):
        pass
    assert not model.training and not model[0].training

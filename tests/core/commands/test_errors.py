"""The errors a person can cause: the place in front of them."""

from __future__ import annotations

import pytest

from mmdiff.errors import ConfigError, DataError, UserError, located


def message(where: str | None, error: Exception, catch: type[UserError] = DataError) -> str:
    with pytest.raises(type(error)) as caught, located(where, catch):
        raise error
    return str(caught.value)


def test_an_error_in_data_is_located() -> None:
    assert message("rows.json line 3", DataError("no answer")) == "rows.json line 3: no answer"
    with pytest.raises(DataError, match="^a: b: no answer$"), located("a"), located("b"):
        raise DataError("no answer")


def test_without_a_place_and_for_other_errors_nothing_changes() -> None:
    assert message(None, DataError("no answer")) == message("", DataError("no answer")) == "no answer"
    assert message("line 3", ConfigError("steps: 0")) == "steps: 0"
    assert message("line 3", ValueError("a bug")) == "a bug"


def test_errors_of_another_kind_can_be_located_too() -> None:
    with pytest.raises(DataError, match="^record 2: --open: 9$"), located("record 2", UserError):
        raise ConfigError("--open: 9")

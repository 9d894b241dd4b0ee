"""A chat model and a text model with random weights, each behind a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

for package in ("starlette", "uvicorn", "httpx", "prometheus_client"):
    pytest.importorskip(package)
from models.served import served, session  # noqa: E402

from mmdiff.tasks.text.chat import Chat  # noqa: E402
from mmdiff.tasks.text.task import PlainText  # noqa: E402
from mmdiff.tasks.text.templates import ChatTemplate  # noqa: E402


@pytest.fixture(scope="session")
def chat_session() -> Any:
    return session(Chat(ChatTemplate("chatml"), max_new_tokens=12), steps=6, temperature=0.0)


@pytest.fixture(scope="session")
def text_session() -> Any:
    return session(PlainText(max_new_tokens=12), seed=1)


@pytest.fixture(scope="session")
def chat_url(chat_session: Any) -> Iterator[str]:
    with served(chat_session) as url:
        yield url


@pytest.fixture(scope="session")
def text_url(text_session: Any) -> Iterator[str]:
    with served(text_session) as url:
        yield url

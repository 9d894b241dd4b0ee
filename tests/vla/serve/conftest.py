"""A server with a policy whose answers are known, and a model with random weights."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mmdiff.backbones import new_backbone
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.config.settings import GenerationConfig
from mmdiff.connectors.mlp import MLP
from mmdiff.encoders.conv import ConvTower
from mmdiff.encoders.state import StateMLP
from mmdiff.model import MMDiff
from mmdiff.session import Session


@pytest.fixture(scope="session", autouse=True)
def client_is_closed() -> Iterator[None]:
    yield
    if "robots.policy_server" in sys.modules:  # it needs packages without which these tests are skipped
        sys.modules["robots.policy_server"].HTTP.close()


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    from robots.policy_server import StandIn, served

    from mmdiff.serving.http.guard import Limits

    with served(StandIn(), limits=Limits(body=200_000)) as address:
        yield address


@pytest.fixture(scope="session")
def real() -> Session:
    """A small model with random weights, whose task has statistics of two data sets."""
    from robots.policy_server import task

    torch.manual_seed(0)
    words = word_tokenizer("reach the red blue disc open drawer".split())
    backbone = new_backbone(tokenizer=words, hidden_size=32, layers=2, heads=2, reserve={"action": 32})
    encoders = {"image": ConvTower(16, 16, 8), "state": StateMLP(2, 16, 16)}
    connectors = {name: MLP(width_in=16, width_out=32) for name in encoders}
    model = MMDiff(backbone, encoders, connectors).eval()
    with torch.no_grad():  # else its answers hardly depend on what it sees
        for part in model.connectors.values():
            for parameter in part.parameters():
                parameter.mul_(20)
    sampler = GenerationConfig(steps=4, temperature=1.0)
    return Session(model, task(keys=("bridge", "fractal20220817")), sampler, Path("runs/real"))

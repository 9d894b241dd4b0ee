"""A small model with random weights behind a real server in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mmdiff.backbones import new_backbone
from mmdiff.config.settings import GenerationConfig
from mmdiff.model import MMDiff
from mmdiff.serving.app import make_app
from mmdiff.serving.http.listening import LIMITS, listen, settings
from mmdiff.serving.streams import error_body
from mmdiff.session import Session


def byte_tokenizer() -> Any:
    """A tokenizer of bytes, whose special tokens are those of ChatML."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "mask_token": "<mask>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def session(task: Any, seed: int = 0, sharp: float = 8.0, **sampler: Any) -> Session[Any]:
    """sharp: what the logits are multiplied by, so that no two of a random model are within rounding of each other."""
    torch.manual_seed(seed)
    backbone = new_backbone(tokenizer=byte_tokenizer(), hidden_size=32, layers=2, heads=2)
    with torch.no_grad():
        for weight in backbone.parameters():
            if weight.ndim > 1:
                weight.mul_(sharp)
    return Session(MMDiff(backbone).eval(), task, GenerationConfig(**sampler), Path("runs/small"))


@contextmanager
def served(found: Any, port: int = 0, **options: Any) -> Iterator[str]:
    """The address of a real server in a thread. port: 0 takes a free one."""
    listening = listen("127.0.0.1", port)
    app = make_app(found, **options)
    server = uvicorn.Server(settings(app, options.get("limits", LIMITS), error_body))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    end = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < end
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        app.state.service.batcher.close()
        assert not thread.is_alive()

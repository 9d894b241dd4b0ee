"""A server under many clients, against the same requests one by one: throughput, latency, wrong rows, memory.

    python benchmarks/serving.py --clients 64 --seconds 60 --json runs/serving.json

`mmdiff serve` runs in a process of its own, on a model of random weights (128 wide, 3 layers) that is saved for it.
Requests are ragged: prompts of 1 to 40 words, 8 to 24 new tokens, 8 steps. Each of 48 different requests is answered
alone first; while the clients run, an answer that is another one is wrong. Memory is the server's, a quarter into
the time and at its end.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.kit import Options, write_figures
from mmdiff.parts.ranges import Positive

KINDS = 48


def main(argv: list[str] | None = None) -> int:
    """Print the figures. Exit code 1 where a row was wrong."""
    options = Options(__doc__)
    options.number("--clients", 64)
    options.number("--seconds", 20.0, of=Positive)
    wanted = options.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "model")
        server, url = start(Path(folder) / "model", Path(folder))
        try:
            found = asyncio.run(measure(url, wanted.clients, wanted.seconds, server.pid))
        finally:
            server.terminate()
            server.wait(30)
    for name, value in found.items():
        print(f"{name:24} {value:.4g}" if isinstance(value, float) else f"{name:24} {value}")
    write_figures(found, wanted.json)
    return int(found["wrong"] > 0)


def save(folder: Path) -> None:
    """Write a run whose model has random weights."""
    import torch

    from mmdiff.backbones import new_backbone
    from mmdiff.model import MMDiff
    from mmdiff.tasks.text.tokenizer import byte_pairs

    torch.manual_seed(0)
    tokenizer = byte_pairs([{"text": "the cat saw the dog and the dog saw the cat. " * 20}], vocab_size=300)
    backbone = new_backbone(tokenizer=tokenizer, hidden_size=128, layers=3, heads=4)
    with torch.no_grad():
        for weight in backbone.parameters():
            if weight.ndim > 1:
                weight.mul_(6)  # else no token is much likelier than another
    model = MMDiff(backbone)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"task": {"target": "mmdiff.tasks.text.PlainText", "max_new_tokens": 16}, "sampler": {"steps": 8}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "SHA256SUMS").unlink(missing_ok=True)


def start(model: Path, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Returns the server's process and its address."""
    log = folder / "log"
    with open(log, "wb") as out:
        command = [sys.executable, "-m", "mmdiff", "serve", str(model), "--port", "0"]
        server = subprocess.Popen(command, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"})
    end = time.monotonic() + 120
    while "http://" not in (text := log.read_text()):
        if server.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"the server did not start: {text[-500:]}")
        time.sleep(0.1)
    return server, text[text.index("http://") :].split("/\n")[0]


def request(kind: int) -> dict[str, Any]:
    """Returns one of the different requests."""
    rng = np.random.default_rng(kind)
    words = rng.choice(["the", "cat", "dog", "saw", "and"], int(rng.integers(1, 41)))
    return {"prompt": " ".join(words), "max_tokens": int(rng.integers(8, 25)), "seed": kind, "temperature": 0.7}


async def measure(url: str, clients: int, seconds: float, pid: int) -> dict[str, Any]:
    """Returns the figures of requests one by one, and of many at a time."""
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120, trust_env=False) as http:

        async def ask(kind: int) -> tuple[str, int, float]:
            began = time.perf_counter()
            answer = await http.post("/v1/completions", json=request(kind))
            answer.raise_for_status()
            found = answer.json()
            return found["choices"][0]["text"], found["diffusion"]["batch"], time.perf_counter() - began

        known = [(await ask(kind))[0] for kind in range(KINDS)]
        began, alone = time.perf_counter(), 0
        while time.perf_counter() - began < min(10, seconds):
            await ask(alone % KINDS)
            alone += 1
        alone_rate = alone / (time.perf_counter() - began)
        end, wrong, batches, took = time.perf_counter() + seconds, 0, [], []

        async def client(n: int) -> None:
            nonlocal wrong
            kind = n
            while time.perf_counter() < end:
                kind = (kind + clients + 1) % KINDS
                text, batch, took_s = await ask(kind)
                wrong += text != known[kind]
                batches.append(batch)
                took.append(took_s)

        async def memory() -> list[float]:
            await asyncio.sleep(seconds / 4)
            first = resident(pid)
            await asyncio.sleep(seconds / 2)
            return [first, resident(pid)]

        began = time.perf_counter()
        *_, (first, last) = await asyncio.gather(*(client(n) for n in range(clients)), memory())
        rate = len(took) / (time.perf_counter() - began)
    return {
        "clients": clients,
        "seconds": seconds,
        "requests": len(took),
        "one_by_one_per_second": alone_rate,
        "together_per_second": rate,
        "ratio": rate / alone_rate,
        "wrong": wrong,
        "batch_mean": float(np.mean(batches)),
        "latency_p50": float(np.percentile(took, 50)),
        "latency_p95": float(np.percentile(took, 95)),
        "memory_mib": last,
        "memory_growth_mib": last - first,
    }


def resident(pid: int) -> float:
    """Returns the resident memory of a process in MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


if __name__ == "__main__":
    raise SystemExit(main())

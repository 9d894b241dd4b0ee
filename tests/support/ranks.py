"""Trains in several processes, as torchrun starts them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState

from mmdiff import train
from mmdiff.config.settings import Config

FORK = multiprocessing.get_context("fork")  # torch is imported already, and has one thread


def one_of(world: int, rank: int, port: int, config: Config) -> None:
    os.environ |= {
        "WORLD_SIZE": str(world),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    sys.stderr = open(f"rank{rank}.log", "w")
    try:
        train(config)
        torch.distributed.barrier()  # the first rank holds the store that the others still talk to
        torch.distributed.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        raise


def in_processes(world: int, config: Config) -> None:
    """Train a configuration in `world` processes; what each says is in rank0.log and so on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [FORK.Process(target=one_of, args=(world, rank, port, config)) for rank in range(world)]
    for child in children:
        child.start()
    for rank, child in enumerate(children):
        child.join(60)
        assert child.exitcode == 0, Path(f"rank{rank}.log").read_text()[-3000:]

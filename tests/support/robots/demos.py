"""A small LeRobotDataset, whose grey pictures tell episode, frame and camera apart; and damage to its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.tasks.vla.data.episode import Episode
from mmdiff.tasks.vla.data.writer import LeRobotWriter

DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
LENGTHS = (5, 9, 1, 7)
ROWS = sum(LENGTHS)


def episodes(lengths: tuple[int, ...] = LENGTHS, cameras: tuple[str, ...] = ("front", "wrist")) -> list[Episode]:
    rng = np.random.default_rng(0)
    found = []
    for e, n in enumerate(lengths):
        shades = 20 + 5 * np.arange(n)[:, None, None, None] + 40 * e
        images = {c: np.broadcast_to(shades + 3 * i, (n, 16, 24, 3)).astype(np.uint8) for i, c in enumerate(cameras)}
        action, state = rng.normal(size=(n, 3)).astype(np.float32), rng.normal(size=(n, 2)).astype(np.float32)
        found.append(Episode(f"do {e % 2}", action, state, images, 10.0, e != 1))
    return found


def write(folder: Path, given: list[Episode] | None = None, **settings: Any) -> Path:
    with LeRobotWriter(folder, fps=10, robot_type="arm", action_names=("x", "y", "grip"), **settings) as writer:
        for episode in episodes() if given is None else given:
            writer.add(episode)
    return folder


def rewrite(file: Path, change: Callable[[Any], Any]) -> None:
    import pyarrow.parquet as pq

    pq.write_table(change(pq.read_table(file)), file)


def replaced(name: str, values: Callable[[list[Any]], list[Any]]) -> Callable[[Any], Any]:
    def change(table: Any) -> Any:
        import pyarrow as pa

        at = table.schema.get_field_index(name)
        return table.set_column(at, name, pa.array(values(table.column(name).to_pylist())))

    return change


def set_at(index: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [*values[:index], value, *values[index + 1 :]]

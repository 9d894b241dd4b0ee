"""Where training stands, as a checkpoint has it: `trainer.json`. Read without torch, so that runs can be listed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmdiff.errors import ConfigError
from mmdiff.files import read_json


@dataclass
class Progress:
    """How far training has come: `step` counts over all stages, `stage_step` within the stage."""

    stage: str = ""
    step: int = 0
    stage_step: int = 0
    seconds: float = 0.0  # of training, over all interruptions
    tokens: int = 0  # attended positions seen
    scaler: dict[str, Any] = field(default_factory=dict)  # of fp16's loss scale
    stages_done: list[str] = field(default_factory=list)
    loss: dict[str, float] = field(default_factory=dict)  # of the last logged steps of each stage
    samples: dict[str, int] = field(default_factory=dict)  # of a step of each stage, over all processes
    found: dict[str, dict[str, float]] = field(default_factory=dict)  # by stage, what its objective found last
    skipped: int = 0  # steps that changed nothing, for their loss or gradient was not finite


def checkpoints_in(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, the oldest first."""
    return sorted(p for p in folder.glob("step-*") if (p / "trainer.json").is_file())


def read_progress(folder: Path) -> Progress:
    """The progress that a checkpoint has. Raises ConfigError."""
    try:
        return Progress(**read_json(folder / "trainer.json"))
    except (OSError, TypeError) as error:
        raise ConfigError(f"{folder / 'trainer.json'}: not a checkpoint of this version ({error})") from None


def samples_of_steps(folder: Path) -> dict[str, int]:
    """Returns how many samples a step of each stage has, by the newest checkpoint in a folder that says so."""
    for checkpoint in reversed(checkpoints_in(folder)):
        with suppress(ConfigError):
            return read_progress(checkpoint).samples
    return {}

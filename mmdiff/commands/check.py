"""`mmdiff check`: all that a configuration names is looked up, built at toy width, trained and sampled for two steps.

What needs outside files (a checkpoint, a data set that is not there) is replaced by a toy twin of the same kind
(`target.toy`); of files of rows that are there the first few are read. All other code is the code of the real run.
Nothing is left behind.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmdiff.config import build, check_nodes
from mmdiff.config.load import checked_config
from mmdiff.config.settings import Config, StageConfig
from mmdiff.config.typed import typed
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.protocols import Source
from mmdiff.runs.folder import Run
from mmdiff.session import load
from mmdiff.training.train import fit, make_accelerator

from .own_files.own_rows import with_own_rows

STEPS, ROWS = 2, 2


@typed
def check(config: Config | str | Path, *, progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Returns the `loss` of each stage and the `forwards` of a generation. Raises what the real run would raise.

    config: or its name, as `load_config` takes it.
    progress: is called with a line of text after each part.
    """
    config = checked_config(config)
    check_nodes(config)
    progress("targets and arguments: fine")
    if not config.train.stages:
        raise ConfigError("train.stages: there is no stage to train")
    config = with_own_rows(config, progress)
    stages = {name: shrunk(stage) for name, stage in config.train.stages.items()}
    settings = replace(
        config.train,
        stages=stages,
        save_every=10**9,
        log_every=1,
        workers=0,
        tensorboard=False,
        precision="fp32",
        trackers=[],
        deepspeed=None,
        compile="none",
    )
    small = replace(config, train=settings)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        result = fit(small, run, make_accelerator(settings), toy=True, progress_bar=False)
        for name, loss in result["loss"].items():
            if not math.isfinite(loss):
                raise ConfigError(f"train.stages.{name}: the loss is {loss} after {STEPS} steps")
            progress(f"stage {name}: {STEPS} steps, loss {loss:.4f}")
        out: dict[str, Any] = {"loss": result["loss"]}
        if config.task:
            session = load(run.model)
            source = evaluation_rows(config)
            if source is not None:
                rows = [source[i] for i in range(min(ROWS, len(source)))]
                predictions = session.predict_many(rows, steps=STEPS)
                out["forwards"] = [a["forwards"] for a in predictions]
                progress(f"generation: {len(predictions)} rows in one batch, {max(out['forwards'])} forwards")
        else:
            MMDiff.from_pretrained(run.model)
        progress("saved, loaded again")
    return out


def shrunk(stage: StageConfig) -> StageConfig:
    """Returns the stage with two steps of two rows."""
    batch_size, accumulate = min(stage.batch_size, ROWS), min(stage.accumulate, 2)
    return replace(stage, steps=STEPS, batch_size=batch_size, accumulate=accumulate, warmup=0.0)


def evaluation_rows(config: Config) -> Source | None:
    """Returns toy rows of the first set of `eval.data`, or None."""
    for name, node in config.eval.data.items():
        if node:
            source: Source = build(node, where=f"eval.data.{name}", toy=True)
            return source
    return None

"""A run of mmdiff as a folder that lerobot loads: `lerobot-export-mmdiff RUN FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from mmdiff.errors import UserError

from .configuration_mmdiff import MMDiffVLAConfig
from .modeling_mmdiff import MMDiffVLAPolicy
from .processor_mmdiff import make_mmdiff_vla_pre_post_processors


def export(
    run: str | Path,
    folder: str | Path,
    /,
    *,
    cameras: Annotated[Sequence[str], Parameter(consume_multiple=True)] = (),
    n_action_steps: int = 0,
) -> Path:
    """Write a run as a folder that lerobot loads: config.json, model.safetensors, mmdiff/ and both processors.

    Args:
        run: a run of mmdiff, or a model folder in it.
        folder: where the policy goes; must be new or empty.
        cameras: keys of the pictures in the model's order.
        n_action_steps: actions of a chunk that are executed; 0: all.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: is there already and not empty; nothing was overwritten")
    config = MMDiffVLAConfig(run=str(run), cameras=list(cameras), n_action_steps=n_action_steps, device="cpu")
    policy = MMDiffVLAPolicy(config)
    policy.save_pretrained(folder)
    for pipeline in make_mmdiff_vla_pre_post_processors(config):
        pipeline.save_pretrained(folder)
    return folder


def main() -> None:
    app = App(name="lerobot-export-mmdiff", help_format="plaintext", version_flags=())
    app.default(export)
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=False, result_action="print_non_none_return_zero")
    except (CycloptsError, UserError, ValueError, OSError) as error:
        sys.exit(f"lerobot-export-mmdiff: error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()

"""What networks in place of the backbone are worth: time of a generation, and what is learnt, at equal depth.

    python benchmarks/learning/networks.py --json runs/networks.json

    seconds     of a processor, for a generation of 4 rows of 512 tokens, width 192, six layers in all, untrained, at 64
                steps; of blocks of 16, 4 steps each
    bound       as in `benchmarks/learning/objectives.py`, after `--steps` steps of 32 noised copies, two layers in all

One thread of a CPU.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.kit import Options, write_figures
from benchmarks.learning.objectives import STATES, entropy, fit, rows
from mmdiff.backbones import new_backbone
from mmdiff.canvas.patterns import BlockCausal, Full
from mmdiff.canvas.sample import Target, Text
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.data.collate import collate
from mmdiff.diffusion.mask_rates import Bernoulli, ExactCount
from mmdiff.diffusion.token_rates import write_counts
from mmdiff.model import MMDiff
from mmdiff.model.likelihood import bound
from mmdiff.objectives.blocks import BlockDenoise
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.networks.anchored import AnchoredDenoise, Anchors
from mmdiff.objectives.networks.blocks import BlockDecoder
from mmdiff.objectives.networks.partition import Partition, PartitionDenoise
from mmdiff.objectives.noising.change import Complement

BLOCKS = BlockCausal(16, "targets")
PAIRS = BlockCausal(2, "targets")


def model(layers: int, width: int, attention: Any = None, kind: Any = None, further: int = 0) -> MMDiff:
    torch.manual_seed(0)
    tokenizer = word_tokenizer([f"s{state}" for state in range(STATES)])
    backbone = new_backbone(tokenizer=tokenizer, hidden_size=width, layers=layers, heads=width // 24)
    name = {Partition: "partition", Anchors: "anchors", BlockDecoder: "decoder"}.get(kind, "")
    extras = {name: kind(width=width, layers=further, heads=width // 24)} if kind else {}
    return MMDiff(backbone, extras=extras, attention=attention or Full()).eval()


def seconds(one: MMDiff, **options: Any) -> float:
    batch = collate([[Text([4]), Target(length=512)]] * 4, one.vocab, side="left")
    begin = time.process_time()
    one.generate(batch, temperature=1.0, early_stop=False, **options)
    return time.process_time() - begin


def learnt(one: MMDiff, objective: Any, steps: int) -> float:
    fit(objective, one.train(), steps)
    truth = rows(one, 100_000, 256)
    return float(bound(one.eval(), truth).nll_B.mean()) - entropy(one, truth)


def main(arguments: Sequence[str] | None = None) -> None:
    options = Options(__doc__)
    options.number("--steps", 600)
    args = options.parse_args(arguments)
    torch.set_num_threads(1)
    in_blocks = {"steps": 128, "block_length": 16}
    speed = {
        "plain": seconds(model(6, 192), steps=64),
        "partition (PGM), 4 + 2": seconds(model(4, 192, None, Partition, 2), steps=64),
        "blocks, with its cache": seconds(model(6, 192, BLOCKS), **in_blocks),
        "blocks, 5 + 1 (E2D2)": seconds(model(5, 192, BLOCKS, BlockDecoder, 1), **in_blocks),
    }
    print(json.dumps(speed), flush=True)
    both = Denoise(levels=ExactCount(none=True), changes=[Complement()])
    with TemporaryDirectory() as folder:
        counts = str(Path(folder) / "counts.safetensors")
        some = rows(model(1, 48), 0, 2000)
        ids = some.ids_BL[some.target_BL].tolist()
        write_counts(counts, ids, 4 + STATES)
        rare = sorted(ids.count(4 + state) for state in range(STATES))[STATES // 2]
        bounds = {
            "plain": learnt(model(2, 48), Denoise(), args.steps),
            "plain, complements": learnt(model(2, 48), both, args.steps),
            "partition (PGM), 1 + 1": learnt(
                model(1, 48, None, Partition, 1), PartitionDenoise(Denoise(levels=ExactCount(none=True))), args.steps
            ),
            "partition, 1/t": learnt(
                model(1, 48, None, Partition, 1), PartitionDenoise(Denoise(levels=Bernoulli())), args.steps
            ),
            "blocks of 2": learnt(model(2, 48, PAIRS), BlockDenoise(PAIRS), args.steps),
            "blocks of 2, 1 + 1 (E2D2)": learnt(model(1, 48, PAIRS, BlockDecoder, 1), BlockDenoise(PAIRS), args.steps),
            "anchors (ADLM), 1 + 1": learnt(
                model(1, 48, None, Anchors, 1), AnchoredDenoise(counts, rare=rare), args.steps
            ),
        }
    print(json.dumps(bounds), flush=True)
    write_figures({"steps": args.steps, "seconds": speed, "bounds": bounds}, args.json)


if __name__ == "__main__":
    main()

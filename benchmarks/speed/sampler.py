"""How much of a step the sampler's loop costs, against a plain reading of the published rule, in one run.

    python benchmarks/speed/sampler.py [--vocab 126464] [--temperature 1.0]

Both fill the same canvas with the same tiny random bidirectional Llama; at temperature 0 they must agree.
plain: logits of every position of the canvas, float64 softmax over them, float64 Gumbel noise over them (LLaDA).
ours: the head on the masked positions of the current block, fp32 logsumexp and float64 noise on those.

The plain step grows with canvas length x vocabulary, ours with block length x vocabulary; the body of the model is the
same in both. So the ratio grows with canvas / block, and falls as the body outgrows the head: the toy body here is
small, a real one is not, and what remains there is memory (`logits` below). Times are medians, on one torch thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.query import Prediction, Query
from mmdiff.canvas.sample import Target, Text
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.collate import collate
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config


def tiny_llama(vocab: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=128, intermediate_size=352, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, tie_word_embeddings=False, use_cache=False, initializer_range=0.1,
    )  # fmt: skip
    config.is_causal = False
    return LlamaForCausalLM(config).eval()


def ours(model: Any, batch: Batch, vocab: Vocab, config: GenerationConfig) -> Tensor:
    def denoise(query: Query) -> Prediction:
        return Prediction(model.lm_head(model.model(input_ids=query.ids_RL).last_hidden_state[query.at()]))

    return sample(denoise, batch, vocab, config).ids_BL


@torch.no_grad()
def plain(model: Any, batch: Batch, vocab: Vocab, config: GenerationConfig) -> Tensor:
    x = batch.ids_BL.clone()
    length, block = int(batch.target_BL.sum()), config.block_length or 1
    start, per_block = x.shape[1] - length, (config.steps or length) * block // length
    for first in range(start, x.shape[1], block):
        for _ in range(per_block):
            logits = model(input_ids=x).logits
            logits[..., [vocab.mask_id, vocab.slot_id]] = -torch.inf
            noisy = logits
            if config.temperature:
                noise = -torch.rand(logits.shape, dtype=torch.float64).log()
                noisy = logits.double().exp() / noise**config.temperature
            x0 = noisy.argmax(-1)
            confidence = logits.double().softmax(-1).gather(-1, x0[..., None]).squeeze(-1)
            confidence[x != vocab.mask_id] = -torch.inf
            confidence[:, first + block :] = -torch.inf
            best = confidence[0].topk(block // per_block).indices
            x[0, best] = x0[0, best]
    return x


def seconds(run: Callable[..., Tensor], *arguments: Any) -> tuple[float, Tensor]:
    start = time.perf_counter()
    ids_BL = run(*arguments)
    return time.perf_counter() - start, ids_BL


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--vocab", type=int, default=32_000)
    arguments.add_argument("--temperature", type=float, default=0.0)
    arguments.add_argument("--repeats", type=int, default=3)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    v = given.vocab
    vocab = Vocab(None, size=v, mask_id=v - 1, eos_id=v - 2, pad_id=v - 2, slot_id=v - 1)
    model = tiny_llama(v)
    print(f"vocabulary {v}, temperature {given.temperature}, 4 steps per block, batch 1, medians of {given.repeats}")
    print("canvas  block  steps  plain ms/step  ours ms/step  ratio  plain logits MB (float64)  ours MB (fp32)")
    for prompt, length, block in [(64, 64, 32), (192, 64, 32), (192, 64, 16), (448, 64, 32)]:
        batch = collate([[Text([7] * prompt), Target(length=length)]], vocab)
        steps = 4 * length // block
        config = generation_config(steps=steps, block_length=block, temperature=given.temperature, early_stop=False)
        times: dict[str, list[float]] = {"plain": [], "ours": []}
        for _ in range(given.repeats):  # in turns, so that both meet the same machine
            a, plain_BL = seconds(plain, model, batch, vocab, config)
            b, ours_BL = seconds(ours, model, batch, vocab, config)
            times["plain"].append(a)
            times["ours"].append(b)
            if given.temperature == 0 and not torch.equal(plain_BL, ours_BL):
                raise SystemExit("the two disagree at temperature 0")
        p, o = (statistics.median(times[name]) * 1000 / steps for name in ("plain", "ours"))
        canvas = prompt + length
        sizes = f"{canvas * v * 8 / 1e6:25.0f}  {block * v * 4 / 1e6:14.1f}"
        print(f"{canvas:6d}  {block:5d}  {steps:5d}  {p:13.1f}  {o:12.1f}  {p / o:4.1f}x  {sizes}")


if __name__ == "__main__":
    main()

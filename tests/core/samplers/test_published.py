"""The sampler against a plain reading of the published rules, in batches of ragged rows."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from logit_tables import EOS, EOT, MASK, SLOT, VOCAB, V, by_query
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.generation import Generation
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.diffusion.step_noise import uniform
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.rules.revise import RunningConfidence
from mmdiff.samplers.rules.select import Everything


@cache
def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=128, tie_word_embeddings=False, use_cache=False,
        initializer_range=0.3, pad_token_id=EOS,
    )  # fmt: skip
    config.is_causal = False
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def full_logits(ids_BL: Tensor, attend_BL: Tensor, position_ids_BL: Tensor) -> Tensor:
    return llama()(input_ids=ids_BL, attention_mask=attend_BL.long(), position_ids=position_ids_BL).logits


def denoiser(batch: Batch) -> Any:
    @by_query
    def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        attend_RL, position_ids_RL = batch.attend_BL[row_R], batch.position_ids_BL[row_R]
        hidden = llama().model(input_ids=ids_RL, attention_mask=attend_RL.long(), position_ids=position_ids_RL)
        return llama().lm_head(hidden.last_hidden_state[predict_RL])

    return denoise


def generate(samples: list[Sample], side: Any = "right", index: list[int] | None = None, **named: Any) -> Generation:
    batch = collate(samples, VOCAB, side=side, index=index)
    return sample(denoiser(batch), batch, VOCAB, generation_config(**named))


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, 57, (n,), generator=generator).tolist() for n in lengths]


def published(
    batch: Batch, length: int, steps: int, block_length: int, temperature: float, cfg: float, remasking: str,
    eos_policy: str, seed: int,
) -> Tensor:  # fmt: skip
    """LLaDA's loop over left-padded rows: logits of every position, float64 softmax, quotas fixed at the block's start.

    Tokens are drawn by the cumulative distribution, from the sampler's numbers: one per masked position of the block.
    """
    x = batch.ids_BL.clone()
    start = x.shape[1] - length
    prompt_BL = x != MASK
    step = 0
    for first in range(start, x.shape[1], block_length):
        last = first + block_length
        per_block = steps // (length // block_length)
        masked_B = (x[:, first:last] == MASK).sum(1)
        for i in range(per_block):
            step += 1
            logits = full_logits(x, batch.attend_BL, batch.position_ids_BL)
            if cfg:
                bare = torch.where(prompt_BL, MASK, x)
                u = full_logits(bare, batch.attend_BL, batch.position_ids_BL)
                logits = u + (cfg + 1) * (logits - u)
            logits = logits.double()
            logits[:, :, [MASK, SLOT] + ([EOS, EOT] if eos_policy == "suppress" else [])] = -torch.inf
            x0 = logits.argmax(-1)
            random_BL = torch.zeros(x.shape, dtype=torch.float64)
            for b, name in enumerate(batch.index_B.tolist()):
                positions = [p for p in range(first, last) if x[b, p] == MASK]
                numbers = np.arange(len(positions))
                who, when = np.full_like(numbers, name), np.full_like(numbers, step)
                if temperature:
                    u = torch.from_numpy(uniform(seed, who, when, numbers, "token"))
                    below_V = (logits[b, positions] / temperature).softmax(-1).cumsum(-1) <= u[:, None]
                    x0[b, positions] = below_V.sum(-1)
                random_BL[b, positions] = torch.from_numpy(uniform(seed, who, when, numbers, "order"))
            if eos_policy == "last":
                logits[:, :, [EOS, EOT]] = -torch.inf
            p = logits.softmax(-1).gather(-1, x0[..., None]).squeeze(-1)
            conf = p if remasking == "low_confidence" else random_BL
            if eos_policy == "last":
                conf = conf.masked_fill((x0 == EOS) | (x0 == EOT), 0.0)
            conf[:, last:] = -torch.inf
            conf[x != MASK] = -torch.inf
            for b in range(len(x)):
                quota = int(masked_B[b]) // per_block + (i < int(masked_B[b]) % per_block)
                best = conf[b].sort(descending=True, stable=True).indices[:quota]
                x[b, best] = x0[b, best]
    return x


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
@pytest.mark.parametrize(("steps", "block_length"), [(24, 8), (9, 8), (5, 24)])
@pytest.mark.parametrize(("cfg", "eos_policy"), [(0.0, "none"), (1.5, "none"), (0.0, "suppress"), (0.0, "last")])
def test_is_the_published_rule_on_ragged_rows(
    temperature: float, remasking: str, steps: int, block_length: int, cfg: float, eos_policy: str
) -> None:
    samples: list[Sample] = [[Text(p), Target(length=24)] for p in prompts(9, 4, 13)]
    batch = collate(samples, VOCAB, side="left", index=[5, 2, 11])
    named: dict[str, Any] = dict(
        steps=steps, block_length=block_length, temperature=temperature, remasking=remasking, seed=3
    )
    config = generation_config(**named, guidance_scale=cfg, eos_policy=eos_policy, early_stop=False)
    out = sample(denoiser(batch), batch, VOCAB, config)
    assert (
        out.ids_BL.tolist()
        == published(batch, 24, steps, block_length, temperature, cfg, remasking, eos_policy, 3).tolist()
    )
    assert out.forwards_B.tolist() == [steps] * 3 and out.calls == steps


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.9])
def test_threshold_commits_every_sure_position_and_always_the_best(threshold: float) -> None:
    (prompt,) = prompts(10)
    out = generate([[Text(prompt), Target(length=24)]], threshold=threshold, block_length=8, early_stop=False)
    x = torch.tensor([prompt + [MASK] * 24])
    calls = 0
    for first in range(10, 34, 8):
        while (x[:, first : first + 8] == MASK).any():
            calls += 1
            logits = full_logits(x, torch.ones_like(x), torch.arange(34)[None]).double()
            logits[:, :, [MASK, SLOT]] = -torch.inf
            p, x0 = logits.softmax(-1).max(-1)
            p[x != MASK] = -torch.inf
            p[:, first + 8 :] = -torch.inf
            keep = p >= threshold
            keep[0, p[0].argmax()] = True
            x = torch.where(keep, x0, x)
    assert out.ids_BL.tolist() == x.tolist() and out.calls == calls
    assert threshold == 0.9 or calls < 24  # the threshold bites


RAGGED: list[Sample] = [
    [Text(prompts(3)[0]), Target(length=17)],
    [Text(prompts(3, 12)[1]), Target(length=5), Text([1, 2]), Target(length=9)],
    [Target(length=6), Text(prompts(3, 12, 8)[2])],
    [Text([4]), Target([MASK, 7, MASK, MASK, 8, MASK, MASK])],
]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "named",
    [
        {},
        {"temperature": 0.8, "steps": 6},
        {"temperature": 0.8, "remasking": "random", "steps": 5, "block_length": 4},
        {"temperature": 0.5, "guidance_scale": 1.0, "block_length": 3},
        {"threshold": 0.2, "block_length": 6},
        {"threshold": 0.2, "temperature": 1.0, "eos_policy": "last"},
        {"select": Everything(), "revise": RunningConfidence(), "temperature": 1.0, "steps": 4},
    ],
)
def test_a_row_is_the_same_alone_and_in_a_batch(side: Any, named: dict[str, Any]) -> None:
    together = generate(RAGGED, side, [8, 3, 5, 4], seed=1, **named)
    for b, (row, name) in enumerate(zip(RAGGED, [8, 3, 5, 4], strict=True)):
        alone = generate([row], index=[name], seed=1, **named)
        target_L, alone_L = together.target_BL[b], alone.target_BL[0]
        assert together.targets()[b] == alone.targets()[0]
        assert together.step_BL[b][target_L].tolist() == alone.step_BL[0][alone_L].tolist()
        assert torch.allclose(together.confidence_BL[b][target_L], alone.confidence_BL[0][alone_L], atol=1e-4)
        assert int(together.forwards_B[b]) == int(alone.forwards_B[0]) == alone.calls
    assert together.calls == int(together.forwards_B.max())

"""The sampler against a plain reading of the published rules, and what must hold whatever the rule."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from mmdiff.backbones.load import toy_backbone
from mmdiff.canvas.batch import Batch
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.canvas.vocab import Vocab, word_tokenizer
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.samplers.guidance import guided
from mmdiff.samplers.loop import plan, sample
from mmdiff.samplers.noise import uniform
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.result import Generation
from mmdiff.samplers.rules.propose import propose
from mmdiff.samplers.rules.revise import RunningConfidence
from mmdiff.samplers.rules.score import Margin, NegativeEntropy
from mmdiff.samplers.rules.select import Everything, Factor, order
from mmdiff.samplers.rules.state import Proposal
from mmdiff.samplers.streamers import TextStreamer

V, MASK, EOS, EOT, SLOT = 61, 60, 59, 58, 57
VOCAB = Vocab(tokenizer=None, size=V, mask_id=MASK, eos_id=EOS, pad_id=EOS, slot_id=SLOT, end_ids=(EOS, EOT))


# A small bidirectional Llama ------------------------------------------------------------------------------------------


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
    def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        attend_RL, position_ids_RL = batch.attend_BL[row_R], batch.position_ids_BL[row_R]
        hidden = llama().model(input_ids=ids_RL, attention_mask=attend_RL.long(), position_ids=position_ids_RL)
        return llama().lm_head(hidden.last_hidden_state[predict_RL])

    return denoise


def write(samples: list[Sample], side: Any = "right", index: list[int] | None = None, **named: Any) -> Generation:
    batch = collate(samples, VOCAB, side=side, index=index)
    return sample(denoiser(batch), batch, VOCAB, generation_config(**named))


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, 57, (n,), generator=generator).tolist() for n in lengths]


# The published rule, plainly ------------------------------------------------------------------------------------------


def published(
    batch: Batch, length: int, steps: int, block_length: int, temperature: float, cfg: float, remasking: str,
    eos_policy: str, seed: int,
) -> Tensor:  # fmt: skip
    """LLaDA's loop over left-padded rows: logits of every position, float64 softmax, quotas fixed at the block's start.

    The noise is the sampler's, laid out on the whole canvas: u of the open positions of the block, in order.
    """
    x = batch.ids_BL.clone()
    start = x.shape[1] - length
    prompt_BL = x != MASK
    step = 0
    for first in range(start, x.shape[1], block_length):
        last = first + block_length
        per_block = steps // (length // block_length)
        open_B = (x[:, first:last] == MASK).sum(1)
        for i in range(per_block):
            step += 1
            logits = full_logits(x, batch.attend_BL, batch.position_ids_BL)
            if cfg:
                bare = torch.where(prompt_BL, MASK, x)
                u = full_logits(bare, batch.attend_BL, batch.position_ids_BL)
                logits = u + (cfg + 1) * (logits - u)
            logits = logits.double()
            logits[:, :, [MASK, SLOT] + ([EOS, EOT] if eos_policy == "suppress" else [])] = -torch.inf
            noisy = logits.exp()
            random_BL = torch.zeros(x.shape, dtype=torch.float64)
            for b, name in enumerate(batch.index_B.tolist()):
                positions = [p for p in range(first, last) if x[b, p] == MASK]
                if temperature:
                    u = uniform(seed, name, step, "token", (len(positions), V), x.device)
                    noisy[b, positions] = noisy[b, positions] / (-u.log()) ** temperature
                random_BL[b, positions] = uniform(seed, name, step, "order", (len(positions),), x.device)
            x0 = noisy.argmax(-1)
            if eos_policy == "last":
                logits[:, :, [EOS, EOT]] = -torch.inf
            p = logits.softmax(-1).gather(-1, x0[..., None]).squeeze(-1)
            conf = p if remasking == "low_confidence" else random_BL
            if eos_policy == "last":
                conf = conf.masked_fill((x0 == EOS) | (x0 == EOT), 0.0)
            conf[:, last:] = -torch.inf
            conf[x != MASK] = -torch.inf
            for b in range(len(x)):
                quota = int(open_B[b]) // per_block + (i < int(open_B[b]) % per_block)
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
def test_threshold_commits_every_sure_place_and_always_the_best(threshold: float) -> None:
    (prompt,) = prompts(10)
    out = write([[Text(prompt), Target(length=24)]], threshold=threshold, block_length=8, early_stop=False)
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


# Rows do not know their batch mates -----------------------------------------------------------------------------------

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
    together = write(RAGGED, side, [8, 3, 5, 4], seed=1, **named)
    for b, (row, name) in enumerate(zip(RAGGED, [8, 3, 5, 4], strict=True)):
        alone = write([row], index=[name], seed=1, **named)
        target_L, alone_L = together.target_BL[b], alone.target_BL[0]
        assert together.targets()[b] == alone.targets()[0]
        assert together.step_BL[b][target_L].tolist() == alone.step_BL[0][alone_L].tolist()
        assert torch.allclose(together.confidence_BL[b][target_L], alone.confidence_BL[0][alone_L], atol=1e-4)
        assert int(together.forwards_B[b]) == int(alone.forwards_B[0]) == alone.calls
    assert together.calls == int(together.forwards_B.max())


def test_noise_depends_on_seed_sample_and_step() -> None:
    device = torch.device("cpu")
    first = uniform(1, 2, 3, "token", (4,), device)
    assert torch.equal(first, uniform(1, 2, 3, "token", (4,), device))
    for other in [(0, 2, 3, "token"), (1, 0, 3, "token"), (1, 2, 0, "token"), (1, 2, 3, "order")]:
        assert not torch.equal(first, uniform(*other, (4,), device))


# Hand-made logits -----------------------------------------------------------------------------------------------------


class Table:
    """A Denoise that answers from a fixed table of logits and remembers what it was asked."""

    def __init__(self, logits_BLV: Tensor) -> None:
        self.logits_BLV = logits_BLV
        self.rows: list[list[int]] = []
        self.wanted: list[int] = []
        self.media: list[Tensor | None] = []
        self.ids: list[Tensor] = []

    def __call__(self, ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        self.rows.append(row_R.tolist())
        self.wanted.append(int(predict_RL.sum()))
        self.media.append(media_R)
        self.ids.append(ids_RL.clone())
        return self.logits_BLV[row_R][predict_RL]


def saying(*rows: list[int], sure: list[list[float]] | None = None) -> Table:
    """Logits under which position l of row b says rows[b][l], its logit 9 or the one given."""
    table = torch.zeros(len(rows), len(rows[0]), V)
    for b, row in enumerate(rows):
        for position, token in enumerate(row):
            table[b, position, token] = 9.0 if sure is None else sure[b][position]
    return Table(table)


def test_quota_is_an_even_split_and_empty_steps_cost_nothing() -> None:
    table = saying(list(range(10)))
    batch = collate([[Target(length=10)]], VOCAB)
    out = sample(table, batch, VOCAB, GenerationConfig(steps=4))
    assert [int((out.step_BL == s).sum()) for s in range(1, 5)] == [3, 3, 2, 2]
    assert table.wanted == [10, 7, 4, 2]  # wanted positions are the open ones
    assert sample(table, batch, VOCAB, GenerationConfig(steps=64)).calls == 10
    # blocks of 4, 4, 2 positions share 9 steps: three each, of which the last block can use two
    out = sample(table, batch, VOCAB, GenerationConfig(steps=9, block_length=4))
    assert out.step_BL[0].tolist() == [1, 1, 2, 3, 4, 4, 5, 6, 7, 8]


def test_blocks_go_by_rank_of_targets_wherever_they_lie() -> None:
    target_BL = torch.tensor([[0, 1, 1, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    masked_BL = target_BL.clone()
    masked_BL[0, 1:3] = False  # the first block is given: it takes no steps
    block_BL, steps_BK = plan(masked_BL, target_BL, 6, 2)
    assert block_BL[target_BL].tolist() == [0, 0, 1, 1, 2, 0]
    assert steps_BK.tolist() == [[0, 3, 3, 0], [6, 0, 0, 0]]
    assert plan(masked_BL, target_BL, None, 2)[1].tolist() == [[0, 2, 1, 0], [1, 0, 0, 0]]


def test_infilling_keeps_what_is_given_and_a_mask_id_in_the_prompt_is_no_open_place() -> None:
    row: Sample = [Text([5, MASK, 6]), Target([MASK, 11, MASK]), Text([MASK]), Target(length=2)]
    out = sample(saying([20] * 9), collate([row], VOCAB), VOCAB, GenerationConfig(steps=2))
    assert out.ids_BL[0].tolist() == [5, MASK, 6, 20, 11, 20, MASK, 20, 20]
    assert out.step_BL[0].tolist() == [0, 0, 0, 1, 0, 1, 0, 2, 2]  # two of four a step: the prompt's masks take none
    given = out.step_BL[0] == 0
    assert (out.confidence_BL[0][given] == 1).all() and (out.confidence_BL[0][~given] < 1).all()
    full = collate([[Text([1, 2]), Target([3])]], VOCAB)
    assert sample(saying([0] * 3), full, VOCAB, GenerationConfig()).calls == 0


def test_finished_rows_take_part_in_no_further_call() -> None:
    batch = collate([[Target(length=6)], [Target(length=2)], [Target(length=4)]], VOCAB)
    table = saying([1] * 6, [2] * 6, [3] * 6)
    out = sample(table, batch, VOCAB, GenerationConfig())
    assert out.forwards_B.tolist() == [6, 2, 4] and out.calls == 6
    assert table.rows == [[0, 1, 2]] * 2 + [[0, 2]] * 2 + [[0]] * 2
    assert out.targets() == [[1] * 6, [2] * 2, [3] * 4]


def test_early_stop_fills_the_rest_with_eos() -> None:
    says = [1, 2, EOT, 3, 4, 5]
    sure = [[9.0, 8.0, 10.0, 7.0, 6.0, 5.0]]
    batch = collate([[Target(length=6)]], VOCAB)
    out = sample(saying(says, sure=sure), batch, VOCAB, GenerationConfig())
    # the end id is surest, but it ends the row only when both positions before it are written
    assert out.ids_BL[0].tolist() == [1, 2, EOT, EOS, EOS, EOS]
    assert out.step_BL[0].tolist() == [2, 3, 1, 3, 3, 3] and out.calls == 3
    assert (out.confidence_BL[0, 3:] == 1).all()
    out = sample(saying(says, sure=sure), batch, VOCAB, GenerationConfig(early_stop=False))
    assert out.ids_BL[0].tolist() == says and out.calls == 6


def test_early_stop_ends_its_own_span_and_no_place_that_may_not_hold_eos() -> None:
    row: Sample = [Target(length=3), Text([1]), Target(length=2), Target(length=2, allow=((10, 12),))]
    out = sample(saying([EOS, 3, 3, 3, 4, 4, 10, 11]), collate([row], VOCAB), VOCAB, GenerationConfig(block_length=1))
    assert out.ids_BL[0].tolist() == [EOS, EOS, EOS, 1, 4, 4, 10, 11]


def test_a_span_that_may_not_hold_eos_is_written_to_its_end() -> None:
    batch = collate([[Target(length=3, allow=((1, 3), (EOT, EOT + 1)))]], VOCAB)
    out = sample(saying([EOT, 1, 2]), batch, VOCAB, GenerationConfig())
    assert out.ids_BL[0].tolist() == [EOT, 1, 2]


def test_given_end_ids_end_nothing() -> None:
    out = sample(saying([1, 2, 3]), collate([[Target([EOS, MASK, MASK])]], VOCAB), VOCAB, GenerationConfig())
    assert out.ids_BL[0].tolist() == [EOS, 2, 3]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
def test_eos_last_commits_end_ids_after_all_others(temperature: float, remasking: str) -> None:
    says, sure = [EOS, 1, EOT, 2, EOS, 3], [[80.0, 40.0, 80.0, 40.0, 80.0, 40.0]]
    named: dict[str, Any] = dict(temperature=temperature, remasking=remasking, early_stop=False)
    batch = collate([[Target(length=6)]], VOCAB)
    out = sample(saying(says, sure=sure), batch, VOCAB, generation_config(eos_policy="last", **named))
    ends = torch.tensor([True, False] * 3)
    assert out.ids_BL[0].tolist() == says  # it may be written, at any temperature ...
    assert out.step_BL[0][ends].min() > out.step_BL[0][~ends].max()  # ... after everything else
    assert (out.confidence_BL[0][ends] == 0).all()
    out = sample(saying(says, sure=sure), batch, VOCAB, generation_config(eos_policy="suppress", **named))
    assert not torch.isin(out.ids_BL, torch.tensor([EOS, EOT])).any()


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_only_allowed_ids_are_written(temperature: float) -> None:
    rows: list[Sample] = [[Target(length=9, allow=((3, 5), (40, 41))), Target(length=9)]] * 4
    batch = collate(rows, VOCAB)
    logits_BLV = torch.randn(4, 18, V, generator=torch.Generator().manual_seed(0))
    logits_BLV[:, :, [MASK, SLOT, 50]] = 30.0
    table = Table(logits_BLV)
    out = sample(
        table, batch, VOCAB, GenerationConfig(temperature=temperature, suppress_ids=[50, 40], early_stop=False)
    )
    assert set(out.ids_BL[:, :9].unique().tolist()) == {3, 4}
    assert not torch.isin(out.ids_BL[:, 9:], torch.tensor([MASK, SLOT, 50, 40])).any()
    # confidence is the probability among the allowed ids
    p = logits_BLV[0, 0, [3, 4]].softmax(-1)[out.ids_BL[0, 0] - 3]
    assert float(out.confidence_BL[0, 0]) == pytest.approx(float(p), abs=1e-6)
    with pytest.raises(ConfigError, match="row 0, position 0"):
        sample(table, batch, VOCAB, GenerationConfig(suppress_ids=[3, 4, 40]))
    with pytest.raises(ConfigError, match="99"):
        sample(table, batch, VOCAB, GenerationConfig(suppress_ids=[99]))


def test_tokens_are_suppressed_by_their_spelling() -> None:
    vocab = toy_backbone("GSAI-ML/LLaDA-8B-Instruct").vocab
    turn = vocab.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    logits_BLV = torch.zeros(1, 4, vocab.size)
    logits_BLV[..., [65, vocab.eos_id, turn]] = torch.tensor([1.0, 2.0, 3.0])  # the likeliest is the last

    def written(*tokens: str) -> list[int]:
        config = GenerationConfig(suppress_tokens=list(tokens), early_stop=False)
        return sample(Table(logits_BLV), collate([[Target(length=4)]], vocab), vocab, config).ids_BL[0].tolist()

    assert written() == [turn] * 4
    assert written("<|eot_id|>") == [vocab.eos_id] * 4
    assert written("<|eot_id|>", "<|endoftext|>") == [65] * 4
    with pytest.raises(ConfigError, match=r"suppress_tokens: the tokenizer has no '<\|eot\|>' \(did you mean"):
        written("<|eot|>")


def test_an_end_that_is_also_the_slot_can_be_written() -> None:
    """LLaDA's padding, which stands where pictures go, is its end of sequence."""
    vocab = toy_backbone("GSAI-ML/LLaDA-8B-Instruct").vocab
    assert vocab.slot_id == vocab.eos_id
    logits_BLV = torch.zeros(1, 4, vocab.size)
    logits_BLV[..., vocab.eos_id] = 9.0
    out = sample(Table(logits_BLV), collate([[Target(length=4)]], vocab), vocab, GenerationConfig(steps=4))
    assert out.ids_BL[0].tolist() == [vocab.eos_id] * 4 and int(out.forwards_B[0]) == 1  # it stops early


def test_a_turn_ends_although_eos_is_suppressed() -> None:
    """LLaDA-V's settings: its answers end in <|eot_id|>, and EOS is never proposed."""
    vocab = toy_backbone("GSAI-ML/LLaDA-8B-Instruct").vocab
    turn = vocab.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    logits_BLV = torch.zeros(1, 5, vocab.size)
    logits_BLV[0, [0, 1, 2, 3, 4], [65, turn, 66, 66, 66]] = torch.tensor([9.0, 8.0, 3.0, 2.0, 1.0])
    config = GenerationConfig(suppress_tokens=["<|endoftext|>"])
    out = sample(Table(logits_BLV), collate([[Target(length=5)]], vocab), vocab, config)
    assert out.ids_BL[0].tolist() == [65, turn, *[vocab.eos_id] * 3] and int(out.forwards_B[0]) == 2


def test_what_denoise_returns_is_not_written_to() -> None:
    held_PV = torch.randn(1, V, generator=torch.Generator().manual_seed(0))
    before_PV = held_PV.clone()
    config = GenerationConfig(temperature=1.0, eos_policy="last")
    sample(lambda *asked: held_PV, collate([[Target(length=1)]], VOCAB), VOCAB, config)
    assert torch.equal(held_PV, before_PV)


def test_padding_rows_of_the_embedding_table_are_never_written() -> None:
    vocab = Vocab(word_tokenizer(["a", "b"]), 12, mask_id=2, eos_id=1, pad_id=0, slot_id=3, ranges={"bin": (8, 10)})
    logits_BLV = torch.zeros(1, 4, 12)
    logits_BLV[..., 7], logits_BLV[..., 10], logits_BLV[..., 9], logits_BLV[..., 5] = 9.0, 8.0, 7.0, 6.0
    batch = collate([[Target(length=2), Target(length=2, allow=((10, 11),))]], vocab)
    assert sample(Table(logits_BLV), batch, vocab, GenerationConfig()).ids_BL[0].tolist() == [5, 5, 10, 10]


def test_confidence_does_not_know_the_temperature() -> None:
    logits_BLV = torch.randn(1, 6, V, generator=torch.Generator().manual_seed(1))
    out = sample(
        Table(logits_BLV), collate([[Target(length=6)]], VOCAB), VOCAB, GenerationConfig(temperature=2.0, seed=4)
    )
    logits_BLV[..., [MASK, SLOT]] = -torch.inf
    p = logits_BLV.double().softmax(-1).gather(-1, out.ids_BL[..., None]).squeeze(-1)
    assert torch.allclose(out.confidence_BL.double(), p, atol=1e-6)


def test_gumbel_noise_is_not_rounded_to_single_precision() -> None:
    """In fp32 both numbers are 1, their noise infinite and the first position always the winner (arXiv 2409.02908)."""

    class Two:
        def rows(self, stream: str, *width: int) -> Any:
            yield torch.tensor([[1 - 2e-12, 1 - 1e-12], [1 - 1e-12, 1 - 2e-12]], dtype=torch.float64)

    noise: Any = Two()
    assert propose(torch.zeros(2, 2), 1.0, noise).tolist() == [1, 0]
    assert uniform(0, 0, 1, "token", (1,), torch.device("cpu")).dtype == torch.float64


def test_low_temperature_is_nearly_greedy_and_high_is_not() -> None:
    logits_BLV = torch.randn(1, 40, V, generator=torch.Generator().manual_seed(2))
    batch = collate([[Target(length=40)]], VOCAB)
    ids = {
        t: sample(Table(logits_BLV), batch, VOCAB, GenerationConfig(temperature=t, steps=1, early_stop=False)).ids_BL
        for t in (0.0, 1e-4, 3.0)
    }
    assert torch.equal(ids[0.0], ids[1e-4]) and (ids[0.0] != ids[3.0]).float().mean() > 0.5


# Guidance -------------------------------------------------------------------------------------------------------------


def test_guidance_masks_the_context_and_leaves_the_media_out() -> None:
    batch = collate([[Text([1, 2]), Target([MASK, 7])], [Text([3]), Target([MASK])]], VOCAB)
    table = saying([0] * 4, [0] * 4)
    predict_BL = batch.target_BL & (batch.ids_BL == MASK)
    guided(table, batch, MASK, 1.0)(batch.ids_BL, predict_BL, torch.arange(2))
    assert table.ids[0].tolist() == [
        [1, 2, MASK, 7], [3, MASK, EOS, EOS], [MASK, MASK, MASK, 7], [MASK, MASK, EOS, EOS],
    ]  # fmt: skip
    assert table.rows == [[0, 1, 0, 1]]
    assert table.media[0] is not None and table.media[0].tolist() == [True, True, False, False]


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_guidance_changes_nothing_for_a_model_that_ignores_the_context(scale: float) -> None:
    batch = collate([[Text([1, 2]), Target(length=5)]], VOCAB)
    table = Table(torch.randn(1, 7, V, generator=torch.Generator().manual_seed(3)))
    named: dict[str, Any] = dict(temperature=1.0, steps=3)
    plain = sample(table, batch, VOCAB, generation_config(**named))
    out = sample(table, batch, VOCAB, generation_config(**named, guidance_scale=scale))
    assert out.targets() == plain.targets() and out.calls == plain.calls


# Rules ----------------------------------------------------------------------------------------------------------------


def proposal(row: list[int], quota: list[int] | None = None) -> Proposal:
    row_P = torch.tensor(row)
    quota_R = torch.tensor(quota or [1] * (max(row) + 1))
    none: Any = None
    return Proposal(row_P, torch.arange(len(row)), torch.zeros_like(row_P), torch.ones(len(row)), quota_R, none, none)


def test_order_ranks_within_rows_and_prefers_the_left() -> None:
    score_P = torch.tensor([0.1, 0.9, 0.9, 0.5, 0.5, 0.7])
    assert order(score_P, torch.tensor([0, 0, 0, 1, 1, 1])).tolist() == [2, 0, 1, 1, 2, 0]


def test_scores_of_a_known_pair() -> None:
    """arXiv 2502.06768: the best token is likelier in the first, but only the second leaves no rival."""
    p_PV = torch.tensor([[0.5, 0.48, 0.02] + [0.0] * 7, [0.45] + [0.55 / 9] * 9])
    logits_PV = p_PV.log()
    assert Margin()(logits_PV, proposal([0, 0])).tolist() == pytest.approx([0.02, 0.45 - 0.55 / 9], abs=1e-6)
    assert NegativeEntropy()(logits_PV, proposal([0, 0])).tolist() == pytest.approx([-0.777, -1.897], abs=1e-3)


def test_factor_takes_the_largest_n_that_holds() -> None:
    # bounds for factor 1: n=1 0.5, n=2 0.667, n=3 0.75
    score_P = torch.tensor([0.7, 0.9, 0.1, 0.2, 0.8, 0.74])
    assert Factor(1.0)(score_P, proposal([0, 0, 0, 0, 1, 1])).tolist() == [True, True, False, False, True, True]
    assert Factor(0.1)(score_P, proposal([0, 0, 0, 0, 1, 1])).tolist() == [False, True, False, False, True, False]


def test_running_confidence_is_low_confidence_when_confidences_do_not_change() -> None:
    sure = torch.randperm(12, generator=torch.Generator().manual_seed(5)).add(1).div(2).tolist()
    batch = collate([[Target(length=12)]], VOCAB)
    plain = sample(saying(list(range(12)), sure=[sure]), batch, VOCAB, GenerationConfig(steps=5))
    config = GenerationConfig(steps=5, select=Everything(), revise=RunningConfidence())
    table = saying(list(range(12)), sure=[sure])
    out = sample(table, batch, VOCAB, config)
    assert out.ids_BL.tolist() == plain.ids_BL.tolist() and out.calls == 5
    assert out.step_BL.tolist() == plain.step_BL.tolist()
    assert table.wanted == [12, 9, 6, 4, 2]


def test_running_confidence_mends_what_later_context_contradicts() -> None:
    """Position 0 says 1 at first, and 2, surely, once position 1 is written; without revision the first word stays."""

    def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        logits_RLV = torch.zeros(1, 3, V)
        logits_RLV[0, 0, 1], logits_RLV[0, 1, 5], logits_RLV[0, 2, 6] = 5.0, 6.0, 4.0
        if ids_RL[0, 1] == 5:
            logits_RLV[0, 0, 2] = 20.0
        return logits_RLV[predict_RL]

    batch = collate([[Target(length=3)]], VOCAB)
    # two of three a step: position 0 is among the first two, so only a rule that reopens it can mend it

    class ReopenFirst:
        def __call__(self, committed: Any) -> Tensor:
            out_RL = torch.zeros_like(committed.committed_RL)
            out_RL[:, 0] = True
            return out_RL

    assert sample(denoise, batch, VOCAB, GenerationConfig(steps=2)).ids_BL[0].tolist() == [1, 5, 6]
    out = sample(denoise, batch, VOCAB, GenerationConfig(steps=2, revise=ReopenFirst()))
    assert out.ids_BL[0].tolist() == [2, 5, 6] and out.step_BL[0].tolist() == [2, 1, 2]
    # a rule that always reopens still comes to an end
    assert sample(denoise, batch, VOCAB, GenerationConfig(threshold=0.5, revise=ReopenFirst())).calls <= 6


def test_rules_are_chosen_by_dotted_path() -> None:
    logits_BLV = torch.full((1, 2, V), -torch.inf)
    logits_BLV[0, 0, :3] = torch.tensor([0.5, 0.48, 0.02]).log()
    logits_BLV[0, 1, :10] = torch.tensor([0.45] + [0.55 / 9] * 9).log()
    batch = collate([[Target(length=2)]], VOCAB)
    steps = [
        sample(Table(logits_BLV), batch, VOCAB, GenerationConfig(remasking=name)).step_BL[0].tolist()
        for name in ("low_confidence", "mmdiff.samplers.rules.score.Margin")
    ]
    assert steps == [[1, 2], [2, 1]]
    node = {"target": "mmdiff.samplers.rules.select.Threshold", "threshold": 0.4}
    assert sample(Table(logits_BLV), batch, VOCAB, GenerationConfig(select=node)).calls == 1


def test_a_select_rule_that_commits_nothing_is_refused() -> None:
    class Nothing:
        def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
            return torch.zeros_like(score_P, dtype=torch.bool)

    with pytest.raises(ConfigError, match="Nothing"):
        sample(saying([1, 2]), collate([[Target(length=2)]], VOCAB), VOCAB, GenerationConfig(select=Nothing()))


# Options and streams --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"step": 3}, 'did you mean "steps"'),
        ({"steps": 0}, "sampler.steps=0"),
        ({"steps": 2.5}, "sampler.steps: 2.5 is not a whole number"),
        ({"block_length": -1}, "sampler.block_length=-1"),
        ({"temperature": -0.1}, "sampler.temperature=-0.1"),
        ({"temperature": float("nan")}, "sampler.temperature=nan"),
        ({"guidance_scale": "1"}, "sampler.guidance_scale: '1' is not a number"),
        ({"threshold": 0.0}, "sampler.threshold=0.0"),
        ({"threshold": 1.1}, "sampler.threshold=1.1"),
        ({"threshold": 0.9, "remasking": "random"}, "random"),
        ({"remasking": "low_confidense"}, 'did you mean "low_confidence"'),
        ({"eos_policy": "supress"}, 'did you mean "suppress"'),
        ({"max_new_tokens": 0}, "sampler.max_new_tokens=0"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(named: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        generation_config(**named)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_named_options_go_over_a_config_and_a_bad_config_is_refused() -> None:
    config = GenerationConfig(steps=7)
    assert generation_config(config, seed=3) == replace(config, seed=3) and config.seed == 0
    with pytest.raises(ConfigError, match="steps"):
        sample(saying([1]), collate([[Target(length=1)]], VOCAB), VOCAB, GenerationConfig(steps=-1))


def test_a_streamer_sees_a_draft_a_step_and_the_final_canvas() -> None:
    vocab = Vocab(word_tokenizer(["one", "two", "six"]), 7, mask_id=2, eos_id=1, pad_id=0, slot_id=0)
    logits_BLV = torch.zeros(1, 4, 7)
    for position, (token, sure) in enumerate([(6, 1.0), (4, 9.0), (5, 8.0), (4, 7.0)]):
        logits_BLV[0, position, token] = sure
    file = io.StringIO()
    batch = collate([[Text([6]), Target(length=3)]], vocab)
    config = GenerationConfig(block_length=2, steps=2)
    out = sample(Table(logits_BLV), batch, vocab, config, streamer=TextStreamer(vocab, batch, file=file))
    assert file.getvalue().splitlines() == ["   1 | one two░", "   2 | one two one", "one two one"]
    assert out.calls == 2

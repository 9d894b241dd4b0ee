"""The typed top of every configuration file. Fields of type `Any` named below are nodes: `{target: dotted.path, ...}`.

Files are checked against the annotations, ranges of numbers included, see `mmdiff.config.load`. Torch is not imported:
`mmdiff config` must not wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mmdiff.parts.ranges import (
    AtLeast0,
    AtLeast1,
    BelowOne,
    Buckets,
    NotNegative,
    PositiveShare,
    Processes,
    Share,
    Threads,
    UpToMillion,
    Whole,
)


@dataclass
class ModelConfig:
    """The parts of a model. encoders, connectors and heads are keyed by the kind of media (`image`, `audio`, ...),
    extras by the names under which objectives and samplers ask for them."""

    backbone: Any = None  # node: a mmdiff.backbones.Backbone
    encoders: dict[str, Any] = field(default_factory=dict)  # node: mmdiff.protocols.Encoder
    connectors: dict[str, Any] = field(default_factory=dict)  # node; given width_in and width_out
    heads: dict[str, Any] = field(default_factory=dict)  # node: readouts of an encoder, used by its pre-training only
    extras: dict[str, Any] = field(default_factory=dict)  # node: further modules (width, ... given if taken)
    weights: str | None = None  # a saved model or a published multimodal one to start from, instead of the parts' own
    dtype: str | None = None  # of the backbone of `weights`; None: as it was saved, float32 of a published one
    words: list[str] = field(default_factory=list)  # added to the tokenizer, see mmdiff.model.MMDiff.grow
    reserve: dict[str, AtLeast1] = field(default_factory=dict)  # ids by name, besides those that the backbone reserves
    attention: Any = None  # node: who sees whom, see mmdiff.canvas.patterns; None: as saved, or as the family has it
    prefix_causal: bool | None = None  # true: `attention` is mmdiff.canvas.patterns.PrefixCausal; false: it is Full


@dataclass
class GenerationConfig:
    """How a canvas is filled. Names follow LLaDA's generate.py and transformers where they have one.

    max_new_tokens: masked positions behind a prompt, only where `generate` is given plain ids instead of a canvas.
    steps: denoising steps over the whole canvas, divided evenly among the blocks of a row that have masked positions,
        at least one each; within a block its positions are divided evenly among its steps, the first steps taking the
        remainder. None: one position per step.
    schedule: linear (the even division above) | cosine: after step s of the T of a block floor(n cos(pi/2 s/T)) of its
        n positions are still masked, with at least one committed per step (MaskGIT, arXiv 2202.04200) | shifted: many
        at first and ever fewer (LaViDa) | ascending: 1, 2, 4, ... (ASS) | a node (mmdiff.samplers.unmask_schedule).
    block_length: target positions per block; blocks are filled in order. None: all target positions are one block.
    block_start: where blocks are counted from: `targets`, or `row`, whose first position may be context, so that the
        first block may hold the end of the context and the beginning of the answer (LLaDA2, SDAR, Fast-dLLM v2).
    temperature: 0 is greedy; otherwise tokens are drawn with float64 Gumbel noise (arXiv 2409.02908). The confidence of
        a token never depends on it.
    temperature_end: the temperature of a block's last step, reached in a straight line from `temperature` at its first.
        None: the temperature is constant.
    guidance_scale: s in `u + (s + 1) (c - u)`, u with the context masked and the media left out; 0: off.
    top_k, top_p: tokens are drawn from the so many likeliest ids, and from the fewest that together have this
        probability. They change no confidence, and nothing at temperature 0. None: all.
    remasking: the score by which positions are committed: low_confidence | random | margin | entropy | left_to_right |
        a node (mmdiff.samplers.rules.score).
    confidence: what a probability is over: `allowed`, the ids that may stand at a position, or `vocabulary`, all ids as
        in the published codes, so that a model that would rather write the mask id is less sure.
    process: node of the noise process (mmdiff.samplers.processes). None: absorbing noise.
    denoise: nodes of what stands between sampler and model, the nearest to the model first: caches, guidance; and, as
        the last, an energy or a verifier, which chooses among proposals (mmdiff.samplers.links.chain).
    threshold: commit every position whose score reaches it, at least one (Fast-dLLM); `steps` then plays no part. None:
        as many positions as the schedule gives.
    select: node of a rule that replaces threshold, and mostly the schedule too (docs/sampling.md lists all rules).
    constraint: node of a grammar that the text of every target span must be of (mmdiff.samplers.grammars): a JSON
        schema, a regular expression, a list of texts, EBNF. It holds in any order of unmasking.
    revise: node of a rule that masks positions of the current block again (mmdiff.samplers.rules.revise). None: what is
        committed stays.
    draft: node of a rule that masks positions of a given draft, to be predicted again (mmdiff.samplers.deliberation).
        None: what is given stays, only masked positions are filled.
    eos_policy: none | suppress (end ids are never committed; LLaDA's logits_eos_inf, which knows one end id) | last
        (end ids are committed after all other proposals of a step; LLaDA's confidence_eos_eot_inf).
    early_stop: an end id ends its target span: what lies behind becomes EOS.
    end_rule: when it does: `complete`, as soon as no position before it is masked; `at_once`, as soon as it is
        committed (Whisper-LLaDA): from then on only positions before it are predicted; `before`, so too, but what
        stands behind becomes EOS at the end of the generation only, and is seen as it is until then (LLaDA-V).
    suppress_ids: ids that are never committed, besides mask, slot and padding rows of the embedding table.
    suppress_tokens: the same by spelling (`<|endoftext|>`), whatever ids the tokenizer gives them.
    prefix_cache: Fast-dLLM's prefix cache, an approximation: as `denoise: [mmdiff.samplers.links.caches.Prefix]`. A
        model whose attention pattern keeps the context exactly does so anyway.
    compile: the layers of the model are run as graphs of this backend of torch.compile, and of cached forwards
        the number of positions is filled up to a power of two, so that shapes repeat; only where `generate` of a model
        runs the sampler. inductor compiles kernels, which takes about a minute once; eager and aot_eager only trace, to
        look for faults.
    seed: with a sample's index and the row's own step it determines every draw.
    """

    max_new_tokens: AtLeast1 = 128
    steps: AtLeast1 | None = None
    schedule: Literal["linear", "cosine", "shifted", "ascending"] | Any = "linear"
    block_length: AtLeast1 | None = None
    block_start: Literal["targets", "row"] = "targets"
    temperature: NotNegative = 0.0
    temperature_end: NotNegative | None = None
    top_k: AtLeast1 | None = None
    top_p: PositiveShare | None = None
    guidance_scale: NotNegative = 0.0
    remasking: Literal["low_confidence", "random", "margin", "entropy", "left_to_right"] | Any = "low_confidence"
    confidence: Literal["allowed", "vocabulary"] = "allowed"
    process: Any = None
    denoise: list[Any] = field(default_factory=list)
    threshold: PositiveShare | None = None
    select: Any = None
    revise: Any = None
    draft: Any = None
    constraint: Any = None
    eos_policy: Literal["none", "suppress", "last"] = "none"
    early_stop: bool = True
    end_rule: Literal["complete", "at_once", "before"] = "complete"
    suppress_ids: list[AtLeast0] = field(default_factory=list)
    suppress_tokens: list[str] = field(default_factory=list)
    prefix_cache: bool = False
    compile: Literal["none", "inductor", "aot_eager", "eager"] = "none"
    seed: Whole = 0


@dataclass
class StageConfig:
    """One stage of training: its rows, objective, parameters and length."""

    steps: AtLeast1 = 1000
    data: Any = None  # node of rows, or {name: {rows: node, task: node, weight: float}} for a mixture
    objective: Any = None  # node: mmdiff.protocols.Objective
    optimizer: Any = None  # node: a class of torch.optim, or one like them; None: AdamW, see mmdiff.training.optim
    params: list[Any] = field(default_factory=list)  # rules, see mmdiff.model.params
    batch_size: UpToMillion = 32  # samples per forward and process
    bucket: Buckets = 0  # this many batches are sorted by length together, for less padding; 0: off
    pack: AtLeast0 = 0  # positions of a row that samples share in a forward, see mmdiff.canvas.packing; 0: off
    accumulate: UpToMillion = 1  # forwards per step
    lr: NotNegative = 1e-4
    weight_decay: NotNegative = 0.0
    warmup: NotNegative = 0.03  # below 1: a share of the steps, else steps
    lr_schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"  # see mmdiff.training.optim.lr_factor
    lr_end: Share = 0.0  # share of lr left at the end
    anneal: AtLeast0 = 0  # steps in which attention goes from causal to full, see mmdiff.training.annealing; 0: none
    decay: PositiveShare = 0.2  # of wsd (warm-up, stable, decay): the share of the steps, at the end, in which lr falls
    padding: Literal["ignore", "eos", "answer"] = "ignore"  # see mmdiff.data.collate.collate
    cache_features: bool = False  # keep a frozen encoder's features on disk
    eval: Any = None  # node of held-out rows for the bound (default: none)
    patience: AtLeast0 = 0  # bounds in a row, none below the lowest before, that end the stage early; 0: never


@dataclass
class TrainConfig:
    """The stages of a run, and what they have in common."""

    stages: dict[str, StageConfig] = field(default_factory=dict)  # run in this order
    seed: Whole = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # mixed, by accelerate
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    clip: NotNegative = 1.0  # gradient norm; 0: off
    on_divergence: Literal["stop", "skip"] = "stop"  # what a loss or gradient that is not finite does to a run, a step
    ema: BelowOne = 0.0  # decay of the average of the trained weights that is evaluated and saved; 0: off
    sharding: Literal["none", "full", "gradients", "hybrid"] = "none"  # over processes, see mmdiff.training.parallel
    deepspeed: str | None = None  # a configuration file of DeepSpeed, in place of `sharding`
    compile: Literal["none", "inductor", "aot_eager", "eager"] = "none"  # of the backbone's layers, by torch.compile
    gradient_checkpointing: bool = False
    logit_chunk: AtLeast1 = 4096  # masked positions whose logits exist at one time
    workers: Processes = 0  # data processes
    sample_cache_mb: AtLeast0 = 0  # MiB of samples, media read, that each data process keeps for later epochs
    threads: Threads | None = None  # torch threads; None: torch's own choice
    log_every: AtLeast1 = 10
    save_every: AtLeast1 = 500
    keep: AtLeast1 = 2  # checkpoints kept, the newest
    keep_best: AtLeast0 = 0  # and those with the lowest bounds on held-out rows
    eval_every: AtLeast0 = 0  # steps between bounds on the stage's `eval` rows; 0: at the end of the stage
    tensorboard: bool = True
    trackers: list[Literal["wandb", "mlflow"]] = field(default_factory=list)  # by accelerate


@dataclass
class EvalConfig:
    """What `mmdiff eval` scores."""

    data: dict[str, Any] = field(default_factory=dict)  # name of a set -> node of rows
    batch_size: UpToMillion = 64
    limit: AtLeast1 | None = None  # rows per set
    examples: AtLeast0 = 48  # rows shown in the report


@dataclass
class Config:
    """The top of every configuration file."""

    base: str | None = None  # a packaged name or a path; read first, this file over it
    name: str | None = None  # the run is runs/<name>; default: the file's name
    demo: str | None = None  # dotted path of what `mmdiff demo` runs
    model: ModelConfig = field(default_factory=ModelConfig)
    task: Any = None  # node: mmdiff.protocols.Task
    sampler: GenerationConfig = field(default_factory=GenerationConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

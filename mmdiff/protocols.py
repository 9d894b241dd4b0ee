"""The interfaces of the framework, on one page. Read this first: all other code stands behind one of these names.

A row of a file becomes a canvas (`Source`, `Task`). Media on it become features, which take positions of the canvas
(`Encoder`, `Connector`, seen by data processes as a `Reader`). The backbone attends over it (`Model`). Training adds an
`Objective`; generation asks for logits through `Denoise`. ARCHITECTURE.md draws both flows.

Shape letters: B samples of a batch, L canvas length, R rows (copies of samples that a call works on), D backbone width,
V vocabulary, E encoder width, N crops of media (tiles of a picture, windows of a sound), T features per crop, M slots
(positions that features take) of one kind of media in the whole batch, P predicted positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from mmdiff.canvas.batch import Batch, MediaBatch
    from mmdiff.canvas.generation import GenerationState
    from mmdiff.canvas.pattern import Pattern
    from mmdiff.canvas.query import Prediction, Query
    from mmdiff.canvas.sample import Item, Sample
    from mmdiff.canvas.vocab import Vocab
    from mmdiff.diffusion.keys import NoiseKey


Row = Mapping[str, Any]
"""One example as it stands in a file: `{"image": "cat.jpg", "question": "What is it?", "answer": "a cat"}`."""


class Source(Protocol):
    """Rows by number: what a data node of a configuration builds.

    A source may have `length(index) -> float`, which estimates how long a row is without reading its media, in any
    unit: `bucket` sorts rows by it. `page`, an attribute, is the page about its format, which errors about a missing
    file name. `groups`, `in_order` and `on_error` of a source are those of `mmdiff.data.stream.Stream`.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Row: ...


class Task(Protocol):
    """How a row becomes a canvas, and how a finished canvas becomes a prediction.

    `fields`, an optional attribute, names the fields of a row that the task reads: others are refused, so that none is
    misspelt and left out (`mmdiff.data.fields`). A task also has two optional methods:

    `score_all(records) -> dict[str, Any]` returns figures of a whole set that are not means over rows, as the word
    error rate of a corpus is. A record is what `mmdiff.evaluation.evaluate` makes of a row: its plain fields,
    `prediction`, `scores` and `forwards`. The ends of an interval around a figure `x` are called `x_low` and `x_high`.

    `constants() -> dict[str, Any]` returns arguments of its constructor that it found in data (statistics of actions,
    say). A saved model keeps them in place of what the configuration gives, so that it needs no data to be loaded.
    """

    def sample(self, row: Row, vocab: Vocab) -> Sample:
        """Returns the canvas of a row for training, in which `Target`s hold the answer. Raises DataError."""
        ...

    def prompt(self, row: Row, vocab: Vocab) -> Sample:
        """Returns the canvas of a row to generate, in which `Target`s are masked or partly given. Raises DataError."""
        ...

    def parse(self, ids: Sequence[int], vocab: Vocab) -> Any:
        """Returns the prediction, in a form that people read, from the ids of a row's target positions, in order."""
        ...

    def score(self, prediction: Any, row: Row) -> dict[str, float]:
        """Returns named scores of one prediction against the row's answer; a report shows their means over rows."""
        ...


class Reader(Protocol):
    """What data processes use of one kind of media: an encoder and its connector, on the CPU and without weights.

    Optional: `grid(item, before) -> (rows, columns) | None`, of slots whose positions lie along axes (see `Encoder`).
    """

    def read(self, data: object) -> Item:
        """Returns the numbers of a path, a PIL image, an array, ... Raises DataError that names the file."""
        ...

    def slots(self, item: Item) -> int:
        """Returns how many positions of the canvas the item takes."""
        ...


class Encoder(Protocol):
    """An nn.Module that turns raw numbers into features, one encoder per kind of media.

    Its class is decorated with `mmdiff.config.saveable.saveable`, so that a saved model can make it again, and its
    constructor takes explicit arguments. The class method `toy(**the same arguments)` makes an encoder of the same kind
    at toy width that needs no outside weights; `mmdiff check` uses it. Optional: `grid_of(item, before)`, which says of
    an item behind the id `before` whether its slots lie along axes; `by_layout`, True where `layouts` is given, too.
    """

    width: int  # E
    tokens: int  # T, features per crop; the most there can be where crops are of unequal length (`Item.tokens`)

    def read(self, data: object) -> Item:
        """Returns the numbers of one item of media, as `Reader.read` does. It runs in data processes."""
        ...

    def __call__(self, values_N: Tensor, length_N: Tensor | None = None) -> Tensor:
        """Returns features (N, T, E), in the encoder's own dtype, of crops (N, ...).

        length_N: int64, how much of each crop is not padding; given where items have `lengths`. Padding must not change
            the features of a crop; features beyond its own `tokens` are cut off or zeroed by the model.
        """
        ...

    def gradient_checkpointing(self, on: bool) -> None:
        """Recompute activations in the backward pass (True) or keep them (False)."""
        ...


class Connector(Protocol):
    """An nn.Module: features of width E to slots of width D. Its constructor takes `width_in` and `width_out`."""

    def slots(self, tokens: int, item: Item) -> int:
        """Returns how many slots an item takes when the encoder makes `tokens` features per crop.

        It runs in data processes, so it may look at `item.layout` and shapes only. An item whose crops are of unequal
        length is asked about crop by crop.
        """
        ...

    def __call__(self, features_NTE: Tensor, media: MediaBatch) -> Tensor:
        """Returns (M, D), the slots of all items, one item after the other, as many as `slots` has promised.

        media: `media.crops` are the crops per item, `media.tokens` the features of each crop that are not padding.
        """
        ...


class Extra(Protocol):
    """An nn.Module of a model beside its encoders, connectors and readouts: `model.extras.<name>`.

    Its class is decorated with `mmdiff.config.saveable.saveable`. A constructor that takes `width` (D), `vocab_size`
    or `mask_id` is given them. One that takes `vocab_size` has `grow(source_V)`, as `mmdiff.objectives.heads.WordHead`
    has it, if the vocabulary is to grow. What else it has is between it and the objectives and processes that use it;
    if it has `embed`, every forward calls that. A network (`mmdiff.objectives.networks`) has `hidden`, which is called
    with the model and the arguments of `Model.hidden` in place of one run of the backbone.
    """

    def embed(self, x_RLD: Tensor, ids_RL: Tensor, values_RL: Tensor | None) -> Tensor:
        """Returns embeddings (R, L, D), made of those of the ids and of what is given beside them.

        values_RL: (R, L, ...), `Query.extras` of its name; None where nobody gives any. A position is embedded by what
        stands at it, for caches embed some positions without the others.
        """
        ...


class Model(Protocol):
    """What training, prefixes and objectives use of `mmdiff.model.MMDiff`, whose docstrings say more."""

    backbone: Any  # mmdiff.backbones.Backbone
    encoders: Any  # nn.ModuleDict of Encoder, by kind of media
    connectors: Any  # nn.ModuleDict of Connector, by kind of media
    heads: Any  # nn.ModuleDict of readouts, by kind of media
    extras: Any  # nn.ModuleDict of further modules, by the names that objectives and samplers ask for
    adapters: list[dict[str, Any]]  # LoRA configurations that are in place
    published: dict[str, Any] | None  # config.json of the multimodal checkpoint that it came from
    attention: Pattern  # who sees whom
    logit_chunk: int  # masked positions whose logits exist at one time

    @property
    def vocab(self) -> Vocab: ...

    def encode(self, media: Mapping[str, MediaBatch]) -> dict[str, Tensor]:
        """Returns {kind: slots (M, D)}: encoder, then connector, once per sample."""

    def features(self, kind: str, media: MediaBatch) -> Tensor:
        """Returns the encoder's features (N, T, E) of one kind; cached ones are taken as they are."""

    def embedded(
        self,
        ids_RL: Tensor,
        features: Mapping[str, Tensor],
        slots: Mapping[str, Tensor],
        attend_RL: Tensor | None,
        extras: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Returns embeddings (R, L, D) of ids, with features put in where `slots` says which (-1: none); extras: what
        extras embed beside the ids, (R, L, ...) by name, here and below."""
        ...

    def hidden(
        self,
        ids_RL: Tensor,
        batch: Batch,
        features: Mapping[str, Tensor],
        row_R: Tensor,
        media_R: Tensor | None = None,
        memory: Any = None,
        extras: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Returns last hidden states (R, L, D). row_R: the row of `batch` that each row is a copy of."""
        ...

    def hidden_copies(
        self,
        ids_RL: Tensor,
        batch: Batch,
        features: Mapping[str, Tensor],
        copies: int,
        *,
        blockwise: bool = False,
        extras: Mapping[str, Tensor] | None = None,
        layout: Any = None,
    ) -> Tensor:
        """Returns `hidden` of copies * B rows, copy after copy; a context that sees no target is run once.

        blockwise: a block of a copy sees, of earlier blocks, the clean ids of `batch` and not those of its copy.
        """
        ...

    def gather(self, h_RLD: Tensor, row_P: Tensor, position_P: Tensor) -> Tensor:
        """Returns (P, D), the states that predict the positions."""
        ...

    def score(self, h_RLD: Tensor, batch: Batch, masked_RL: Tensor, row_R: Tensor | None = None, **how: Any) -> Any:
        """Returns `mmdiff.model.scorer.Scores` of the masked positions, in row-major order: cross-entropy in nats."""
        ...

    def parameters(self) -> Any: ...

    def named_parameters(self, *, remove_duplicate: bool = True) -> Any: ...

    def named_modules(self) -> Any: ...

    def state_dict(self) -> dict[str, Tensor]: ...


class Denoise(Protocol):
    """All that a sampler sees of a model. Guidance and caches wrap one Denoise in another, unseen by the sampler.

    A Denoise that a verifier or an energy can use has a method `left_to_right(folder=None) -> Denoise`: what it returns
    reads finished canvases, each position given those before it (`mmdiff.model.denoiser.Denoiser`).
    """

    def __call__(self, query: Query) -> Prediction:
        """Returns the logits (P, V) of the queried positions in row-major order, see `mmdiff.canvas.query`."""
        ...


class NoiseProcess(Protocol):
    """What noise does to a token, and how a generation undoes it (mmdiff.samplers.processes).

    Optional attributes: `bounded`, True where it ends by itself and, unless it is `ruled`, follows no rule of the
    sampler; `masks`, False where no position ever holds the mask id, so that a model need not have one; `refuses`, the
    fields of the sampler's settings that have no meaning for it; `growth`, how many positions it may insert per row;
    `steps`, how many every block takes, in place of the sampler's.

    A process may have `beside(rows, noise) -> {name: (R, L, ...)}`, what extras of the model embed beside the ids at a
    step. rows: `mmdiff.samplers.rules.state.State`. noise: the step's `mmdiff.diffusion.step_noise.StepNoise`. One with
    `hidden = True` is given hidden states with the logits; with one that has `proposes = True`, its tokens may be held
    to a grammar, or chosen by an energy or a verifier.
    """

    def start(self, state: GenerationState, settings: Any, noise: Any) -> None:
        """Put noise where positions are pending, before the first step."""
        ...

    def live(self, state: GenerationState) -> Tensor:
        """Returns bool (B, L), the positions that steps are still to come for. A row without any is finished."""
        ...

    def judged(self, state: GenerationState, settings: Any) -> Tensor | None:
        """Returns bool (B, L), further positions whose logits a step needs, in the block that it works on."""
        ...

    def advance(self, step: Any) -> None:
        """Carry one step (`mmdiff.samplers.step.Step`) out on its state: write, replace, noise again, insert."""
        ...


class Objective(Protocol):
    """What is trained: noised copies of a batch, then named sums, which the loop divides by global counts.

    One that has to know the model before it plans has `for_model(model) -> Objective`, which a stage calls first; of
    one that looks at held-out rows see `mmdiff.objectives.composed.least_variance`. One that trains on generations has
    `generates = True`: batches are prompts (`Task.prompt`), and its `collect(model, batch, key, rows, sampler)` returns
    what is planned in their place for `inner` steps (`mmdiff.objectives.policy`).
    """

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> Any:
        """Returns everything random, drawn from `key` on the CPU before any forward; the loop moves it to the device.

        Its `batch` is the batch that was planned, its `counts` map a term to its local denominator. Raises DataError.
        """
        ...

    def terms(self, model: Model, plan: Any) -> Mapping[str, Any]:
        """Returns {name: `mmdiff.objectives.terms.Term`}: a sum with gradient, a coefficient, what is logged."""
        ...

"""The seams, on one page. Read this first; everything else stands behind one of these names.

Shape letters: B samples, L canvas length, R rows (all copies of all samples), D backbone width, V vocabulary, E encoder
width, N crops of media (tiles, windows), T features a crop, M slots of one kind in the batch, P wanted positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from mmdiff.canvas.batch import Batch, MediaBatch
    from mmdiff.canvas.sample import Item, Sample
    from mmdiff.canvas.vocab import Vocab
    from mmdiff.diffusion.keys import NoiseKey


Row = Mapping[str, Any]
"""One example as it stands in a file: `{"image": "cat.jpg", "question": ..., "answer": ...}`."""


class Source(Protocol):
    """Rows by number. What a data node in a configuration builds.

    It may have `length(index) -> float`, which says cheaply about how long a row is, in any unit: `bucket` sorts by it.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Row: ...


class Task(Protocol):
    """How a row becomes a canvas, and a canvas an answer.

    It may also have `summary(records) -> dict[str, Any]`: figures of a whole set that are no means of rows, as is the
    WER of a corpus. A record is what `mmdiff.evaluation.evaluate` makes of a row: its plain fields, `prediction`, `scores` and
    `forwards`. The ends of an interval round a figure `x` are called `x_low` and `x_high`.

    And `constants() -> dict[str, Any]`: arguments of its constructor that it found in data (statistics of actions). A
    saved model has them in place of what the configuration says, so that it needs no file besides.
    """

    def sample(self, row: Row, vocab: Vocab) -> Sample:
        """A training canvas: `Target`s hold the answer."""
        ...

    def prompt(self, row: Row, vocab: Vocab) -> Sample:
        """A generation canvas: `Target`s are empty, or partly given."""
        ...

    def parse(self, ids: Sequence[int], vocab: Vocab) -> Any:
        """The ids of a row's target positions, in order, to what a person calls the answer."""
        ...

    def score(self, prediction: Any, row: Row) -> dict[str, float]:
        """Named scores of one prediction; a report shows their means."""
        ...


class Reader(Protocol):
    """The CPU side of an encoder with its connector: safe to use in a data worker."""

    def read(self, data: object) -> Item:
        """A path, a PIL image, an array, ... to numbers. Raises DataError that names the file."""
        ...

    def slots(self, item: Item) -> int:
        """How many positions of the canvas the item takes."""
        ...


class Encoder(Protocol):
    """An nn.Module: raw numbers to features. Decorated with `mmdiff.config.saveable.saveable`, so a saved model can make it again.

    Its constructor takes explicit arguments; `toy(**same arguments)`, a class method, makes the same kind of encoder at
    toy width without outside weights (`mmdiff check` uses it).
    """

    width: int  # E
    tokens: int  # T, features a crop; the most of them where crops are of unequal length (`Item.tokens`)

    def read(self, data: object) -> Item: ...

    def __call__(self, values_N: Tensor, length_N: Tensor | None = None) -> Tensor:
        """(N, ...) -> (N, T, E), in the encoder's own dtype.

        length_N: real entries of each crop, given where the items have `lengths`. What fills a crop up must not change
        its features; what comes behind its own `tokens` is cut off or zeroed by the model.
        """
        ...

    def gradient_checkpointing(self, on: bool) -> None: ...


class Connector(Protocol):
    """An nn.Module: features of width E to slots of width D. Its constructor is given `width_in` and `width_out`."""

    def slots(self, tokens: int, item: Item) -> int:
        """How many slots an item takes, when the encoder makes `tokens` features a crop.

        An item whose crops are of unequal length is asked crop by crop.
        """
        ...

    def __call__(self, features_NTE: Tensor, media: MediaBatch) -> Tensor:
        """-> (M, D): the slots of all items, one after the other. `media.tokens`: the real features of each crop."""
        ...


class Model(Protocol):
    """What training, prefixes and objectives use of `mmdiff.model.MMDiff`."""

    backbone: Any  # mmdiff.backbones.Backbone
    encoders: Any  # nn.ModuleDict of Encoder by kind of media
    connectors: Any  # nn.ModuleDict of Connector
    heads: Any  # nn.ModuleDict of readouts
    adapters: list[dict[str, Any]]
    prefix_causal: bool

    @property
    def vocab(self) -> Vocab: ...

    def encode(self, media: Mapping[str, MediaBatch]) -> dict[str, Tensor]: ...

    def features(self, kind: str, media: MediaBatch) -> Tensor: ...

    def embedded(
        self, ids_RL: Tensor, features: Mapping[str, Tensor], slots: Mapping[str, Tensor], attend_RL: Tensor | None
    ) -> Tensor: ...

    def hidden(self, ids_RL: Tensor, batch: Batch, features: Mapping[str, Tensor], row_R: Tensor) -> Tensor: ...

    def hidden_copies(self, ids_RL: Tensor, batch: Batch, features: Mapping[str, Tensor], copies: int) -> Tensor: ...

    def score(
        self, h_RLD: Tensor, batch: Batch, masked_RL: Tensor, row_R: Tensor | None = None, *, restrict: bool = True
    ) -> Any: ...

    def parameters(self) -> Any: ...

    def named_parameters(self) -> Any: ...

    def named_modules(self) -> Any: ...

    def state_dict(self) -> dict[str, Tensor]: ...


class Denoise(Protocol):
    """All a sampler sees of a model. Guidance and caches wrap it; the sampler does not know them."""

    def __call__(self, ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        """Logits (P, V) fp32 of the wanted positions in row-major order.

        row_R: which row of the bound batch each canvas belongs to (finished rows are left out, guidance repeats them).
        media_R: False where a row shall not see its media (guidance); None: all do.
        """
        ...


class Objective(Protocol):
    """What is trained: copies of a batch, then named sums. The loop divides by global counts and knows nothing more."""

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> Any:
        """Everything random, decided on the CPU before any forward; `.counts` maps a term to its local denominator."""
        ...

    def terms(self, model: Model, plan: Any) -> Mapping[str, Any]:
        """Name -> Term(value: sum with gradient, coefficient, logged extras)."""
        ...

"""A model with its task, loaded once, answering rows: what `generate`, `eval` and the demonstrations stand on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar, overload

import torch

from mmdiff.backbones import load_backbone
from mmdiff.canvas.batch import Batch
from mmdiff.config import build_saved, task_and_sampler, trusting
from mmdiff.config.settings import GenerationConfig
from mmdiff.config.typed import typed
from mmdiff.data.fields import check_row
from mmdiff.data.stream import canvases
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.model.published.bare import described, is_bare
from mmdiff.model.published.described import PARTS, read_config
from mmdiff.parts.ranges import AtLeast0
from mmdiff.protocols import Row, Task
from mmdiff.runs.newest import find_model
from mmdiff.samplers.streamers import TextStreamer

from .drafts import drafts
from .prediction import Prediction, canvas_of, settings_page

T = TypeVar("T", bound=Task)

METHODS = ("sample", "prompt", "parse", "score")  # of mmdiff.protocols.Task


@dataclass(repr=False)
class Session(Generic[T]):
    """A model with its task of type T, its generation settings, and the folder it was loaded from."""

    model: MMDiff
    task: T
    sampler: GenerationConfig
    folder: Path

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.model.parameters())
        return f"Session({dotted(type(self.task))}, {size:,} parameters, {str(self.folder)!r})"

    @typed
    def predict(self, row: Mapping[str, Any], *, stream: TextIO | None = None, **named: Any) -> Prediction:
        """The model's prediction for a row: {"prediction", "forwards", "canvas"}, which a notebook shows coloured.

        `prediction` is what the task makes of the generated ids, `forwards` the number of forward passes, `canvas` the
        (token, step, confidence) triples of `canvas_of`. named: fields of GenerationConfig for this call.
        stream: where the canvas is shown as it is filled, a line a step.
        Raises DataError for a field that the task does not read (`mmdiff.data.fields`).
        """
        check_row(row, getattr(self.task, "fields", None), strict=True)
        return self.predict_many([row], stream=stream, **named)[0]

    @typed
    def predict_many(
        self,
        rows: Sequence[Row],
        *,
        first: AtLeast0 = 0,
        name: str = "",
        stream: TextIO | None = None,
        **named: Any,
    ) -> list[Prediction]:
        """The predictions for rows of one batch. first: index of the first row, under which its noise is drawn.

        stream: where the canvas of the first row is shown as it is filled.
        """
        vocab = self.model.vocab
        batch = canvases(rows, self.task, vocab, self.model.readers, first=first, name=name)
        return self._filled(batch, TextStreamer(vocab, batch, file=stream) if stream is not None else None, named)

    @typed
    def stream(self, row: Mapping[str, Any], **named: Any) -> Iterator[Prediction]:
        """Yields a draft after every step, and last the prediction that `predict` returns for the row.

        The `prediction` of a draft is its text, in which `░` stands for a masked position, `forwards` are those so far.
        Whoever stops early ends the generation. named: fields of GenerationConfig. Raises as `predict`.
        """
        check_row(row, getattr(self.task, "fields", None), strict=True)
        vocab = self.model.vocab
        batch = canvases([row], self.task, vocab, self.model.readers)
        return drafts(lambda streamer: self._filled(batch, streamer, named)[0], vocab)

    def _filled(self, batch: Batch, streamer: Any, named: Mapping[str, Any]) -> list[Prediction]:
        out = self.model.generate(batch, generation_config=self.sampler, streamer=streamer, **named)
        return [
            Prediction(
                prediction=self.task.parse(ids, self.model.vocab),
                forwards=int(out.forwards_B[b]),
                canvas=canvas_of(out, b, self.model),
            )
            for b, ids in enumerate(out.targets())
        ]

    def _repr_html_(self) -> str:
        parts = {kind: ", ".join(found) for kind in PARTS if (found := getattr(self.model, kind))}
        usual = vars(GenerationConfig())
        sampler = {f"sampler.{key}": v for key, v in vars(self.sampler).items() if v != usual[key]}
        size = sum(p.numel() for p in self.model.parameters())
        found = {
            "task": dotted(type(self.task)),
            "backbone": f"{self.model.backbone.family}, {size:,} parameters with all parts",
            **parts,
            "adapters": ", ".join(str(one["part"]) for one in self.model.adapters) or "none",
            "context": f"{self.model.backbone.facts.max_length:,} positions",
            **sampler,
        }
        return settings_page(str(self.folder), found)


@overload
def load(
    folder: str | Path, *overrides: str, task: None = None, dtype: str | None = None, trust: bool = False
) -> Session[Task]: ...
@overload
def load(
    folder: str | Path, *overrides: str, task: type[T], dtype: str | None = None, trust: bool = False
) -> Session[T]: ...
@typed
def load(
    folder: str | Path,
    *overrides: str,
    task: type[Any] | None = None,
    dtype: str | None = None,
    trust: bool = False,
) -> Session[Any]:
    """Load the session of a run (`runs/x`), a checkpoint in it, or a saved model folder.

    A backbone in the folder of its authors continues text, or chats where it has a chat template, with the settings of
    generation that they publish (`mmdiff.model.published.bare`). A multimodal one answers questions about pictures
    (`mmdiff.tasks.vqa.VQA`), with their template and settings too.

    overrides: `sampler.steps=4` and `task.metrics=[...]`, as on the command line.
    task: the class that the saved task must be an instance of. dtype: of the backbone; None: as it was saved.
    trust: call whatever the folder names. Without it, a folder that this user did not write may name declared parts
        only (docs/security.md).
    Raises ConfigError, for another task too.
    """
    where = find_model(Path(folder))
    with trusting(trust):
        return _load(where, overrides, task, str(folder), dtype)


def _load(where: Path, overrides: Sequence[str], task: type[Any] | None, name: str, dtype: str | None) -> Session[Any]:
    bare = is_bare(where)
    config = described(where) if bare else read_config(where)
    if not config.get("task"):
        raise ConfigError(f"{where}: the model was saved without a task; use MMDiff.from_pretrained")
    node, sampler = task_and_sampler(config["task"], config.get("sampler") or {}, overrides)
    found = build_saved(node, "task")
    if task is not None and not isinstance(found, task):
        raise ConfigError(f"{name}: its task is {dotted(type(found))}, expected {dotted(task)}")
    for method in METHODS:
        if not callable(getattr(found, method, None)):
            raise ConfigError(f"{where}: {dotted(type(found))} is no task, it has no method `{method}`")
    if bare:
        model = MMDiff(load_backbone(where, dtype=dtype or "float32")).eval()
    else:
        model = MMDiff.from_pretrained(where, dtype=dtype)
    return Session(model.to("cuda" if torch.cuda.is_available() else "cpu"), found, sampler, where)


def dotted(cls: type[Any]) -> str:
    """Returns the dotted path of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"

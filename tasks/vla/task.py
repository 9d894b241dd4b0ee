r"""Vision-language-action: pictures, an instruction and the robot's state to a chunk of actions, as action tokens.

Action tokens are ids of a reserved range (`reserve: {action: 32}` of the backbone). Nothing else may stand where they
do, so the softmax runs over them alone (LLaDA-VLA's localized special-token classification, arXiv 2509.06932), and no
text task writes one. A row:

    {"image": b"\x89PNG...", "state": [0.1, -0.2], "instruction": "open the drawer", "action": [[0.3, 0.0, 1.0], ...],
     "action_is_pad": [false, ...], "dataset": "bridge"}

Shape letters: K actions of a chunk, D dimensions of an action, S of the state, T tokens of a chunk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmdiff.canvas.sample import Media, Part, Sample, Target, Text
from mmdiff.canvas.vocab import Vocab, literal
from mmdiff.data.fields import check_row
from mmdiff.errors import ConfigError, RowError, located
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, Bins, UpTo64, UpTo1000, Whole
from mmdiff.protocols import Row
from mmdiff.tasks.dialogue.turns import media_of

from .codecs.apart import spans
from .codecs.bins import ActionCodec, UniformBins, to_bins
from .codecs.normalise import Mode, Normaliser
from .data.statistics import NoStatistics, choose, read_statistics, to_json, warn_of_rare

State = Literal["encoder", "tokens", "none"]
ACTION, STATE = "action", "state"  # reserved ranges of the vocabulary; `state` is a kind of media too
SLOTS = re.compile("(<image>|<state>)")


class Units(NamedTuple):
    """The maps between a robot's units and tokens, for the data set of one key."""

    action: Normaliser
    state: Normaliser | None
    codec: ActionCodec


@part
class VLA:
    """The task: rows with `image`, `instruction`, `action` and maybe `state`, `action_is_pad`, `given`, `dataset`.

    statistics: of actions and states by key: the folder of a data set, a file, {key: either of them}, or the numbers
        themselves. A saved model holds the numbers.
    chunk: K. codec: a codec of `mmdiff.tasks.vla.codecs`; None: 32 uniform bins.
    normalise: quantile | bounds | mean_std | none, of actions and states. binary: dimensions of the action, by number
        or name, that have two values (grippers).
    key: whose statistics a policy acts by; needed where there are several. In training a row's `dataset` names it.
    state: "encoder" (media of kind `state`), "tokens" (`state_bins` ids of the reserved range `state`) or "none".
    cameras: pictures per row; 0: those that a row has are not used.
    prompt: text before the actions, with special tokens; pictures are put at `<image>`, the state at `<state>`.
    world: the simulator the policy is made for, `{name: metaworld, size: 64}`, see `mmdiff.tasks.vla.worlds.world`;
        `tasks` in it are those that it is evaluated on.
    execute: actions of a chunk that are executed before the next chunk, where a caller gives no number; None: all.
    """

    fields = ("image", "state", "instruction", "action", "action_is_pad", "given", "dataset")  # others are not read
    served = "mmdiff.tasks.vla.serve.server.served"
    page = "docs/data/lerobot.md"

    def __init__(
        self,
        statistics: Any,
        chunk: UpTo1000 = 5,
        codec: ActionCodec | None = None,
        normalise: Mode = "quantile",
        binary: Sequence[Whole | str] = (),
        key: str | None = None,
        state: State = "encoder",
        state_bins: Bins = 256,
        cameras: UpTo64 = 1,
        prompt: str = "<image><state>{instruction}",
        world: Mapping[str, Any] | None = None,
        execute: AtLeast1 | None = None,
    ) -> None:
        if codec is not None and not callable(getattr(codec, "bind", None)):
            expected = "{target: mmdiff.tasks.vla.codecs.bins.UniformBins, ...}"
            raise ConfigError(f"task.codec: {codec!r:.60}, expected {expected}")
        if execute is not None and execute > chunk:
            raise ConfigError(f"task.execute: {execute}, expected 1 to {chunk}, the actions of a chunk")
        slots = {"{instruction}": 1, "<image>": int(cameras > 0), "<state>": int(state != "none")}
        prompt = prompt if state != "none" else prompt.replace("<state>", "")
        for slot, times in slots.items():
            if prompt.count(slot) != times:
                raise ConfigError(f"task.prompt: {prompt!r} has {slot} {prompt.count(slot)} times, expected {times}")
        self.statistics = read_statistics(statistics)
        self.key = None if key is None else choose(self.statistics, key)
        self.chunk, self.cameras, self.prompt_text, self.world = chunk, cameras, prompt, dict(world or {})
        self.state_as, self.state_bins, self.execute, self.binary = state, state_bins, execute, tuple(binary)
        unused = {"image": cameras == 0, "state": state == "none"}  # may be there, and need not
        self._read = tuple(name for name in self.fields if not unused.get(name))
        self.codec: ActionCodec = UniformBins(32) if codec is None else codec
        self._units: dict[str, Units] = {}
        for name, entry in self.statistics.items():
            action = Normaliser(entry["action"], normalise, self.binary)
            measured = Normaliser(entry["state"], normalise) if state != "none" and "state" in entry else None
            if state != "none" and measured is None:
                raise ConfigError(f"task.state: {state}, but the statistics of {name} have no state; expected none")
            self._units[name] = Units(action, measured, self.codec.bind(entry["action"], action))
            self._units[name].codec.tokens(chunk, action.dims)  # raises for a codec that does not fit the chunk
        warn_of_rare(statistics, {name: units.action for name, units in self._units.items()})
        shapes = {(u.action.dims, u.state.dims if u.state else 0) for u in self._units.values()}
        if len(shapes) > 1:
            raise ConfigError(f"task.statistics: (actions, states) of {sorted(shapes)} dimensions, expected all alike")

    @classmethod
    def toy(cls, statistics: Any, **settings: Any) -> VLA:
        """Returns a task with statistics of random numbers, as in `Steps.toy`, where `statistics` are missing."""
        try:
            return cls(statistics, **settings)
        except NoStatistics:
            pass
        from .codecs.normalise import Statistics
        from .data.dataset import TOY_ACTION, TOY_STATE

        rng = np.random.default_rng(0)
        action, measured = (Statistics.of(rng.uniform(-1, 1, (512, n))) for n in (TOY_ACTION, TOY_STATE))
        names = list(statistics) if isinstance(statistics, Mapping) else [Path(statistics).resolve().name]
        settings["binary"] = ()
        return cls({name: {"action": action, "state": measured} for name in names}, **settings)

    def constants(self) -> dict[str, Any]:
        """Returns arguments for a saved model, values instead of paths: statistics, dimensions, the codec's table."""
        kept = {"statistics": to_json(self.statistics), "binary": list(self.binary)}
        node = getattr(self.codec, "node", None)  # a table of FAST is in it, not the path of its file
        return kept if node is None else {**kept, "codec": node}

    def units(self, key: str | None = None) -> Units:
        """Returns the units of a data set; None: of the policy's. Raises ConfigError, which lists the keys."""
        return self._units[choose(self.statistics, key if key is not None else self.key)]

    @property
    def dims(self) -> int:
        """D, the dimensions of an action."""
        return next(iter(self._units.values())).action.dims

    @property
    def state_dims(self) -> int:
        """S, the dimensions of the state; 0 where the policy does not see it."""
        state = next(iter(self._units.values())).state
        return 0 if state is None else state.dims

    @property
    def groups(self) -> tuple[int, int]:
        """(groups, tokens per group) of a chunk, as hierarchical decoding needs them: (K, D) for bins."""
        return next(iter(self._units.values())).codec.steps(self.chunk, self.dims)

    def sample(self, row: Row, vocab: Vocab) -> Sample:
        """Returns the canvas of a row, its action as the target; padded actions stay masked and are not scored.

        Raises DataError for a row that lacks a field, has one of another shape, or one that is not finite.
        """
        with located(row.get("where")):
            check_row(row, self._read)
            units = self._row_units(row)
            low = _first_id(vocab, ACTION, units.codec.size, "codec")
            x_KD = self._array(row, "action", (self.chunk, self.dims))
            ids_T = low + units.codec.encode(units.action.forward(x_KD))
            pad_K = np.asarray(row.get("action_is_pad", np.zeros(self.chunk, bool)), bool)
            if pad_K.shape != (self.chunk,) or pad_K.all():
                raise RowError("action_is_pad", f"{pad_K.tolist()}, expected {self.chunk}, not all of them true")
            ids_T[units.codec.padded(pad_K, self.dims)] = vocab.mask_id  # not scored
            return [*self._context(row, units, vocab), *self._targets(ids_T, low, units.codec)]

    def prompt(self, row: Row, vocab: Vocab) -> Sample:
        """Returns the canvas of a row without its action, except the first n actions that `given` holds, if any.

        Raises DataError as `sample` does.
        """
        with located(row.get("where")):
            check_row(row, self._read)
            units = self.units()
            own = row.get("dataset")
            if own is not None and len(self._units) > 1 and own != choose(self.statistics, self.key):
                raise RowError("dataset", f"{own!r}, but the policy acts by {choose(self.statistics, self.key)!r}")
            low = _first_id(vocab, ACTION, units.codec.size, "codec")
            ids_T = np.full(units.codec.tokens(self.chunk, self.dims), vocab.mask_id)
            if row.get("given") is not None and len(row["given"]):
                ids_T = self._given(row, units, low, vocab.mask_id)
            return [*self._context(row, units, vocab), *self._targets(ids_T, low, units.codec)]

    def parse(self, ids: Sequence[int], vocab: Vocab) -> list[list[float]]:
        """Returns the prediction that action tokens mean: K actions of D numbers in robot units."""
        units = self.units()
        low = _first_id(vocab, ACTION, units.codec.size, "codec")
        x_KD = units.codec.decode(np.asarray(ids, np.int64) - low, self.chunk, self.dims)
        actions: list[list[float]] = units.action.inverse(x_KD).tolist()
        return actions

    def score(self, prediction: Any, row: Row) -> dict[str, float]:
        """Returns `mae`, the mean absolute error in robot units, and `mae_normalised`, the same after normalisation.

        Padded actions do not count. The error of the codec is part of both. Raises DataError.
        """
        with located(row.get("where")):
            units = self.units()
            true_KD = self._array(row, "action", (self.chunk, self.dims))
            predicted_KD = np.asarray(prediction, np.float64)
            if predicted_KD.shape != true_KD.shape:
                raise RowError("prediction", f"of shape {predicted_KD.shape}, expected {true_KD.shape}")
            kept_K = ~np.asarray(row.get("action_is_pad", np.zeros(self.chunk, bool)), bool)
            plain = np.abs(predicted_KD - true_KD)[kept_K].mean()
            scaled = np.abs(units.action.forward(predicted_KD) - units.action.forward(true_KD))[kept_K].mean()
            return {"mae": float(plain), "mae_normalised": float(scaled)}

    def _row_units(self, row: Row) -> Units:
        key = row.get("dataset")
        if key is None or (len(self._units) == 1 and key not in self._units):
            return self.units()  # the only statistics there are serve data of any name
        return self._units[choose(self.statistics, str(key))]

    def _context(self, row: Row, units: Units, vocab: Vocab) -> Iterator[Part]:
        pictures = media_of(row, "image") if self.cameras else []  # not used, like a state where `state` is none
        if len(pictures) != self.cameras:
            raise RowError("image", f"{len(pictures)} pictures, the policy has {self.cameras} cameras")
        instruction = row.get("instruction")
        if not isinstance(instruction, str):
            raise RowError("instruction", f"{instruction!r:.60} is not text")
        instruction = instruction.strip()
        if literal(instruction, vocab) != vocab.encode(instruction):  # special tokens are the prompt's alone
            raise RowError("instruction", f"{instruction!r:.60} contains a special token")
        for piece in SLOTS.split(self.prompt_text):
            if piece == "<image>":
                yield from (Media("image", picture) for picture in pictures)
            elif piece == "<state>" and units.state is not None:
                x_S = units.state.forward(self._array(row, "state", (self.state_dims,)))
                if self.state_as == "encoder":
                    yield Media(STATE, x_S.astype(np.float32))
                else:
                    low = _first_id(vocab, STATE, self.state_bins, "state_bins")
                    yield Text((low + to_bins(x_S, self.state_bins)).tolist())
            elif piece and (ids := vocab.encode(piece.replace("{instruction}", instruction))):
                yield Text(ids)

    def _targets(self, ids_T: NDArray[np.int64], low: int, codec: ActionCodec) -> Iterator[Target]:
        runs = spans(codec, self.chunk, self.dims)
        yield from (Target(ids_T[span].tolist(), allow=((low + a, low + b),)) for span, (a, b) in runs)

    def _given(self, row: Row, units: Units, low: int, mask_id: int) -> NDArray[np.int64]:
        """Returns the ids (T,) of a chunk whose first actions are given; the others are masked."""
        n = len(row["given"])
        if n >= self.chunk:
            raise RowError("given", f"{n} actions, expected fewer than the {self.chunk} of a chunk")
        given = self._array(row, "given", (n, self.dims))
        masked_K = np.arange(self.chunk) >= n
        masked_T = units.codec.padded(masked_K, self.dims)
        if masked_T.sum() != (self.chunk - n) * self.dims:
            raise RowError("given", f"{type(units.codec).__name__} mixes actions in a token, so that none can be given")
        x_KD = np.zeros((self.chunk, self.dims))
        x_KD[:n] = units.action.forward(given)
        return np.where(masked_T, mask_id, low + units.codec.encode(x_KD))

    def _array(self, row: Row, field: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        if row.get(field) is None:
            raise RowError(f"no {field}")
        try:
            values = np.asarray(row[field], np.float64)
        except (TypeError, ValueError):
            raise RowError(field, f"{row[field]!r:.60} is not an array of numbers") from None
        if values.shape != shape:
            raise RowError(field, f"of shape {values.shape}, expected {shape}")
        if not np.isfinite(values).all():
            raise RowError(field, f"{np.argwhere(~np.isfinite(values))[0].tolist()} is not finite")
        return values


def _first_id(vocab: Vocab, name: str, size: int, setting: str) -> int:
    """The first id of a reserved range. Raises ConfigError where the backbone has reserved fewer than `size`."""
    if name not in vocab.ranges:
        raise ConfigError(f"backbone: no ids are reserved for {name}s, expected reserve: {{{name}: {size}}}")
    low, high = vocab.range(name)
    if high - low < size:
        raise ConfigError(f"task.{setting}: {size} tokens, but the backbone has reserve: {{{name}: {high - low}}}")
    return low

"""The task of actions: what stands on a canvas, in whose units, and what a saved policy knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmdiff.backbones import new_backbone
from mmdiff.canvas.patterns import PrefixCausal
from mmdiff.canvas.sample import Media, Target, Text
from mmdiff.canvas.vocab import Vocab, word_tokenizer
from mmdiff.config import build
from mmdiff.config.settings import Config
from mmdiff.connectors.mlp import MLP
from mmdiff.data.fields import check_row
from mmdiff.encoders.conv import ConvTower
from mmdiff.encoders.state import StateMLP
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff
from mmdiff.objectives.denoise import Denoise
from mmdiff.runs.checkpoint import config_entries
from mmdiff.session import load
from mmdiff.tasks.vla.codecs.bins import DCTBins, QuantileBins, UniformBins
from mmdiff.tasks.vla.codecs.fast import FAST
from mmdiff.tasks.vla.codecs.normalise import Statistics
from mmdiff.tasks.vla.task import VLA

RNG = np.random.default_rng(0)
ACTIONS = np.column_stack([RNG.normal(0, 0.3, (400, 3)), RNG.choice([0.0, 1.0], 400)]).astype(np.float32)
STATES = RNG.uniform(-2, 2, (400, 2)).astype(np.float32)
STATISTICS = {"arm": {"action": Statistics.of(ACTIONS, ("x", "y", "z", "grip")), "state": Statistics.of(STATES)}}
IMAGE = RNG.integers(0, 255, (16, 16, 3), dtype=np.uint8)


def vocabulary(action: int = 32, state: int = 8) -> Vocab:
    tokenizer = word_tokenizer(["open", "the", "drawer", "robot:", "out"])
    reserve = {"action": action, "state": state}
    return new_backbone(tokenizer=tokenizer, hidden_size=16, layers=1, heads=2, reserve=reserve).vocab


def row(**more: Any) -> dict[str, Any]:
    return {
        "image": IMAGE,
        "state": STATES[0],
        "instruction": "open the drawer",
        "action": ACTIONS[:5],
        "action_is_pad": np.zeros(5, bool),
        "where": "data episode 3 frame 17",
        **more,
    }


def test_a_canvas() -> None:
    vocab, task = vocabulary(), VLA(STATISTICS, binary=["grip"])
    image, state, text, target = task.sample(row(), vocab)
    assert isinstance(image, Media) and image.kind == "image" and image.data is IMAGE
    assert isinstance(state, Media) and state.kind == "state"
    q01, q99 = np.quantile(STATES.astype(np.float64), [0.01, 0.99], axis=0)
    assert np.asarray(state.data) == pytest.approx((2 * (STATES[0] - q01) / (q99 - q01) - 1).clip(-1, 1), abs=1e-6)
    assert isinstance(text, Text) and text.ids == vocab.encode("open the drawer")
    low, high = vocab.range("action")
    assert isinstance(target, Target) and target.allow == ((low, high),) and high - low == 32
    assert target.ids is not None and len(target.ids) == 20 and all(low <= i < high for i in target.ids)
    grips = [target.ids[d] - low for d in range(3, 20, 4)]
    assert grips == [31 if grip else 0 for grip in ACTIONS[:5, 3]]


def test_actions_come_back_to_half_a_bin_and_grippers_exactly() -> None:
    vocab, task = vocabulary(256), VLA(STATISTICS, binary=["grip"], codec=UniformBins(256))
    span = np.subtract(*np.quantile(ACTIONS.astype(np.float64), [0.99, 0.01], axis=0))
    for start in range(0, 400, 5):
        raw = ACTIONS[start : start + 5].astype(np.float64)
        target = task.sample(row(action=raw), vocab)[-1]
        found = np.array(task.parse(target.ids, vocab))  # type: ignore[union-attr]
        inside = np.clip(raw, *np.quantile(ACTIONS.astype(np.float64), [0.01, 0.99], axis=0))
        assert (np.abs(found - inside)[:, :3] <= span[:3] / 2 / 256 + 1e-9).all()
        assert (found[:, 3] == raw[:, 3]).all()


@pytest.mark.parametrize("codec", [UniformBins(32), QuantileBins(32), DCTBins(31, 3)])
def test_a_prompt_is_as_long_as_what_it_is_trained_on(codec: Any) -> None:
    vocab, task = vocabulary(), VLA(STATISTICS, codec=codec, binary=[3])
    trained, asked = task.sample(row(), vocab), task.prompt(row(action=None), vocab)
    assert len(trained) == len(asked)
    ids = asked[-1].ids  # type: ignore[union-attr]
    assert ids == [vocab.mask_id] * len(trained[-1].ids)  # type: ignore[union-attr,arg-type]
    groups, size = task.groups
    assert groups * size == len(ids)


def test_what_is_behind_the_end_of_an_episode_stays_empty() -> None:
    vocab, task = vocabulary(), VLA(STATISTICS)
    ids = task.sample(row(action_is_pad=np.array([0, 0, 0, 1, 1], bool)), vocab)[-1].ids  # type: ignore[union-attr]
    assert ids[12:] == [vocab.mask_id] * 8 and vocab.mask_id not in ids[:12]
    mixed = VLA(STATISTICS, codec=DCTBins(31, 3), binary=[])
    ids = mixed.sample(row(action_is_pad=np.array([0, 0, 0, 1, 1], bool)), vocab)[-1].ids  # type: ignore[union-attr]
    assert vocab.mask_id not in ids  # every coefficient depends on actions that are real


def test_given_actions_stand_at_the_front() -> None:
    vocab, task = vocabulary(), VLA(STATISTICS)
    whole = task.sample(row(), vocab)[-1].ids  # type: ignore[union-attr]
    asked = task.prompt(row(given=ACTIONS[:2]), vocab)[-1].ids  # type: ignore[union-attr]
    assert asked == [*whole[:8], *[vocab.mask_id] * 12]
    assert task.prompt(row(given=ACTIONS[:0]), vocab)[-1].ids == [vocab.mask_id] * 20  # type: ignore[union-attr]
    with pytest.raises(DataError, match="mixes actions"):
        VLA(STATISTICS, codec=DCTBins(31, 3)).prompt(row(given=ACTIONS[:2]), vocab)


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("is_pad", np.ones(5, bool), "action_is_pad"),
        ("actions_is_pad", np.ones(5, bool), "action_is_pad"),
        ("givn", ACTIONS[:2], "given"),
        ("data_set", "arm", "dataset"),
        ("unnorm_key", "arm", "dataset"),
    ],
)
def test_a_field_that_looks_like_one_that_is_missing_is_refused(name: str, value: Any, meant: str) -> None:
    """Else padding would be scored, given actions be made up, and another robot's units be used, without a word."""
    vocab, task = vocabulary(), VLA(STATISTICS)
    asked = {key: one for key, one in row().items() if key != "action_is_pad"}
    for make in (task.sample, task.prompt):
        make(asked, vocab)
        with pytest.raises(
            DataError, match=f"^data episode 3 frame 17: unknown field: '{name}' .did you mean .{meant}"
        ):
            make({**asked, name: value}, vocab)
    picture = {**asked, "img": IMAGE}
    del picture["image"]
    with pytest.raises(DataError, match='unknown field: .img. .did you mean "image"'):
        task.prompt(picture, vocab)


def test_fields_of_other_names_are_kept() -> None:
    vocab, task = vocabulary(), VLA(STATISTICS, cameras=0, state="none", prompt="{instruction}")
    bare = {"instruction": "open", "action": ACTIONS[:5], "frame": 3, "episode": 1, "index": 4, "qpos": STATES[0]}
    assert task.sample(bare, vocab) and task.prompt({**bare, "image": IMAGE, "world": object(), "img": IMAGE}, vocab)
    check_row({"instruction": "open", "image": IMAGE}, task.fields, strict=True)
    with pytest.raises(DataError, match=r"unknown field: 'qpos' \(did you mean \"state\"\?\)"):
        check_row({"qpos": STATES[0], **bare}, task.fields, strict=True)


def test_state_as_tokens_and_not_at_all() -> None:
    vocab = vocabulary()
    task = VLA(STATISTICS, state="tokens", state_bins=8)
    _, state, _, _ = task.sample(row(), vocab)
    low, high = vocab.range("state")
    assert isinstance(state, Text) and len(state.ids) == 2 and all(low <= i < high for i in state.ids)
    assert list(state.ids) == [low + int((x + 2) / 4 * 8) for x in STATES[0]]
    kinds = [
        part.kind for part in VLA(STATISTICS, state="none").sample(row(state=None), vocab) if isinstance(part, Media)
    ]
    assert kinds == ["image"]


def test_the_prompt_says_where_things_stand() -> None:
    vocab = vocabulary()
    task = VLA(STATISTICS, prompt="robot: {instruction} <state> out <image>", cameras=2)
    text, state, out, one, two, _ = task.sample(row(image=[IMAGE, IMAGE]), vocab)
    assert isinstance(text, Text) and text.ids == vocab.encode("robot: open the drawer")
    assert isinstance(state, Media) and isinstance(one, Media) and isinstance(two, Media)
    assert isinstance(out, Text) and out.ids == vocab.encode("out")
    empty = VLA(STATISTICS).prompt(row(instruction=""), vocab)
    assert [type(part) for part in empty] == [Media, Media, Target]
    with pytest.raises(DataError, match="does not know the word '<mask>'"):
        VLA(STATISTICS).prompt(row(instruction="open <mask>"), vocab)


def test_several_data_sets() -> None:
    vocab = vocabulary()
    wide = {"action": Statistics.of(10 * ACTIONS), "state": Statistics.of(STATES)}
    both = {**STATISTICS, "big": wide}
    task = VLA(both)
    a = task.sample(row(dataset="arm"), vocab)[-1].ids  # type: ignore[union-attr]
    assert a == task.sample(row(dataset="big", action=10 * ACTIONS[:5]), vocab)[-1].ids  # type: ignore[union-attr]
    for ask in (lambda: task.sample(row(), vocab), lambda: task.prompt(row(), vocab), lambda: task.parse(a, vocab)):
        with pytest.raises(ConfigError, match="name one of them: arm, big"):
            ask()
    with pytest.raises(ConfigError, match='"bog".*"big"'):
        VLA(both, key="bog")
    big = VLA(both, key="big")
    assert np.array(big.parse(a, vocab)) == pytest.approx(10 * np.array(VLA(both, key="arm").parse(a, vocab)), rel=1e-5)
    with pytest.raises(DataError, match="'arm', but the policy acts by 'big'"):
        big.prompt(row(dataset="arm"), vocab)
    for ask in (VLA(STATISTICS).sample, VLA(STATISTICS).prompt):
        ask(row(dataset="another name"), vocab)  # the only statistics there are


def test_score_leaves_out_padded_actions() -> None:
    task = VLA(STATISTICS, normalise="none")
    found = ACTIONS[:5] + np.array([[0.1], [0.1], [0.3], [9], [9]])
    scores = task.score(found.tolist(), row(action_is_pad=np.array([0, 0, 0, 1, 1], bool)))
    assert scores["mae"] == pytest.approx(0.5 / 3, abs=1e-6)


WRONG = {
    "image": ({"image": [IMAGE, IMAGE]}, "2 pictures, the policy has 1 cameras"),
    "no picture": ({"image": None}, "0 pictures"),
    "instruction": ({"instruction": None}, "instruction: None is not text"),
    "no action": ({"action": None}, "no action"),
    "shape": ({"action": ACTIONS[:4]}, r"action: of shape \(4, 4\), expected \(5, 4\)"),
    "nan": ({"action": [[0] * 4, [0, 0, np.nan, 0], *[[0] * 4] * 3]}, r"action: \[1, 2\] is not finite"),
    "state": ({"state": [1.0]}, r"state: of shape \(1,\), expected \(2,\)"),
    "no state": ({"state": None}, "no state"),
    "words": ({"state": ["a", "b"]}, "is not an array of numbers"),
    "padding": ({"action_is_pad": np.ones(5, bool)}, "not all of them true"),
    "ragged": ({"action": [[1, 2], [3]]}, "action"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_row_says_where_it_is(name: str) -> None:
    change, said = WRONG[name]
    with pytest.raises(DataError, match=f"^data episode 3 frame 17: .*{said}"):
        VLA(STATISTICS).sample(row(**change), vocabulary())


BAD = {
    "chunk": ({"chunk": 0}, "VLA.chunk=0: expected a whole number from 1 to 1000"),
    "state": ({"state": "token"}, "VLA.state: 'token' is not one of.*\"tokens\""),
    "mode": ({"normalise": "quantiles"}, "VLA.normalise"),
    "prompt": ({"prompt": "<image><state>"}, "has {instruction} 0 times"),
    "images": ({"prompt": "{instruction}<state>"}, "has <image> 0 times"),
    "binary": ({"binary": ["gripp"]}, '"gripp".*"grip"'),
    "codec": ({"codec": DCTBins(31, 6)}, "keeps 6 coefficients"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_setting_is_named(name: str) -> None:
    change, said = BAD[name]
    with pytest.raises(ConfigError, match=said):
        VLA(STATISTICS, **change)


def test_statistics_without_state() -> None:
    bare = {"arm": {"action": STATISTICS["arm"]["action"]}}
    assert VLA(bare, state="none").state_dims == 0
    with pytest.raises(ConfigError, match="the statistics of arm have no state"):
        VLA(bare)


def test_a_backbone_that_reserves_too_few_ids() -> None:
    with pytest.raises(ConfigError, match=r"256 tokens, but the backbone has reserve: \{action: 32\}"):
        VLA(STATISTICS, codec=UniformBins(256)).prompt(row(), vocabulary())
    with pytest.raises(ConfigError, match=r"reserve: \{action: 32\}"):
        tokenizer = word_tokenizer(["open", "the", "drawer"])
        VLA(STATISTICS).prompt(row(), new_backbone(tokenizer=tokenizer, hidden_size=16, layers=1, heads=2).vocab)


def policy(tmp_path: Path) -> Path:
    """A saved policy whose statistics were read from a file that is not there any more."""
    file = tmp_path / "stats.json"
    file.write_text(json.dumps({"arm": {name: one.to_json() for name, one in STATISTICS["arm"].items()}}))
    node = {"target": "mmdiff.tasks.vla.VLA", "statistics": str(file), "binary": ["grip"]}
    torch.manual_seed(0)
    backbone = new_backbone(
        tokenizer=word_tokenizer(["open", "the", "drawer"]),
        hidden_size=16,
        layers=1,
        heads=2,
        init_std=0.3,
        reserve={"action": 32},
    )
    encoders = {"image": ConvTower(16, 8, 8), "state": StateMLP(2, 8, 8)}
    model = MMDiff(backbone, encoders, {k: MLP(8, 16) for k in encoders}, attention=PrefixCausal())
    from mmdiff.model.saving import save_model

    task = VLA(str(file), binary=["grip"])
    save_model(model, tmp_path / "policy", extra=config_entries(Config(task=node), task))
    file.unlink()
    return tmp_path / "policy"


def test_a_saved_policy_holds_its_statistics(tmp_path: Path) -> None:
    session = load(policy(tmp_path))
    assert isinstance(session.task, VLA)
    out = session.predict(row(), steps=5)
    found = np.array(out["prediction"])
    assert found.shape == (5, 4) and set(found[:, 3]) <= {0.0, 1.0} and np.abs(found[:, :3]).max() < 2
    assert [step for _, step, _ in out["canvas"]] and out["forwards"] == 5


def test_batches_and_padding_change_no_answer(tmp_path: Path) -> None:
    session = load(policy(tmp_path))
    rows = [row(), row(instruction="open"), row(instruction="", image=IMAGE[::-1].copy())]
    together = [out["prediction"] for out in session.predict_many(rows)]
    assert together == [session.predict_many([r], first=i)[0]["prediction"] for i, r in enumerate(rows)]
    assert together[0] != together[2]


def test_one_step_of_training_through_the_objective(tmp_path: Path) -> None:
    session = load(policy(tmp_path))
    from mmdiff.data.collate import collate
    from mmdiff.data.stream import read_media
    from mmdiff.diffusion.keys import NoiseKey

    model, task = session.model, session.task
    samples = [read_media(task.sample(r, model.vocab), model.readers) for r in (row(), row(instruction="open"))]
    batch = collate(samples, model.vocab, model.readers)
    objective = Denoise(denominator="each", copies=2)
    plan = objective.plan(batch, NoiseKey(0, 0, "x"), model.vocab)
    term = objective.terms(model.train(), plan)["denoise"]
    (term.value / plan.counts["denoise"]).backward()
    for kind in ("image", "state"):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoders[kind].parameters()), kind


def test_a_table_of_codes_is_saved_itself(tmp_path: Path) -> None:
    FAST.train(RNG.uniform(-1, 1, (20, 5, 4)), vocab=100).save(tmp_path / "fast.json")
    kept = json.loads(json.dumps(VLA(STATISTICS, codec=FAST(tmp_path / "fast.json")).constants()))
    (tmp_path / "fast.json").unlink()
    assert build({"target": "mmdiff.tasks.vla.VLA", **kept}).codec.table["scale"] == 10.0


def test_a_policy_without_a_camera_leaves_pictures_aside() -> None:
    task = VLA(STATISTICS, cameras=0, prompt="<state>{instruction}")
    assert [type(part) for part in task.prompt(row(), vocabulary())] == [Media, Text, Target]


@pytest.mark.parametrize(
    "wrong", [{"prompt": 1}, {"binary": 3}, {"execute": "a"}, {"world": 3}, {"codec": "UniformBins"}]
)
def test_settings_of_another_kind(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"VLA.{next(iter(wrong))}: "):
        VLA(STATISTICS, **wrong)

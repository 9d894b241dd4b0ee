"""Dream-VL whole, tower and projector beside the language model, from a folder in its published layout.

Shape letters: L positions, D width, V vocabulary, R rows.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from models import native as small
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmdiff.canvas.batch import along_axes
from mmdiff.canvas.relayout import relayout
from mmdiff.canvas.sample import Break, Media, Target, Text
from mmdiff.commands.cli import main
from mmdiff.config import load_config
from mmdiff.data.collate import collate
from mmdiff.data.stream import canvases, read_media
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.encoders.native.qwen2vl import Qwen2VL
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff, build_model
from mmdiff.model.params import add_adapters
from mmdiff.objectives.denoise import Denoise
from mmdiff.session import load
from mmdiff.sharing.inspection import light
from mmdiff.sharing.inspection.inspect import inspect
from mmdiff.tasks.dialogue.templates import ChatML
from mmdiff.tasks.vqa import VQA

Image = pytest.importorskip("PIL.Image")
AROUND = ["<|vision_start|>", "<|vision_end|>"]
MARKED = ChatML("You are a helpful assistant.", behind="", around=AROUND)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_folder(tmp_path_factory.mktemp("dream-vl"))


@pytest.fixture(scope="module")
def model(folder: Path) -> MMDiff:
    return MMDiff.from_pretrained(folder)


def picture(width: int, height: int) -> Any:
    draw = random.Random(width * height)
    values = bytes(draw.randrange(256) for _ in range(7 * 5 * 3))
    return Image.frombytes("RGB", (7, 5), values).resize((width, height))


SIZES = [(56, 56), (30, 20), (100, 47), (60, 200), (265, 131), (9, 60), (84, 112), (13, 13)]


@torch.no_grad()
def test_a_picture_takes_the_slots_that_the_published_code_gives_it(model: MMDiff) -> None:
    """Small, square, wide, tall and large ones, each alone and all in one batch."""
    w, reader = small.tensors_of(), model.readers["image"]
    expected = [small.picture_slots(w, picture(*size)) for size in SIZES]
    batch = collate([[Media("image", picture(*size)), Text([5])] for size in SIZES], model.vocab, model.readers)
    torch.testing.assert_close(model.encode(batch.media)["image"], torch.cat(expected), atol=1e-5, rtol=0)
    for size, slots_MD in zip(SIZES, expected, strict=True):
        item = reader.read(picture(*size))
        assert item.layout == small.grid_of(size) and reader.slots(item) == len(slots_MD)


def test_pixels_are_those_of_transformers_and_a_strip_is_refused(model: MMDiff) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    theirs = Qwen2VLImageProcessorPil(min_pixels=4 * 784, max_pixels=40 * 784)
    for size in [(100, 47), (60, 200), (265, 131), (700, 500)]:  # it refuses sides below 28
        item = model.readers["image"].read(picture(*size))
        out = theirs(picture(*size), return_tensors="pt")
        assert out["image_grid_thw"].tolist() == [[1, *item.layout]]
        found_PF = item.values[0].T.unflatten(1, (3, 1, 14, 14)).expand(-1, -1, 2, -1, -1).flatten(1)
        torch.testing.assert_close(found_PF, out["pixel_values"], atol=1e-5, rtol=0)
    for size in [(30, 6100), (3, 2000), (2000, 3)]:
        with pytest.raises(DataError, match=f"picture of {size[0]} x {size[1]} pixels: it is too long for its width"):
            model.readers["image"].read(picture(*size))


def parts_of(row: dict[str, Any], task: VQA, model: MMDiff) -> list[Any]:
    return [part for part in task.prompt(row, model.vocab) if not isinstance(part, Text) or len(part.ids)]


def expected_of(parts: list[Any], model: MMDiff) -> Tensor:
    """Returns the logits (L, V) of one canvas by plain torch."""
    w, raw, kinds, pieces = small.tensors_of(), small.raw_of(), [], []
    for part in parts:
        if isinstance(part, Media):
            rows, columns = small.grid_of(part.data.size)
            kinds.append((rows // 2, columns // 2))
            pieces.append(small.picture_slots(w, part.data))
            continue
        ids = list(part.ids) if isinstance(part, Text) else [model.vocab.mask_id] * part.length
        kinds += ids
        pieces.append(w["model.embed_tokens.weight"][ids])
    return small.logits(w, raw, torch.cat(pieces), small.positions_of(kinds, raw["vision_start_token_id"]))


ROWS = [
    {"image": [picture(100, 47), picture(60, 200)], "question": "<image> or <image>?"},
    {"image": picture(265, 131), "question": "what is it?"},
    {"question": "no picture"},
]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("template", ["published", "marked"])
@torch.no_grad()
def test_logits_equal_plain_torch(folder: Path, attention: str, side: Any, template: str) -> None:
    """Of ragged rows with several pictures, with one and without; behind <|vision_start|> along three axes."""
    model = MMDiff.from_pretrained(folder)
    model.backbone.model.config._attn_implementation = attention
    task = load(folder, "task.max_new_tokens=4").task
    if template == "marked":
        task.template = MARKED
    rows = [parts_of(row, task, model) for row in ROWS]
    batch = collate(rows, model.vocab, model.readers, side=side)
    found_RLV = model.backbone.head(model.hidden(batch.ids_BL, batch, model.encode(batch.media), torch.arange(3)))
    for parts, found_LV, attend_L in zip(rows, found_RLV, batch.attend_BL, strict=True):
        expected_LV = expected_of(parts, model)
        assert expected_LV.std() > 0.5
        torch.testing.assert_close(found_LV[attend_L], expected_LV, atol=2e-5, rtol=1e-5)
    alone = collate(rows[:1], model.vocab, model.readers)  # without a mask
    found_1LV = model.backbone.head(model.hidden(alone.ids_BL, alone, model.encode(alone.media), torch.arange(1)))
    torch.testing.assert_close(found_1LV[0], expected_of(rows[0], model), atol=2e-5, rtol=1e-5)
    assert bool((batch.position_ids_BL >= 1 << 20).any()) == (template == "marked")


def test_positions_are_those_of_transformers(model: MMDiff) -> None:
    from transformers import Qwen2VLConfig, Qwen2VLModel

    task = VQA(template=MARKED, max_new_tokens=3)
    parts = parts_of(ROWS[0], task, model)
    batch = collate([parts, parts[:3]], model.vocab, model.readers)
    config = Qwen2VLConfig(text_config={"num_hidden_layers": 0}, vision_config={"depth": 0})
    with torch.device("meta"):
        theirs = Qwen2VLModel(config)
    grids = torch.tensor([[1, *layout] for layout in batch.media["image"].layouts[:2]])
    slot_1L = (batch.slots["image"] >= 0)[:1].int()
    expected_31L, _ = theirs.get_rope_index(batch.ids_BL[:1], slot_1L, image_grid_thw=grids)
    assert torch.equal(along_axes(batch.position_ids_BL)[:, :1], expected_31L)


def test_positions_go_along_with_what_is_packed_inserted_and_deleted(model: MMDiff) -> None:
    """A document behind another begins at 0; a canvas laid out anew has the positions of one that is laid out so."""
    start = [small.raw_of()["vision_start_token_id"]]
    grid = [Text([7, *start]), Media("image", picture(100, 47)), Text([8, 9])]
    one = collate([grid], model.vocab, model.readers).position_ids_BL[0].tolist()
    both = collate([[*grid, Break(), *grid]], model.vocab, model.readers).position_ids_BL[0].tolist()
    assert both == one + one and one[-2:] == [2 + 4, 2 + 5]  # 2 x 4 slots
    batch = collate([[*grid, Target([3, 4, 5]), Text([6])]], model.vocab, model.readers, side="left")
    keep_BL, after_BL = torch.ones_like(batch.target_BL), torch.zeros_like(batch.ids_BL)
    keep_BL[0, -4], after_BL[0, -2], after_BL[0, -7] = False, 2, 1
    laid, _ = relayout(batch, keep_BL, after_BL, mask_id=model.vocab.mask_id, pad_id=model.vocab.pad_id)
    again = [*grid[:2], Target(length=1), Text([8, 9]), Target([4, 5, 7, 7]), Text([6])]
    expected = collate([again], model.vocab, model.readers)
    assert torch.equal(laid.position_ids_BL, expected.position_ids_BL)


def test_every_tensor_and_file_is_read_and_written_back_bit_for_bit(tmp_path: Path) -> None:
    """In float32 and in bfloat16, straight away and by way of a folder of ours."""
    for dtype in (torch.float32, torch.bfloat16):
        folder = small.write_folder(tmp_path / str(dtype), dtype)
        model = MMDiff.from_pretrained(folder)
        model.save_pretrained(tmp_path / f"back {dtype}", original_format=True)
        model.save_pretrained(tmp_path / f"ours {dtype}")
        again = MMDiff.from_pretrained(tmp_path / f"ours {dtype}")
        again.save_pretrained(tmp_path / f"again {dtype}", original_format=True)
        before = load_file(folder / "model.safetensors")
        for back in (tmp_path / f"back {dtype}", tmp_path / f"again {dtype}"):
            after = load_file(back / "model.safetensors")
            assert after.keys() == before.keys()
            assert all(torch.equal(after[n], before[n]) and after[n].dtype == before[n].dtype for n in before)
            for file in ("config.json", "preprocessor_config.json"):
                assert json.loads((back / file).read_text()) == json.loads((folder / file).read_text())


def test_no_tensor_of_any_part_may_be_missing_or_left_over(tmp_path: Path) -> None:
    tensors = small.tensors_of()
    for drop in (
        "visual.merger.ln_q.weight",
        "visual.blocks.1.attn.qkv.bias",
        "projector.linear_2.bias",
        "lm_head.weight",
    ):
        folder = small.write_folder(tmp_path / drop)
        save_file({n: t for n, t in tensors.items() if n != drop}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ConfigError, match="1 missing tensors: " + drop.replace(".", r"\.")):
            MMDiff.from_pretrained(folder)
    for extra in ("visual.blocks.2.norm1.weight", "projector.linear_3.bias", "model.image_newline", "odd"):
        folder = small.write_folder(tmp_path / extra)
        save_file(tensors | {extra: torch.ones(3)}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ConfigError, match="unexpected tensor '" + extra.replace(".", r"\.")):
            MMDiff.from_pretrained(folder)


VISION = small.raw_of()["vision_config"]


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("config.json", {"mrope_section": [1, 2, 4]}), ("config.json", {"mrope_section": "123"}),
        ("config.json", {"projector_hidden_act": "silu"}), ("config.json", {"full_attn_mask": False}),
        ("config.json", {"vision_config": 3}), ("config.json", {"vision_config": {**VISION, "window_size": 112}}),
        ("config.json", {"vision_config": {**VISION, "depth": -1}}), ("config.json", {"hidden_size": [48]}),
        ("config.json", {"vision_config": {**VISION, "num_heads": 3}}), ("config.json", {"vision_start_token_id": "x"}),
        ("config.json", {"vision_config": {**VISION, "hidden_act": "gleu"}}),
        ("config.json", {"vision_config": {**VISION, "depth": 10**7}}),
        ("config.json", {"vision_config": {**VISION, "embed_dim": "wide" * 9999}}),
        ("preprocessor_config.json", {"do_resize": False}), ("preprocessor_config.json", {"patch_size": 16}),
        ("preprocessor_config.json", {"crop": 1}), ("preprocessor_config.json", {"max_pixels": "many"}),
        ("preprocessor_config.json", {"image_std": [1.0, 0.0, 1.0]}),
        ("preprocessor_config.json", {"max_pixels": 1, "min_pixels": 3}),
        ("preprocessor_config.json", {"max_pixels": 783, "min_pixels": 1}),
        ("preprocessor_config.json", {"max_pixels": 10**9, "min_pixels": 9 * 10**8}),  # of one pixel so many
        ("preprocessor_config.json", {"image_mean": [float("nan"), 1, 1]}),
        ("preprocessor_config.json", {"image_std": [1, 1, int("9" * 400)]}),
        ("preprocessor_config.json", {"image_std": [1e-300, 1, 1]}),
        ("config.json", {"vision_start_token_id": 1 << 70}), ("config.json", {"mmdiff_files": 5}),
        ("preprocessor_config.json", {"junk": "x" * 70_000}),
    ],
)  # fmt: skip
def test_what_is_not_computed_is_refused_in_one_line(file: str, fields: dict[str, Any], tmp_path: Path) -> None:
    folder = small.write_folder(tmp_path)
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    for read in (MMDiff.from_pretrained, inspect, load):
        with pytest.raises(ConfigError) as error:
            read(folder)
        assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_the_language_model_alone_is_read_as_before(tmp_path: Path) -> None:
    """A folder without the tower's tensors is a text model, whatever its config.json describes."""
    folder = small.write_folder(tmp_path)
    tensors = {n: t for n, t in small.tensors_of().items() if n.startswith(("model.", "lm_head"))}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert not load(folder).model.encoders and inspect(folder)["loads"]


def test_generate_answers_from_the_folder(folder: Path, tmp_path: Path, capsys: Any) -> None:
    """By the command line, and the same in a batch with another row; with pictures by rows and columns, too."""
    picture(100, 47).save(tmp_path / "one.png")
    words = [f"image={tmp_path / 'one.png'}", "question=what is it?", "sampler.steps=4", "task.max_new_tokens=8"]
    main(["generate", str(folder), *words, "--json"])
    out = json.loads(capsys.readouterr().out)
    assert isinstance(out["prediction"], str) and out["forwards"] == 4
    for more in ([], ['task.template.around=["<|vision_start|>", "<|vision_end|>"]']):
        session = load(folder, *words[2:], *more)
        rows = [{"image": str(tmp_path / "one.png"), "question": "what is it?"}, dict(ROWS[0])]
        together = session.predict_many(rows)
        assert [session.predict_many([row], first=i)[0]["canvas"] for i, row in enumerate(rows)] == [
            one["canvas"] for one in together
        ]
        assert more or together[0]["canvas"] == [tuple(t) for t in out["canvas"]]
    assert load(folder).sampler.steps == 128 and load(folder).sampler.temperature == 0.1


def test_it_trains_and_takes_adapters(folder: Path) -> None:
    """A step reaches every weight of tower, projector and language model, or the adapters alone, recomputed or not."""
    model = MMDiff.from_pretrained(folder).train()
    row = {"image": picture(100, 47), "question": "q", "answer": "a b c"}
    for template in (load(folder).task.template, MARKED):
        sample = read_media(VQA(template=template).sample(row, model.vocab), model.readers)
        batch = collate([sample], model.vocab, model.readers)

        def reached(batch: Any = batch) -> set[str]:
            plan = Denoise().plan(batch, NoiseKey(0, 0, "x"), model.vocab)
            model.zero_grad()
            Denoise().terms(model, plan)["denoise"].value.backward()
            return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}

        assert {n for n, _ in model.named_parameters() if not n.endswith("k_proj.bias")} <= reached()
    model.encoders["image"].gradient_checkpointing(True)
    model.backbone.gradient_checkpointing(True)
    assert {n for n, _ in model.named_parameters() if not n.endswith("k_proj.bias")} <= reached()
    add_adapters(model, {"part": "backbone", "modules": "q_proj|v_proj", "r": 2, "alpha": 4, "dropout": 0.0})
    assert {n.split(".lora_")[1][0] for n in reached() if ".lora_" in n} == {"B"}  # B is 0 as yet, and A behind it


def test_half_precision_stays_near(folder: Path) -> None:
    exact, half = (MMDiff.from_pretrained(folder, dtype=dtype) for dtype in ("float32", "bfloat16"))
    batch = canvases([ROWS[0]], VQA(template=MARKED, max_new_tokens=4), exact.vocab, exact.readers)
    with torch.no_grad():
        a, b = (
            m.backbone.head(m.hidden(batch.ids_BL, batch, m.encode(batch.media), torch.arange(1)))
            for m in (exact, half)
        )
    assert b.isfinite().all() and float((b - a).abs().mean()) < 0.1 * float(a.std())


def test_inspect_tells_the_parts_without_torch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, seen = inspect(folder, length=48), []
    counts = {"visual": 0, "projector": 0, "backbone": 0}
    for n, t in small.tensors_of().items():
        counts[n.split(".")[0] if n.startswith(("visual", "projector")) else "backbone"] += t.numel()
    assert found["parts"] == dict(sorted(counts.items(), key=lambda item: -item[1]))
    assert found["loads"] and not found["missing"] and not found["unexpected"] and not found["elsewhere"]
    assert found["parameters"] == sum(counts.values()) and found["task"] == "mmdiff.tasks.vqa.VQA"
    monkeypatch.setattr(light, "look", lambda *_: seen.append(1))
    assert inspect(folder, length=48) == found and seen  # all families' way has the same answers


def test_a_release_that_is_not_here_has_a_toy_twin() -> None:
    twin = build_model(load_config("vqa-llada-v", [f"model.weights={small.DREAM_VL}"]).model, toy=True)
    assert set(twin.encoders) == {"image"} and sum(p.numel() for p in twin.parameters()) < 1e6


def test_rows_and_columns_need_a_backbone_that_turns_by_them(model: MMDiff) -> None:
    from mmdiff.backbones import load_backbone

    other = load_backbone.toy("GSAI-ML/LLaDA-8B-Instruct")  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"model.encoders.image.axes_behind: llada has positions along one axis"):
        MMDiff(other, {"image": model.encoders["image"]}, {"image": model.connectors["image"]})


def test_a_small_picture_is_not_enlarged_beyond_memory() -> None:
    with pytest.raises(ConfigError, match=r"Qwen2VL.min_pixels=1073741824: expected a whole number from 1 to 16777216"):
        Qwen2VL({}, min_pixels=2**30, max_pixels=2**30)

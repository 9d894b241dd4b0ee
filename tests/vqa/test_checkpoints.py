"""Multimodal checkpoints as published, each from one folder: nothing missing, nothing left over, nothing skipped; the
picture on the canvas as its authors' code puts it there; saved as it was. One cell of docs/backbones.md per test."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from models import multimodal as small
from models.multimodal import NAMES, raw_of, tensors_of, write_folder
from models.plain_decoder import logits as plain_logits
from safetensors.torch import load_file, save_file

from mmdiff.canvas.patterns import BlockCausal, PrefixCausal
from mmdiff.canvas.sample import Media, Text
from mmdiff.commands.cli import main
from mmdiff.config import load_config
from mmdiff.data.collate import collate
from mmdiff.data.stream import canvases, read_media
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff, build_model
from mmdiff.model.params import add_adapters
from mmdiff.objectives.denoise import Denoise
from mmdiff.session import load
from mmdiff.sharing.inspection.inspect import inspect
from mmdiff.sharing.inspection.text import as_text
from mmdiff.tasks.vqa import VQA

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module", params=NAMES)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, write_folder(tmp_path_factory.mktemp("published"), request.param)


def picture(width: int, height: int) -> Any:
    draw = random.Random(width * height)
    values = bytes(draw.randrange(256) for _ in range(7 * 5 * 3))
    return Image.frombytes("RGB", (7, 5), values).resize((width, height))


SIZES = [(44, 44), (30, 20), (100, 47), (60, 200), (265, 131), (49, 300), (311, 299)]


@torch.no_grad()
def test_a_picture_takes_the_slots_that_the_published_code_gives_it(published: tuple[str, Path]) -> None:
    """Small, square, wide, tall and large ones: tiles, margins, shrinking, newlines and their order."""
    name, folder = published
    model = MMDiff.from_pretrained(folder)
    w, raw = tensors_of(name), raw_of(name)
    for size in SIZES:
        image = picture(*size)
        batch = canvases([{"image": image, "question": "?"}], VQA(max_new_tokens=1), model.vocab, model.readers)
        torch.testing.assert_close(
            model.encode(batch.media)["image"], small.picture_slots(w, raw, image), atol=1e-5, rtol=0
        )


@torch.no_grad()
def test_prompt_and_picture_equal_plain_torch(published: tuple[str, Path]) -> None:
    """The embeddings of the whole canvas, then the logits of every position of it."""
    name, folder = published
    model, task = MMDiff.from_pretrained(folder), load(folder, "task.max_new_tokens=4").task
    row = {"image": picture(100, 47), "question": "what is it?"}
    batch = canvases([row], task, model.vocab, model.readers)
    pieces = []
    for part in task.prompt(row, model.vocab):
        ids = part.ids if isinstance(part, Text) else [model.vocab.mask_id] * 4
        embedded = small.llama_names(tensors_of(name))["model.embed_tokens.weight"]
        slots = isinstance(part, Media)
        pieces.append(small.picture_slots(tensors_of(name), raw_of(name), row["image"]) if slots else embedded[ids])
    expected_LD = torch.cat(pieces)
    features = model.encode(batch.media)
    x_RLD = model.embedded(batch.ids_BL, features, batch.slots, None)
    torch.testing.assert_close(x_RLD[0], expected_LD, atol=1e-5, rtol=0)
    w, raw = small.llama_names(tensors_of(name)), raw_of(name)
    raw |= {"hidden_size": small.D, "num_attention_heads": small.HEADS, "num_key_value_heads": small.HEADS}
    raw |= {"num_hidden_layers": small.LAYERS}
    length = len(expected_LD)
    context_L = torch.arange(length) < length - 4
    sees_RLL = torch.ones(1, length, length, dtype=torch.bool)
    if name in (small.LAVIDA, small.LAVIDA_DREAM):  # the prompt does not see the answer
        assert model.attention == PrefixCausal()
        sees_RLL = (context_L[None, :] | ~context_L[:, None])[None]
    if name == small.DIFFUSION_VL:  # blocks of eight, counted from the first position of the row, picture or not
        block_L = torch.arange(length) // 8
        assert model.attention == BlockCausal(8)
        sees_RLL = (block_L[None, :] <= block_L[:, None])[None]
    w["model.embed_tokens.weight"] = expected_LD
    expected_RLV = plain_logits(w, raw, torch.arange(length)[None], sees_RLL)
    hidden_RLD = model.hidden(batch.ids_BL, batch, features, torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(model.backbone.head(hidden_RLD), expected_RLV, atol=2e-5, rtol=1e-5)
    assert model.backbone.facts.shift == (name == small.LAVIDA_DREAM)


def test_every_tensor_is_read_and_written_back_bit_for_bit(published: tuple[str, Path], tmp_path: Path) -> None:
    """In float32 and in bfloat16, straight away and by way of a folder of ours."""
    name, _ = published
    for dtype in (torch.float32, torch.bfloat16):
        folder = write_folder(tmp_path / str(dtype), name, dtype)
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
            assert json.loads((back / "config.json").read_text()) == json.loads((folder / "config.json").read_text())


def test_no_tensor_of_any_part_may_be_missing_or_left_over(published: tuple[str, Path], tmp_path: Path) -> None:
    name, _ = published
    tensors = tensors_of(name)
    for drop in ("model.image_newline", "model.mm_projector.2.bias", f"{small.TOWER}post_layernorm.weight",
                 f"{small.TOWER}encoder.layers.1.mlp.fc1.bias", next(iter(tensors))):  # fmt: skip
        folder = write_folder(tmp_path / drop, name)
        save_file({n: t for n, t in tensors.items() if n != drop}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ConfigError, match="1 missing tensors: " + drop.replace(".", r"\.")):
            MMDiff.from_pretrained(folder)
    for extra in (f"{small.TOWER}head.probe", "model.vision_resampler.w", "model.mm_projector.4.weight", "odd"):
        folder = write_folder(tmp_path / extra, name)
        save_file(tensors | {extra: torch.ones(3)}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ConfigError, match="unexpected tensor '" + extra.replace(".", r"\.")):
            MMDiff.from_pretrained(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mm_gate_type", 1), ("image_foo", True), ("vision_depth", 3), ("mm_projector_type", "mlp3x_gelu"),
        ("mm_projector_type", None), ("mm_resampler_type", "qformer"), ("mm_vision_select_layer", -1),
        ("mm_use_im_start_end", True), ("mm_vision_tower", "openai/clip-vit-large-patch14-336"), ("mm_hidden_size", 33),
        ("mm_vision_tower", "google/siglip2-so400m-patch14-56"), ("mm_patch_merge_type", "spatial"),
        ("image_aspect_ratio", "highres"), ("image_grid_pinpoints", [[44, 45]]), ("image_grid_pinpoints", "()"),
        ("image_grid_pinpoints", None), ("architectures", ["LlavaLlamaForCausalLM"]), ("s2", True),
        ("mm_spatial_pool_mode", "max"), ("attention_bias", "no field of this model" * 9),
    ],
)  # fmt: skip
def test_a_field_of_unknown_effect_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    for name in NAMES:
        folder = write_folder(tmp_path / name, name, **{field: value})
        with pytest.raises(ConfigError) as error:
            MMDiff.from_pretrained(folder)
        assert "\n" not in str(error.value)
        assert field == "attention_bias" or field.split("_")[0] in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", None), ("hidden_size", "wide"), ("hidden_size", -3), ("hidden_size", [24]),
        ("architectures", [{}]), ("architectures", None), ("architectures", []), ("mm_vision_tower", 5),
        ("mm_vision_tower", "siglip-so400m-patch0-44"), ("mm_vision_tower", "siglip-so400m-patch14-" + "9" * 5000),
        ("mm_vision_tower", {"a": 1}), ("image_aspect_ratio", None), ("image_aspect_ratio", [1]),
        ("image_aspect_ratio", "anyres_max_0"), ("mm_patch_merge_type", {"x": "y" * 9999}),
        ("mm_hidden_size", "x" * 9999),
        ("image_grid_pinpoints", "[" * 5000), ("image_grid_pinpoints", "(1x1),...,(99999x99999)"),
        ("image_grid_pinpoints", [[44, True]]), ("image_grid_pinpoints", [[44.0, 44.0]]), ("image_grid_pinpoints", 7),
    ],
)  # fmt: skip
def test_anyones_config_json_is_one_line(field: str, value: Any, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, small.LLADA_V, **{field: value})
    for read in (MMDiff.from_pretrained, inspect, load):
        with pytest.raises(ConfigError) as error:
            read(folder)
        assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_pictures_in_one_crop_need_no_newline(tmp_path: Path) -> None:
    """`square` and `pad` with `flat`, as LLaVA's first stage has them: a feature is a slot, no newline."""
    for aspect in ("square", "pad"):
        folder = write_folder(tmp_path / aspect, small.LLADA_V, image_aspect_ratio=aspect, mm_patch_merge_type="flat")
        with pytest.raises(ConfigError, match="unexpected tensor 'model.image_newline'"):
            MMDiff.from_pretrained(folder)
        tensors = {n: t for n, t in tensors_of(small.LLADA_V).items() if n != "model.image_newline"}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        model = MMDiff.from_pretrained(folder)
        assert model.encoders["image"].spec.resize_mode == {"square": "squash", "pad": "pad"}[aspect]
        batch = canvases([{"image": picture(90, 30), "question": "?"}], VQA(), model.vocab, model.readers)
        assert len(model.encode(batch.media)["image"]) == small.SIDE**2


def test_generate_answers_from_the_folder(published: tuple[str, Path], tmp_path: Path, capsys: Any) -> None:
    """By the command line, and the same in a batch with another row."""
    name, folder = published
    picture(100, 47).save(tmp_path / "one.png")
    words = [f"image={tmp_path / 'one.png'}", "question=what is it?", "sampler.steps=4", "task.max_new_tokens=8"]
    main(["generate", str(folder), *words, "--json"])
    out = json.loads(capsys.readouterr().out)
    assert isinstance(out["prediction"], str) and out["forwards"] == 4
    session = load(folder, *words[2:])
    rows = [
        {"image": str(tmp_path / "one.png"), "question": "what is it?"},
        {"image": picture(50, 50), "question": "a"},
    ]
    assert session.predict_many(rows)[0]["canvas"] == [tuple(t) for t in out["canvas"]]
    assert session.sampler.schedule == ("shifted" if name in (small.LAVIDA, small.LAVIDA_DREAM) else "linear")


def test_one_path_is_all_that_a_configuration_needs(tmp_path: Path) -> None:
    """`vqa-llada-v` takes the folder whole; `vla-llada` takes language model, tower and projector of it."""
    folder, tensors = write_folder(tmp_path / "LLaDA-V", small.LLADA_V), tensors_of(small.LLADA_V)
    whole = build_model(load_config("vqa-llada-v-lora", [f"model.weights={folder}"]).model)
    assert whole.backbone.model.dtype == torch.bfloat16
    parts = build_model(load_config("vla-llada", [f"model.backbone.path={folder}"]).model)
    for model, at in ((whole, "encoder."), (parts, "")):
        state = model.encoders["image"].state_dict()
        for name, value in tensors.items():
            ours = at + name.replace(small.TOWER, "tower.")
            assert not name.startswith(small.TOWER) or "post_layernorm" in name or torch.equal(state[ours], value)
        newest = {n.rpartition("layers.")[2]: value for n, value in model.connectors["image"].state_dict().items()}
        assert all(torch.equal(newest[f"{i}.bias"], tensors[f"model.mm_projector.{i}.bias"]) for i in (0, 2))


def test_a_release_that_is_not_here_has_a_toy_twin() -> None:
    for name in NAMES:
        model = build_model(load_config("vqa-llada-v", [f"model.weights={name}"]).model, toy=True)
        assert set(model.encoders) == {"image"} and sum(p.numel() for p in model.parameters()) < 1e6
    with pytest.raises(ConfigError, match="no saved model here"):
        build_model(load_config("vqa-llada-v", ["model.weights=data/none"]).model)


def test_it_trains_and_takes_adapters(published: tuple[str, Path]) -> None:
    """A step reaches every weight of tower, projector, newline and language model, or the adapters alone."""
    name, folder = published
    model = MMDiff.from_pretrained(folder).train()
    row = {"image": picture(100, 47), "question": "q", "answer": "a b c"}
    sample = read_media(load(folder).task.sample(row, model.vocab), model.readers)
    batch = collate([sample], model.vocab, model.readers)

    def reached() -> set[str]:
        plan = Denoise().plan(batch, NoiseKey(0, 0, "x"), model.vocab)
        model.zero_grad()
        Denoise().terms(model, plan)["denoise"].value.backward()
        return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}

    # a softmax does not change with a constant added to all keys
    assert {n for n, _ in model.named_parameters() if not n.endswith("k_proj.bias")} <= reached()
    add_adapters(model, {"part": "backbone", "modules": "q_proj|v_proj", "r": 2, "alpha": 4, "dropout": 0.0})
    assert {n.split(".lora_")[1][0] for n in reached() if ".lora_" in n} == {"B"}  # B is 0 as yet, and A behind it


def test_inspect_tells_the_parts(published: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = published
    found = inspect(folder)
    tensors = tensors_of(name)
    counts = {"vision_tower": 0, "mm_projector": 0, "image_newline": 0, "backbone": 0}
    for n, t in tensors.items():
        counts[next((part for part in list(counts)[:3] if f".{part}" in n), "backbone")] += t.numel()
    assert found["parts"] == dict(sorted(counts.items(), key=lambda item: -item[1]))
    assert found["loads"] and not found["missing"] and not found["unexpected"] and not found["elsewhere"]
    assert found["parameters"] == sum(counts.values()) - 2 * small.E  # without the norm that nothing uses
    assert "parts         vision_tower" in as_text(found) and found["task"] == "mmdiff.tasks.vqa.VQA"
    seen = {small.LAVIDA: "prefix-causal", small.LAVIDA_DREAM: "prefix-causal", small.DIFFUSION_VL: "block-causal"}
    assert found["attention"] == seen.get(name, "full")
    bad = write_folder(tmp_path, name)
    del tensors["model.mm_projector.0.bias"]
    save_file(tensors | {"model.faster_token": torch.ones(2)}, bad / "model.safetensors", {"format": "pt"})
    found = inspect(bad)
    assert found["missing"] == ["model.mm_projector.0.bias"] and found["unexpected"] == ["model.faster_token"]
    assert not found["loads"]

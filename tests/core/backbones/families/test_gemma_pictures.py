"""DiffusionGemma whole, tower and embedder beside the language model, from a folder as transformers' class writes it.

Shape letters: L positions, D width, V vocabulary, R rows.
"""

from __future__ import annotations

import json
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from models.draws import Draws
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from mmdiff.backbones.family import find_family
from mmdiff.canvas.patterns import CausalContext, visibility
from mmdiff.canvas.sample import Media, Target, Text
from mmdiff.commands.cli import main
from mmdiff.config import load_config
from mmdiff.data.collate import collate
from mmdiff.data.stream import read_media
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff, build_model
from mmdiff.model.params import add_adapters
from mmdiff.objectives.replacing.hybrid import HybridBound
from mmdiff.samplers.processes.hybrid import Hybrid, Renoising
from mmdiff.samplers.rules.adaptive import EntropyBound
from mmdiff.session import load
from mmdiff.sharing.export import export
from mmdiff.sharing.inspection.inspect import inspect

Image = pytest.importorskip("PIL.Image")
CANVAS, V, WINDOW, SOFT = 6, 264, 20, 70
TEXT: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16, "num_global_key_value_heads": 1,
    "max_position_embeddings": 1024, "sliding_window": WINDOW, "num_experts": 4, "top_k_experts": 2,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "moe_intermediate_size": 16,
    "use_bidirectional_attention": "vision",
    "eos_token_id": 257, "bos_token_id": 256, "pad_token_id": 0, "final_logit_softcapping": 30.0,
}  # fmt: skip
TOWER = {
    "model_type": "gemma4_vision", "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 12, "patch_size": 16, "pooling_kernel_size": 3,
    "position_embedding_size": 256, "standardize": True, "use_clipped_linears": False,
}  # fmt: skip
PROCESSOR = {
    "image_processor": {
        "do_convert_rgb": True, "do_normalize": False, "do_rescale": True, "do_resize": True,
        "image_mean": [0.0, 0.0, 0.0], "image_processor_type": "Gemma4ImageProcessor", "image_seq_length": 280,
        "image_std": [1.0, 1.0, 1.0], "max_soft_tokens": SOFT, "patch_size": 16, "pooling_kernel_size": 3,
        "resample": 3, "rescale_factor": 1 / 255,
    },
    "image_seq_length": 280, "processor_class": "Gemma4Processor",
}  # fmt: skip
"""processor_config.json of Gemma 4's released folders, for smaller pictures."""
PLACE = 263  # image_token_id, of which the tokenizer has no token here


@pytest.fixture(scope="module")
def stock() -> DiffusionGemmaForBlockDiffusion:
    """Transformers' class with weights for which every part matters, the tower's two buffers among them."""
    torch.manual_seed(0)
    tokenizer = find_family("diffusion_gemma").toy_tokenizer()
    ids = {
        f"{end}_token_id": tokenizer.convert_tokens_to_ids(t) for end, t in (("boi", "<|image>"), ("eoi", "<image|>"))
    }
    config = DiffusionGemmaConfig(
        text_config=TEXT, vision_config=TOWER, canvas_length=CANVAS, eos_token_id=257, image_token_id=PLACE, **ids
    )
    made = DiffusionGemmaForBlockDiffusion(config).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(std=0.4) if p.ndim > 1 else p.normal_(mean=1.0, std=0.3)
        for name, buffer in made.named_buffers():
            if name.endswith(("layer_scalar", "std_scale")):
                buffer.copy_(torch.rand(buffer.shape) + 0.5)
            if name.endswith("std_bias"):
                buffer.normal_()
        made.model.encoder.embed_vision.embedding_projection.weight.mul_(5)
    return made


@pytest.fixture(scope="module")
def folder(stock: DiffusionGemmaForBlockDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(stock, tmp_path_factory.mktemp("gemma"))


def write_folder(stock: Any, path: Path) -> Path:
    stock.save_pretrained(path)
    raw = json.loads((path / "config.json").read_text())
    raw["text_config"] |= {name: TEXT[name] for name in ("global_head_dim", "num_global_key_value_heads")}
    del raw["text_config"]["per_layer_config"]  # as it is published
    (path / "config.json").write_text(json.dumps(raw))
    (path / "processor_config.json").write_text(json.dumps(PROCESSOR))
    find_family("diffusion_gemma").toy_tokenizer().save_pretrained(path)
    return path


def picture(width: int, height: int) -> Any:
    draw = random.Random(width * height)
    values = bytes(draw.randrange(256) for _ in range(7 * 5 * 3))
    return Image.frombytes("RGB", (7, 5), values).resize((width, height))


def processed(*pictures: Any) -> dict[str, Any]:
    """Returns what transformers' processor makes of pictures, as its model takes it."""
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    out = Gemma4ImageProcessorPil(max_soft_tokens=SOFT)(list(pictures), return_tensors="pt")
    return dict(out)


SIZES = [(100, 47), (60, 200), (265, 131), (48, 48), (900, 30), (33, 700)]


@torch.no_grad()
def test_a_picture_takes_the_slots_that_transformers_gives_it(stock: Any, folder: Path) -> None:
    """The same pixels, patches and positions, and features of the tower behind the embedder, all in one batch."""
    model = MMDiff.from_pretrained(folder)
    pictures = [picture(*size) for size in SIZES]
    theirs, reader = processed(*pictures), model.readers["image"]
    for i, one in enumerate(pictures):
        item = reader.read(one)
        rows, columns = item.layout
        found_PF = item.values[0].T
        torch.testing.assert_close(found_PF, theirs["pixel_values"][i, : rows * columns], atol=1e-6, rtol=0)
        assert theirs["image_position_ids"][i, rows * columns - 1].tolist() == [columns - 1, rows - 1]
        assert reader.slots(item) == int(theirs["num_soft_tokens_per_image"][i]) <= SOFT
    batch = collate([[Media("image", one), Text([5])] for one in pictures], model.vocab, model.readers)
    expected = stock.model.encoder.get_image_features(theirs["pixel_values"], theirs["image_position_ids"])
    found_MD = model.encode(batch.media)["image"]
    assert found_MD.std() > 0.1
    torch.testing.assert_close(found_MD, expected.pooler_output, atol=2e-5, rtol=1e-5)


ROWS: list[dict[str, Any]] = [
    {"image": [picture(100, 47), picture(60, 200)], "question": "<image> or <image>?"},
    {"image": [picture(48, 48)], "question": "what?"},
    {"question": "no picture, but a context that is longer than the window"},
]
NOISE = torch.randint(0, 256, (3, CANVAS), generator=torch.Generator().manual_seed(1))


def context_of(parts: list[Any]) -> tuple[list[int], list[int]]:
    """Returns the ids of a context as transformers' processor lays them out, and which of them are of pictures."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, Media):
            ids += [PLACE] * int(processed(part.data)["num_soft_tokens_per_image"][0])
        elif isinstance(part, Text):
            ids += part.ids
    return ids, [int(i == PLACE) for i in ids]


def inputs_of(stock: Any, parts: list[Any]) -> dict[str, Any]:
    """Returns what `generate` of transformers' class gives its model of a context, its masks among it."""
    ids, kinds = (torch.tensor([values]) for values in context_of(parts))
    pictures = [part.data for part in parts if isinstance(part, Media)]
    seen = processed(*pictures) if pictures else {}
    masks = stock.model.encoder.create_masks_for_generate(
        config=stock.config.get_text_config(),
        inputs_embeds=torch.empty(*ids.shape, TEXT["hidden_size"]),
        attention_mask=torch.ones_like(ids),
        cache=None,
        position_ids=torch.arange(ids.shape[1])[None],
        mm_token_type_ids=kinds,
    )
    beside = {name: value for name, value in seen.items() if name != "num_soft_tokens_per_image"}
    return {"input_ids": ids, "attention_mask": masks, **beside}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_logits_equal_those_of_transformers(stock: Any, folder: Path, attention: str, side: Any) -> None:
    """Of ragged rows with two pictures, one and none, each longer than the window, as its `generate` runs them."""
    model, task = MMDiff.from_pretrained(folder), load(folder).task
    model.backbone.model.set_attn_implementation(attention)
    contexts = [[p for p in task.prompt(row, model.vocab) if not isinstance(p, Target)] for row in ROWS]
    rows = [[*parts, Target(noise)] for parts, noise in zip(contexts, NOISE.tolist(), strict=True)]
    batch = collate(rows, model.vocab, model.readers, side=side)
    h = model.hidden(batch.ids_BL, batch, model.encode(batch.media), torch.arange(3))
    found_RLV = model.backbone.head(h)[batch.target_BL].view(3, CANVAS, V)
    stock.set_attn_implementation(attention)
    for r, parts in enumerate(contexts):
        expected_LV = stock(**inputs_of(stock, parts), decoder_input_ids=NOISE[r : r + 1]).logits[0]
        assert expected_LV.std() > 0.5
        torch.testing.assert_close(found_RLV[r], expected_LV, atol=5e-5, rtol=1e-5)
    without = CausalContext(CANVAS)
    assert model.attention == CausalContext(CANVAS, media=True) != without
    model.attention = without
    other = model.backbone.head(model.hidden(batch.ids_BL, batch, model.encode(batch.media), torch.arange(3)))
    moved_R = (other[batch.target_BL].view(3, CANVAS, V) - found_RLV).abs().amax((1, 2))
    assert (moved_R[:2] > 0.1).all() and moved_R[2] < 1e-4  # it matters that a picture sees all of itself
    stock.set_attn_implementation("sdpa")


def test_a_generation_with_a_picture_is_that_of_transformers(stock: Any, folder: Path, monkeypatch: Any) -> None:
    """Two canvases of two rows from the same random numbers, in double precision, with smaller steps of the stream."""
    from transformers import EntropyBoundSamplerConfig, LogitsProcessorList

    stock, steps, sample = deepcopy(stock).double(), 5, [3, 8]
    stock.set_experts_implementation("eager")
    model = MMDiff.from_pretrained(folder, dtype="float64")
    model.encoders.double(), model.connectors.double()
    with torch.no_grad():
        for decoder in (stock.model.decoder, model.backbone.model):
            decoder.self_conditioning.down_proj.weight.mul_(0.2)
            for name, p in decoder.layers.named_parameters():
                p.mul_(0.2 if "post_" in name else 1.0)
    task = load(folder).task
    contexts = [[p for p in task.prompt(row, model.vocab) if not isinstance(p, Target)] for row in ROWS[:2]]
    banned_ids = [model.vocab.slot_id, *range(len(model.vocab.tokenizer), V)]
    allowed = [i for i in range(V) if i not in banned_ids]
    rows = [[*parts, Target(length=2 * CANVAS)] for parts in contexts]
    found = model.generate(
        collate(rows, model.vocab, model.readers, index=sample, side="left"),
        block_length=CANVAS, temperature=0.8, temperature_end=0.4 + 0.4 / steps, remasking="entropy",
        select=EntropyBound(0.5), early_stop=False,
        process=Renoising(steps=steps, stable=1, confident=0.005, conditioning=True),
    )  # fmt: skip

    def banned(_: Any, scores: Tensor, **__: Any) -> Tensor:
        return scores.index_fill(-1, torch.tensor(banned_ids), -torch.inf)

    for r, parts in enumerate(contexts):
        draws = Draws(sample[r], allowed, CANVAS)
        ids, kinds = (torch.tensor([values]) for values in context_of(parts))
        given = inputs_of(stock, parts)
        with monkeypatch.context() as patch:
            draws.put(stock, patch)
            out = stock.generate(
                ids, mm_token_type_ids=kinds, pixel_values=given["pixel_values"].double(),
                image_position_ids=given["image_position_ids"], max_new_tokens=2 * CANVAS, max_denoising_steps=steps,
                t_min=0.4, t_max=0.8, sampler_config=EntropyBoundSamplerConfig(entropy_bound=0.5),
                stability_threshold=1, confidence_threshold=0.005, eos_token_id=None, pad_token_id=0,
                logits_processor=LogitsProcessorList([banned]),
            )  # fmt: skip
        assert found.targets()[r] == out.sequences[0, ids.shape[1] :].tolist()
        assert int(found.forwards_B[r]) == draws.step


def test_every_tensor_and_file_is_read_and_written_back_bit_for_bit(stock: Any, folder: Path, tmp_path: Path) -> None:
    """Straight away and by way of a folder of ours; transformers reads it, with no key missing or left over."""
    model = MMDiff.from_pretrained(folder)
    model.save_pretrained(tmp_path / "back", original_format=True)
    model.save_pretrained(tmp_path / "ours")
    MMDiff.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "again", original_format=True)
    before = load_file(folder / "model.safetensors")
    for back in (tmp_path / "back", tmp_path / "again"):
        after = load_file(back / "model.safetensors")
        assert after.keys() == before.keys() - {"lm_head.weight"} or after.keys() == before.keys()
        assert all(torch.equal(after[n], before[n]) and after[n].dtype == before[n].dtype for n in after)
        for file in ("config.json", "processor_config.json", "generation_config.json"):
            assert json.loads((back / file).read_text()) == json.loads((folder / file).read_text())
        read, info = DiffusionGemmaForBlockDiffusion.from_pretrained(back, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert all(torch.equal(value, stock.state_dict()[name]) for name, value in read.state_dict().items())


def test_no_tensor_of_any_part_may_be_missing_or_left_over(stock: Any, folder: Path, tmp_path: Path) -> None:
    write_folder(stock, tmp_path)
    tensors, file = load_file(folder / "model.safetensors"), tmp_path / "model.safetensors"
    tower, embedder = "model.encoder.vision_tower.", "model.encoder.embed_vision."
    for drop in (f"{tower}std_bias", f"{tower}encoder.layers.1.mlp.up_proj.linear.weight",
                 f"{embedder}embedding_projection.weight", "model.decoder.norm.weight"):  # fmt: skip
        save_file({n: t for n, t in tensors.items() if n != drop}, file, {"format": "pt"})
        with pytest.raises(ConfigError, match="1 missing tensors: " + drop.replace(".", r"\.")):
            MMDiff.from_pretrained(tmp_path)
    for extra in (f"{tower}encoder.layers.2.mlp.up_proj.linear.weight", f"{embedder}norm.weight", "odd"):
        save_file(tensors | {extra: torch.ones(3)}, file, {"format": "pt"})
        with pytest.raises(ConfigError, match="unexpected tensor '" + extra.replace(".", r"\.")):
            MMDiff.from_pretrained(tmp_path)
    save_file({n: t for n, t in tensors.items() if "vision" not in n}, file, {"format": "pt"})
    assert not load(tmp_path).model.encoders and inspect(tmp_path)["loads"]  # the language model alone, for text


@pytest.mark.parametrize(
    ("file", "at", "fields"),
    [
        ("config.json", "vision_config", {"window": 3}), ("config.json", "vision_config", {"num_hidden_layers": 10**9}),
        ("config.json", "vision_config", {"head_dim": 10}),
        ("config.json", "vision_config", {"hidden_size": "x" * 999}),
        ("config.json", "vision_config", {"hidden_activation": "gleu"}), ("config.json", "", {"vision_config": 3}),
        ("config.json", "vision_config", {"rope_parameters": {"rope_type": "default", "rope_theta": 1.0}}),
        ("config.json", "vision_config", {"rope_parameters": ["axial"]}),
        ("config.json", "vision_config", {"rope_parameters": {"rope_type": "axial", "factor": 9}}),
        ("config.json", "", {"boi_token_id": 1 << 70}), ("config.json", "", {"eoi_token_id": V}),
        ("config.json", "text_config", {"top_k_experts": 9}),
        ("config.json", "", {"boi_token_id": "x"}), ("config.json", "", {"canvas_length": -1}),
        ("config.json", "vision_config", {"position_embedding_size": 20}),
        ("processor_config.json", "image_processor", {"do_resize": False}),
        ("processor_config.json", "image_processor", {"max_soft_tokens": 71}),
        ("processor_config.json", "image_processor", {"max_soft_tokens": float("nan")}),
        ("processor_config.json", "image_processor", {"crop": 1}), ("config.json", "", {"mmdiff_files": [1]}),
        ("processor_config.json", "", {"image_processor": 7}),
        ("processor_config.json", "image_processor", {"patch_size": 14}),
    ],
)  # fmt: skip
def test_what_is_not_computed_is_refused_in_one_line(
    stock: Any, file: str, at: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    path = write_folder(stock, tmp_path) / file
    content = json.loads(path.read_text())
    (content[at] if at else content).update(fields)
    path.write_text(json.dumps(content))
    for read in (MMDiff.from_pretrained, inspect, load):
        with pytest.raises(ConfigError) as error:
            read(tmp_path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_generate_answers_from_the_folder(folder: Path, tmp_path: Path, capsys: Any) -> None:
    """By the command line, and the same in a batch with another row; keys and values are kept, and exactly."""
    picture(100, 47).save(tmp_path / "one.png")
    words = [f"image={tmp_path / 'one.png'}", "question=what is it?", f"task.max_new_tokens={2 * CANVAS}"]
    words += ["sampler.process.steps=4", f"sampler.block_length={CANVAS}"]
    main(["generate", str(folder), *words, "--json"])
    out = json.loads(capsys.readouterr().out)
    assert isinstance(out["prediction"], str) and 2 <= out["forwards"] <= 8
    rows = [{"image": str(tmp_path / "one.png"), "question": "what is it?"}, dict(ROWS[0]), dict(ROWS[2])]
    session = load(folder, *words[2:], dtype="float64")  # roundings grow at every step
    session.model.encoders.double(), session.model.connectors.double()
    together = [out["canvas"] for out in session.predict_many(rows)]
    for i, row in enumerate(rows):
        (alone,) = session.predict_many([row], first=i)
        for (token, step, confidence), (other, at, sure) in zip(alone["canvas"], together[i], strict=True):
            assert (token, step) == (other, at) and confidence == pytest.approx(sure, abs=1e-6)


def test_it_trains_and_takes_adapters(folder: Path) -> None:
    """A step reaches every weight of tower, embedder and language model, or the adapters alone, recomputed or not."""
    model = MMDiff.from_pretrained(folder).train()
    row = {"image": picture(100, 47), "question": "q", "answer": "a b c"}
    objective = HybridBound(Hybrid(uniform=1.0, given="all"))
    sample = read_media(load(folder).task.sample(row, model.vocab), model.readers)
    batch = collate([sample], model.vocab, model.readers)

    def reached() -> set[str]:
        plan = objective.plan(batch, NoiseKey(0, 0, "x"), model.vocab)
        model.zero_grad()
        objective.terms(model, plan)["hybrid"].value.backward()
        return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}

    still = {n for n, _ in model.named_parameters()} - reached()
    assert all("experts" in n or "self_conditioning" in n for n in still), still  # nothing was predicted before
    model.encoders["image"].gradient_checkpointing(True)
    model.backbone.gradient_checkpointing(True)
    assert {n for n, _ in model.named_parameters()} - reached() == still
    add_adapters(model, {"part": "backbone", "modules": "q_proj|v_proj", "r": 2, "alpha": 4, "dropout": 0.0})
    assert {n.split(".lora_")[1][0] for n in reached() if ".lora_" in n} == {"B"}


def test_inspect_tells_the_parts(folder: Path) -> None:
    found = inspect(folder, length=48)
    assert set(found["parts"]) == {"backbone", "vision_tower", "embed_vision"}
    assert found["loads"] and not found["missing"] and not found["unexpected"] and not found["elsewhere"]
    assert (found["attention"], found["block_length"], found["noise"]) == ("causal-context", CANVAS, "uniform")
    assert found["task"] == "mmdiff.tasks.vqa.VQA" and found["parts"]["embed_vision"] == 24 * 32


def test_a_dialogue_is_laid_out_as_its_processor_does(folder: Path) -> None:
    session = load(folder)
    vocab, task = session.model.vocab, session.task
    session.task.template.opening = "<|channel>thought\n<channel|>"
    parts = task.prompt({"image": picture(48, 48), "question": "what?"}, vocab)
    kinds = [type(p).__name__ for p in parts if not isinstance(p, Text)]
    ids = [i for p in parts if isinstance(p, Text) for i in p.ids]
    text = vocab.tokenizer.decode(ids)
    assert text == "<bos><|turn>user\n<|image><image|>what?<turn|>\n<|turn>model\n<|channel>thought\n<channel|>"
    assert kinds == ["Media", "Target"] and task.template.end(vocab) == vocab.tokenizer.convert_tokens_to_ids("<turn|>")
    turns = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"},
                               {"from": "human", "value": "c"}]}  # fmt: skip
    session.task.template.opening = ""
    again = [i for p in task.prompt(turns, vocab) if isinstance(p, Text) for i in p.ids]
    assert vocab.tokenizer.decode(
        again
    ) == "<bos><|turn>user\na<turn|>\n<|turn>model\nb<turn|>\n<|turn>user\nc<turn|>\n" + ("<|turn>model\n")
    session.task.template.around = ["<|image>"]
    with pytest.raises(ConfigError, match="template.around: .*, expected two tokens or none"):
        task.prompt({"image": picture(48, 48), "question": "?"}, vocab)


def test_slots_that_follow_each_other_are_one_block() -> None:
    """By hand: a picture of three slots in a context, before a canvas of two, in a padded row."""
    from mmdiff.canvas.batch import Batch

    attend_BL = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    slot_BL = torch.tensor([[-1, -1, 0, 1, 2, -1, -1, -1]])
    target_BL = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1]], dtype=torch.bool)
    ids_BL = torch.ones(1, 8, dtype=torch.int64)
    batch = Batch(ids_BL, target_BL, attend_BL, ids_BL, 0 * ids_BL, slots={"image": slot_BL}, padded=True)
    seen = visibility(CausalContext(2, media=True), batch, torch.arange(1))
    sees_LL = torch.as_tensor(seen.pattern.sees(seen.key.at(0 * ids_BL[0][:, None], torch.arange(8)[:, None]),
                                                seen.key.at(0 * ids_BL[0], torch.arange(8))))  # fmt: skip
    expected = ["", "1", "1234", "1234", "1234", "12345", "1234567", "1234567"]
    for i, row in enumerate(expected[1:], 1):
        assert sees_LL[i, 1:].nonzero().flatten().add(1).tolist() == [int(c) for c in row]


def test_a_release_that_is_not_here_has_a_toy_twin() -> None:
    name = "google/diffusiongemma-26B-A4B-it"
    twin = build_model(load_config("vqa-llada-v", [f"model.weights={name}"]).model, toy=True)
    assert set(twin.encoders) == {"image"} and sum(p.numel() for p in twin.parameters()) < 1e6


def test_an_exported_folder_needs_no_other_for_its_tower(stock: Any, folder: Path, tmp_path: Path) -> None:
    MMDiff.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    given = ["sampler.preset=diffusion-gemma", f"sampler.block_length={CANVAS}"]
    export(tmp_path / "saved", tmp_path / "out", engine="vllm", overrides=given)
    read, info = DiffusionGemmaForBlockDiffusion.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(value, stock.state_dict()[name]) for name, value in read.state_dict().items())
    assert set(MMDiff.from_pretrained(tmp_path / "out").encoders) == {"image"}

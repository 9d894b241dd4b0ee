"""DiffusionGemma against transformers' own class: logits, whole generations, files; and models without a mask token.

Shape letters: R rows, L positions, V vocabulary.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from models.draws import Draws
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from mmdiff.backbones import load_backbone, new_backbone
from mmdiff.backbones.family import find_family
from mmdiff.canvas.patterns import CausalContext
from mmdiff.canvas.sample import Break, Target, Text
from mmdiff.canvas.vocab import NO_MASK
from mmdiff.config.presets import preset
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.model.params import add_adapters
from mmdiff.model.saving import save_model
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.replacing.hybrid import HybridBound
from mmdiff.samplers.processes.hybrid import Hybrid, Renoising
from mmdiff.samplers.rules.adaptive import EntropyBound
from mmdiff.sharing.export import export
from mmdiff.sharing.inspection.inspect import inspect

CANVAS, V = 6, 262
FAMILY = find_family("diffusion_gemma")
TEXT: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16, "num_global_key_value_heads": 1,
    "max_position_embeddings": 128, "sliding_window": 5, "num_experts": 4, "top_k_experts": 2,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "moe_intermediate_size": 16,
    "use_bidirectional_attention": "vision",
    "eos_token_id": 257, "bos_token_id": 256, "pad_token_id": 0, "final_logit_softcapping": 30.0,
}  # fmt: skip
TOWER = {
    "model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def stock() -> DiffusionGemmaForBlockDiffusion:
    """Transformers' class with weights for which every part matters, the two scales of every layer among them."""
    torch.manual_seed(0)
    config = DiffusionGemmaConfig(text_config=TEXT, vision_config=TOWER, canvas_length=CANVAS, eos_token_id=257)
    made = DiffusionGemmaForBlockDiffusion(config).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(std=0.4) if p.ndim > 1 else p.normal_(mean=1.0, std=0.3)
        for name, scale in made.named_buffers():
            if name.endswith("layer_scalar"):
                scale.copy_(torch.rand(1) + 0.5)
    return made


@pytest.fixture(scope="module")
def folder(stock: DiffusionGemmaForBlockDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("gemma")
    stock.save_pretrained(path)
    raw = json.loads((path / "config.json").read_text())
    raw["text_config"] |= {name: TEXT[name] for name in ("global_head_dim", "num_global_key_value_heads")}
    del raw["text_config"]["per_layer_config"]  # as it is published
    (path / "config.json").write_text(json.dumps(raw))
    FAMILY.toy_tokenizer().save_pretrained(path)
    return path


PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [20, 21, 22, 23]]
NOISE = torch.randint(0, 256, (2, CANVAS), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("conditioned", [False, True])
@torch.no_grad()
def test_logits_equal_those_of_transformers(
    stock: Any, folder: Path, attention: str, side: Any, conditioned: bool
) -> None:
    """In ragged rows, behind a context that is longer than the window, with an earlier prediction and without."""
    model = MMDiff(load_backbone(folder, attention=attention))
    rows = [[Text(ids), Target(canvas.tolist())] for ids, canvas in zip(PROMPTS, NOISE, strict=True)]
    batch = collate(rows, model.vocab, side=side)
    before_RLV = 3 * torch.randn(2, CANVAS, V)
    extras = {}
    if conditioned:
        soft = torch.zeros(*batch.ids_BL.shape, 32)
        extras = {"backbone": soft.masked_scatter(batch.target_BL[..., None], model.backbone.soft(before_RLV))}
    h = model.hidden(batch.ids_BL, batch, {}, torch.arange(2), extras=extras)
    found = model.backbone.head(h)[batch.target_BL].view(2, CANVAS, V)
    for r, ids in enumerate(PROMPTS):
        given = {"self_conditioning_logits": before_RLV[r : r + 1]} if conditioned else {}
        expected = stock(input_ids=torch.tensor([ids]), decoder_input_ids=NOISE[r : r + 1], **given).logits[0]
        assert expected.std() > 0.5
        torch.testing.assert_close(found[r], expected, atol=3e-5, rtol=1e-5)


def until(ids: list[int], end: int) -> list[int]:
    """Returns the ids before the first one that ends an answer."""
    return ids[: ids.index(end)] if end in ids else ids


@pytest.mark.parametrize("end", [None, 257])
@pytest.mark.parametrize(("bound", "confident"), [(0.5, 1.0), (0.1, 0.005), (2.0, 2.0)])
def test_a_generation_is_that_of_transformers(
    stock: Any, folder: Path, bound: float, confident: float, end: int | None, monkeypatch: Any
) -> None:
    """Two canvases from the same random numbers: every token, and how many steps each row took.

    In double precision, and with smaller steps of the residual stream: else roundings grow tenfold at every step.
    """
    stock, steps, sample = deepcopy(stock).double(), 7, [3, 8]
    stock.set_experts_implementation("eager")  # the other takes no float64
    model = MMDiff(load_backbone(folder, dtype="float64"))
    with torch.no_grad():
        for decoder in (stock.model.decoder, model.backbone.model):
            decoder.self_conditioning.down_proj.weight.mul_(0.2)
            decoder.norm.weight.mul_(4.0 if confident == 1.0 else 1.0)  # surer, and of what stands there
            for name, p in decoder.layers.named_parameters():
                p.mul_((0.03 if confident == 1.0 else 0.2) if "post_" in name else 1.0)
    allowed = [i for i in range(V) if i != model.vocab.slot_id]
    found = model.generate(
        collate([[Text(ids), Target(length=2 * CANVAS)] for ids in PROMPTS], model.vocab, index=sample, side="left"),
        block_length=CANVAS, temperature=0.8, temperature_end=0.4 + 0.4 / steps, remasking="entropy",
        select=EntropyBound(bound), early_stop=end is not None,
        process=Renoising(steps=steps, stable=1, confident=confident, conditioning=True),
    )  # fmt: skip

    def banned(_: Any, scores: Tensor, **__: Any) -> Tensor:
        return scores.index_fill(-1, torch.tensor([model.vocab.slot_id]), -torch.inf)

    from transformers import EntropyBoundSamplerConfig, LogitsProcessorList

    for r, ids in enumerate(PROMPTS):
        draws = Draws(sample[r], allowed, CANVAS)
        with monkeypatch.context() as patch:
            draws.put(stock, patch)
            out = stock.generate(
                torch.tensor([ids]), max_new_tokens=2 * CANVAS, max_denoising_steps=steps, t_min=0.4, t_max=0.8,
                sampler_config=EntropyBoundSamplerConfig(entropy_bound=bound), stability_threshold=1,
                confidence_threshold=confident, eos_token_id=end, pad_token_id=0,
                logits_processor=LogitsProcessorList([banned]),
            )  # fmt: skip
        theirs, ours = out.sequences[0, len(ids) :].tolist(), found.targets()[r]
        assert int(found.forwards_B[r]) == draws.step
        assert ours[: len(theirs)] == theirs if end is None else model.vocab.until_end(ours) == until(theirs, end)
        assert confident == 2.0 or end is not None or (draws.step < 2 * steps) == (confident == 1.0)


def test_files_come_back_and_transformers_reads_them(stock: Any, folder: Path, tmp_path: Path) -> None:
    """Every tensor but the vision tower's, whose names are known; and only what is missing is refused."""
    backbone = load_backbone(folder)
    backbone.save_pretrained(tmp_path / "theirs", original_format=True)
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "theirs"))
    tower = {name for name in before if "vision" in name}
    assert before.keys() - after.keys() == tower and after.keys() < before.keys() and tower
    assert all(torch.equal(before[name], value) for name, value in after.items())
    raw, again = (json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "theirs"))
    assert raw == again
    read, info = DiffusionGemmaForBlockDiffusion.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not info["unexpected_keys"] and all("vision" in name for name in info["missing_keys"])
    given = {"input_ids": torch.tensor([PROMPTS[0]]), "decoder_input_ids": NOISE[:1]}
    torch.testing.assert_close(
        read.eval()(**given).logits, stock(**given).logits, atol=1e-5, rtol=1e-5
    )  # of mapped files
    backbone.save_pretrained(tmp_path / "ours")
    for path in (tmp_path / "theirs", tmp_path / "ours"):
        other = load_backbone(path)
        assert other.facts == backbone.facts and torch.equal(other(NOISE), backbone(NOISE))
    MMDiff(backbone).save_pretrained(tmp_path / "model")
    assert torch.equal(MMDiff.from_pretrained(tmp_path / "model").backbone(NOISE), backbone(NOISE))
    gone = "model.encoder.language_model.layers.1.layer_scalar"
    save_file({k: v for k, v in before.items() if k != gone}, tmp_path / "theirs" / "model.safetensors")
    with pytest.raises(ConfigError, match=f"1 missing tensors: {gone}"):
        load_backbone(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("field", "value"),
    [("looped", 1), ("text_config", 3), ("text_config.looped", 1), ("text_config.use_bidirectional_attention", "all"),
     ("tie_word_embeddings", False), ("text_config.num_experts", None)],
)  # fmt: skip
def test_fields_that_are_not_known_are_refused(folder: Path, field: str, value: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    home, _, name = field.rpartition(".")
    (raw[home] if home else raw)[name] = value
    with pytest.raises(ConfigError, match=f"config.json: {name}") as error:
        FAMILY.config(raw)
    assert "\n" not in str(error.value)


def test_inspect_says_what_it_is(folder: Path) -> None:
    found = inspect(folder)
    assert (found["mask_id"], found["noise"], found["block_length"]) == (None, "uniform", CANVAS)
    assert found["loads"] and not found["missing"] and not found["unexpected"] and found["problems"] == []
    assert found["attention"] == "causal-context" and "mask" not in found["special_ids"]
    assert set(found["parts"]) == {"backbone", "vision_tower", "embed_vision"} and not found["elsewhere"]


# Without a mask token


def moved(model: MMDiff, objective: Any) -> set[str]:
    """Returns the parameters that one step of training has a gradient for; one target position is empty."""
    rows = [[Text([5, 6]), Target([7, 8, 9, 10, model.vocab.mask_id])], [Text([9, 4, 3]), Target([4, 5, 6])]]
    plan = objective.plan(collate(rows, model.vocab), NoiseKey(0, 0, "x"), model.vocab)
    assert (plan.ids_BL >= 0).all()
    model.zero_grad()
    objective.terms(model.train(), plan)["hybrid"].value.backward()
    return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}


@pytest.mark.parametrize("kind", ["diffusion_gemma", "llama"])
def test_it_trains_takes_adapters_and_has_no_mask(folder: Path, kind: str, tmp_path: Path) -> None:
    """Uniform noise needs none, in training and in generation; what masks is refused in one line."""
    torch.manual_seed(0)
    if kind == "llama":
        options, tokenizer = {"mask": None, "shift": 0}, find_family("llama").toy_tokenizer()
        made = new_backbone(
            family=kind, tokenizer=tokenizer, hidden_size=32, layers=2, heads=4, init_std=0.2, options=options
        )
        made.save_pretrained(tmp_path)
        assert load_backbone(tmp_path).facts == made.facts and made.facts.noise == "uniform"
        model = MMDiff(made)
    else:
        model = MMDiff(load_backbone(folder))
    assert model.vocab.mask_id == NO_MASK and model.backbone.facts.mask_id is None
    objective = HybridBound(Hybrid(uniform=1.0, given="all"))
    still = {n for n, _ in model.named_parameters()} - moved(model, objective)
    assert all("experts" in n or "self_conditioning" in n for n in still)  # nothing was predicted before
    model.eval()
    rows = [[Text([5, 6, 7]), Target(length=5)], [Text([9]), Target([4, NO_MASK, NO_MASK, 5]), Text([3])]]
    for process in (Renoising(steps=4), Hybrid(uniform=1.0, given="all")):
        named: dict[str, Any] = {"process": process, "temperature": 1.0, "early_stop": False}
        together = model.generate(collate(rows, model.vocab, index=[0, 1]), **named).targets()
        for i, row in enumerate(rows):
            assert model.generate(collate([row], model.vocab, index=[i]), **named).targets() == [together[i]]
        assert together[1][0] == 4 and together[1][3] == 5 and min(min(ids) for ids in together) >= 0
    batch = collate(rows, model.vocab)
    for masks in (
        lambda: model.generate(batch),
        lambda: model.generate(batch, process=Renoising(steps=2), guidance_scale=1.0),
        lambda: model.generate(batch, process=Hybrid()),
        lambda: Denoise().plan(batch, NoiseKey(0, 0, "x"), model.vocab),
        lambda: HybridBound().plan(batch, NoiseKey(0, 0, "x"), model.vocab),
    ):
        with pytest.raises(ConfigError, match="the model has no mask token, its noise is uniform"):
            masks()
    if kind == "llama":
        with pytest.raises(ConfigError, match="sampler.process.conditioning: llama takes no earlier prediction"):
            model.generate(batch, process=Renoising(conditioning=True))
    with pytest.raises(ConfigError, match=r"sampler.steps: sampler.process.steps gives every block 4"):
        model.generate(batch, process=Renoising(steps=4), steps=8)
    add_adapters(model, {"part": "backbone", "modules": "q_proj|v_proj", "r": 2, "alpha": 4, "dropout": 0.0})
    assert moved(model, objective) and all("lora_" in n for n in moved(model, objective))
    model.backbone.gradient_checkpointing(True)
    assert moved(model, objective) and all("lora_" in n for n in moved(model, objective))


def test_a_row_has_one_canvas(folder: Path) -> None:
    """Windows are counted from it, so documents of a packed row and clean copies beside it are refused."""
    model = MMDiff(load_backbone(folder))
    both = [[Text([5]), Target([6, 7]), Break(), Text([8]), Target([9, 10])]]
    batch = collate(both, model.vocab)
    for run in (
        lambda: model.hidden(batch.ids_BL, batch, {}, torch.arange(1)),
        lambda: model.hidden_copies(batch.ids_BL, replace(batch, packed=False), {}, 1, blockwise=True),
    ):
        with pytest.raises(ConfigError, match="diffusion_gemma has one canvas per row"):
            run()


@torch.no_grad()
def test_half_precision_stays_near(folder: Path) -> None:
    exact, half = load_backbone(folder)(NOISE), load_backbone(folder, dtype="bfloat16")(NOISE).float()
    assert half.isfinite().all() and float((half - exact).abs().mean()) < 0.1 * float(exact.std())


def test_the_toy_of_the_published_model_and_its_preset() -> None:
    torch.manual_seed(0)
    toy = load_backbone.toy("google/diffusiongemma-26B-A4B-it")  # type: ignore[attr-defined]
    assert toy.facts.attention == CausalContext(256) and toy.facts.end_ids == (toy.vocab.eos_id,)
    out = MMDiff(toy).generate(torch.tensor([[5, 6, 7]]), max_new_tokens=8, **without(preset("diffusion-gemma")))
    assert len(out.targets()[0]) == 8 and int(out.forwards_B[0]) <= 48


def without(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "max_new_tokens"}


GEMMA = ["sampler.preset=diffusion-gemma", f"sampler.block_length={CANVAS}"]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_exported_folder_has_the_tower_and_the_sampler(
    stock: DiffusionGemmaForBlockDiffusion, folder: Path, tmp_path: Path, engine: str
) -> None:
    """What engines read: every tensor of the published folder, and its generation_config.json."""
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import DiffusionGemmaGenerationConfig

    model = MMDiff(load_backbone(folder))
    save_model(model, tmp_path / "saved")
    with pytest.raises(ConfigError, match="needs the vision tower, .* expected --tower FOLDER"):
        export(tmp_path / "saved", tmp_path / "out", engine=engine, overrides=GEMMA)
    with pytest.raises(ConfigError, match="expected sampler.preset=diffusion-gemma"):
        export(tmp_path / "saved", tmp_path / "out", engine=engine, tower=folder)
    found = export(tmp_path / "saved", tmp_path / "out", engine=engine, overrides=GEMMA, tower=folder)
    read, info = DiffusionGemmaForBlockDiffusion.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    theirs = stock.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in read.state_dict().items())
    defaults = DiffusionGemmaGenerationConfig.from_pretrained(tmp_path / "out")
    assert defaults.sampler_config.entropy_bound == 0.1 and defaults.max_denoising_steps == 48
    assert (defaults.t_max, defaults.confidence_threshold, defaults.stability_threshold) == (0.8, 0.005, 1)
    assert defaults.t_min == pytest.approx(0.4, abs=1e-9)
    assert found["serve"].startswith({"vllm": "vllm serve ", "sglang": "python -m sglang.launch_server "}[engine])
    if engine == "sglang":
        assert yaml.safe_load((tmp_path / "out/sglang.yaml").read_text()) == {
            "max_denoising_steps": 48,
            "sampler_config": {"entropy_bound": 0.1},
            "temperature_schedule": {"t_min": defaults.t_min, "t_max": 0.8},
            "stopping_config": {"confidence_threshold": 0.005, "stability_threshold": 1},
        }
    again = MMDiff.from_pretrained(tmp_path / "out")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())

"""The real lm-evaluation-harness on local tasks: what it is told is what the model's likelihood and sampler say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdiff.backbones import new_backbone
from mmdiff.backbones.families.tokenizers import byte_tokenizer
from mmdiff.canvas.patterns import Causal, Full
from mmdiff.canvas.sample import Target, Text
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.model.likelihood import bound

pytestmark = pytest.mark.needs("lm_eval")

QUESTIONS = [
    {"question": "north is", "choices": ["up", "left of here", "down"], "gold": 0},
    {"question": "south is", "choices": ["up", "left", "down"], "gold": 2},
    {"question": "east is", "choices": ["up", "right", "a word"], "gold": 1},
]
TASKS = {
    "local_choice": """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
""",
    "local_text": """
task: local_text
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["e"], max_gen_toks: 6}
metric_list: [{metric: exact_match}]
""",
    "local_rolling": """
task: local_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte}]
""",
}


@pytest.fixture(scope="module", params=["full", "causal"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(bos=None, eos="<eos>", special=("<mask>",))
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    backbone = new_backbone(tokenizer=tokenizer, hidden_size=32, layers=2, heads=2, init_std=0.2, max_length=64)
    model = MMDiff(backbone, attention=Full() if request.param == "full" else Causal())
    folder = tmp_path_factory.mktemp("model") / request.param
    model.save_pretrained(folder)
    return folder


def logp(model: MMDiff, context: str, rest: str) -> float:
    """One pass per token of a causal model, or the bound of all mask counts."""
    before, whole = model.vocab.encode(context), model.vocab.encode(context + rest)
    if model.attention == Full():
        batch = collate([[Text(before), Target(whole[len(before) :])]], model.vocab, index=[0])
        return -float(bound(model, batch, levels=64).nll_B)
    total = 0.0
    for n in range(len(before), len(whole)):
        batch = collate([[Text(whole[:n])]], model.vocab)
        hidden = model.hidden(batch.ids_BL, batch, {}, torch.arange(1))[0, -1]
        total += float(model.backbone.head(hidden).log_softmax(-1)[whole[n]])
    return total


@torch.no_grad()
def test_the_harness_gets_what_the_model_says(saved: Path, tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    from mmdiff.evals.lm_eval import Harness

    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    for name, text in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(text.replace("FILE", str(tmp_path / "rows.jsonl")))
    harness = Harness(str(saved), levels=64, batch_size=2, max_new_tokens=6)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    out: Any = lm_eval.simple_evaluate(
        harness, tasks=list(TASKS), task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    model = harness.model
    for sample in out["samples"]["local_choice"]:
        row = sample["doc"]
        found = [float(response[0][0]) for response in sample["resps"]]
        want = [logp(model, row["question"], f" {choice}") for choice in row["choices"]]
        if model.attention == Full():  # 64 levels bound these exactly, but which positions are masked is drawn
            assert all(abs(a - b) < 0.2 * abs(b) for a, b in zip(found, want, strict=True))
        else:
            assert found == pytest.approx(want, rel=1e-4)
        assert bool(sample["acc"]) == (found.index(max(found)) == row["gold"])
    texts = {sample["doc"]["question"]: sample["resps"][0][0] for sample in out["samples"]["local_text"]}
    for i, row in enumerate(QUESTIONS):
        batch = collate([[Text(model.vocab.encode(row["question"])), Target(length=6)]], model.vocab, index=[i])
        ids = model.generate(batch).targets()[0]
        assert texts[row["question"]] == model.vocab.decode(model.vocab.until_end(ids)).split("e")[0]
    bits = out["results"]["local_rolling"]["bits_per_byte,none"]
    assert 2 < bits < 30
    if model.attention == Causal():
        total = sum(logp(model, "<eos>", row["question"]) for row in QUESTIONS)
        size = sum(len(row["question"]) for row in QUESTIONS)
        assert bits == pytest.approx(-total / size / torch.log(torch.tensor(2.0)).item(), rel=1e-4)


@torch.no_grad()
def test_another_estimator_and_guidance_by_name(saved: Path) -> None:
    """From left to right, one token per forward, and with the context masked in a second forward."""
    from mmdiff.evals.lm_eval import Harness

    path = "mmdiff.model.likelihood.orders.LeftToRight"
    if saved.name == "causal":
        with pytest.raises(ConfigError, match="reads clean ids, expected neither"):
            Harness(str(saved), estimator=path)
        return
    for guidance in (0.0, 0.7):
        harness = Harness(str(saved), estimator=path, guidance=guidance)  # type: ignore[arg-type]
        model, total = harness.model, 0.0
        before, rest = model.vocab.encode("ab"), model.vocab.encode("cde")
        mask = model.vocab.mask_id
        for n in range(len(rest)):
            ids = torch.tensor([[*before, *rest[:n], *[mask] * (len(rest) - n)]])
            bare = torch.tensor([[*[mask] * len(before), *rest[:n], *[mask] * (len(rest) - n)]])
            given, empty = (model.backbone(x)[0, len(before) + n].double() for x in (ids, bare))
            total += float((empty + (guidance + 1) * (given - empty)).log_softmax(-1)[rest[n]])
        found = harness._scored([((before, rest), 0)])[0][0]
        assert found == pytest.approx(total, rel=1e-4)


def test_batches_and_devices_of_a_command_line() -> None:
    from mmdiff.evals.requests import batch_of, device_of

    assert [batch_of(given, 8) for given in ("auto", "auto:4", "3", 5)] == [8, 8, 3, 5]
    for wrong in ("x", 0, -1, "1.5", ""):
        with pytest.raises(ConfigError, match="^batch_size: .*expected a whole number of at least 1, or auto$"):
            batch_of(wrong, 8)
    with pytest.raises(ConfigError, match="^device: 'gpu', expected one of torch"):
        device_of("gpu")


def test_what_a_task_asks_of_generations_is_checked() -> None:
    from mmdiff.evals.requests import settings_of

    found = settings_of({"until": "\n", "do_sample": True, "temperature": 0.5, "top_p": None, "max_gen_toks": 8})
    assert found == (8, (("temperature", 0.5),), ("\n",))
    assert settings_of({"until": ["a", "b"], "temperature": 0.5, "num_beams": 1}) == (None, (), ("a", "b"))
    for named, line in [
        ({"temprature": 1.0}, r"no 'temprature' \(did you mean \"temperature\"\?\)"),
        ({"until": 5}, "until: 5, expected a text or a list of texts"),
        ({"until": ["a", 5]}, "until: .*expected a text or a list of texts"),
        ({"do_sample": "yes"}, "do_sample: 'yes', expected true or false"),
        ({"temperature": -1}, "sampler.temperature=-1"),
        ({"do_sample": True, "top_p": 2}, "sampler.top_p=2"),
        ({"max_gen_toks": "x"}, "sampler.max_new_tokens: 'x'"),
        ({"max_new_tokens": 0}, "sampler.max_new_tokens=0"),
    ]:
        with pytest.raises(ConfigError, match=line):
            settings_of(named)

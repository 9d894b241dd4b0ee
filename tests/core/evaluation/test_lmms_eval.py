"""The real lmms-eval on local tasks of pictures and of sounds: what it is told is what the model's session says."""

from __future__ import annotations

import json
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import multimodal as small
from paths import ROOT

from mmdiff.backbones import new_backbone
from mmdiff.connectors.mlp import Linear
from mmdiff.data.collate import collate
from mmdiff.data.stream import read_media
from mmdiff.encoders.speech import SpeechConv
from mmdiff.errors import DataError
from mmdiff.model import MMDiff
from mmdiff.model.likelihood import bound
from mmdiff.model.saving import save_model
from mmdiff.session import load
from mmdiff.tasks.vqa import VQA

pytestmark = [
    pytest.mark.needs("lmms_eval", "PIL", "soundfile"),
    pytest.mark.filterwarnings("ignore"),  # the harness's own, of some fifty packages
]
QUESTIONS = [
    {"question": "what is it", "choices": ["a cat", "a dog", "up"], "gold": 0},
    {"question": "and this", "choices": ["north", "it", "a word"], "gold": 2},
    {"question": "who", "choices": ["up", "left", "down"], "gold": 1},
]
TASK = """
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
doc_to_visual: !function shown.KIND
doc_to_text: "{{question}}"
"""
KINDS = {
    "choice": 'output_type: multiple_choice\ndoc_to_choice: "{{choices}}"\ndoc_to_target: gold\n'
    "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n",
    "text": 'output_type: generate_until\ndoc_to_target: "{{choices[0]}}"\n'
    'generation_kwargs: {until: ["e"], max_new_tokens: 6}\n'
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n",
}
SHOWN = """
import numpy as np
from PIL import Image

def image(doc):
    return [Image.open(doc["file"]).convert("RGB")]

def audio(doc):
    return [{"array": np.load(doc["file"]), "sampling_rate": 16000}]
"""


@pytest.fixture(scope="module", params=["image", "audio"])
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """Returns the kind of media, a model that answers questions about it, and a folder of tasks."""
    from PIL import Image

    kind, folder, tasks = request.param, tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("tasks")
    draw = np.random.default_rng(0)
    if kind == "image":
        small.write_folder(folder, small.LLADA_V)  # as its authors publish it
    else:
        torch.manual_seed(0)
        tokenizer = small.find_family("llada").toy_tokenizer()
        backbone = new_backbone(tokenizer=tokenizer, hidden_size=32, layers=2, heads=2, init_std=0.2)
        encoder = SpeechConv.toy()
        model = MMDiff(backbone, {"audio": encoder}, {"audio": Linear(encoder.width, 32)})
        task = {"target": "mmdiff.tasks.vqa.VQA", "max_new_tokens": 4}
        save_model(model, folder / "model", extra={"task": task, "sampler": {}})
        folder = folder / "model"
    rows = []
    for i, row in enumerate(QUESTIONS):
        file = tasks / f"{i}.{'png' if kind == 'image' else 'npy'}"
        if kind == "image":
            Image.fromarray(draw.integers(0, 255, (30, 50 + i, 3), dtype=np.uint8)).save(file)
        else:
            np.save(file, draw.normal(size=8000 + 900 * i).astype(np.float32) * 0.1)
        rows.append({**row, "file": str(file)})
    (tasks / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tasks / "shown.py").write_text(SHOWN)
    for name, rest in KINDS.items():
        text = TASK.replace("NAME", f"local_{kind}_{name}").replace("FILE", str(tasks / "rows.jsonl"))
        (tasks / f"{name}.yaml").write_text(text.replace("KIND", kind) + rest)
    return kind, folder, tasks


def entry() -> EntryPoint:
    group = "lmms_eval.models"
    (found,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][group].items()
    return EntryPoint(*found, group)


@torch.no_grad()
def test_the_harness_gets_what_the_session_says(asked: tuple[str, Path, Path]) -> None:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.tasks import TaskManager

    kind, folder, tasks = asked
    MODEL_REGISTRY_V2.register_manifest(entry().load()(), overwrite=True)
    names = [f"local_{kind}_{name}" for name in KINDS]
    settings = "levels=64,batch_size=2,steps=3" + (",block_length=6" if kind == "image" else "")
    out: Any = simple_evaluate(
        "mmdiff",
        model_args=f"pretrained={folder},{settings}",
        tasks=names,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )
    session = load(folder, "sampler.steps=3", *(["sampler.block_length=6"] if kind == "image" else []))
    model, task = session.model, session.task
    rows = [json.loads(line) for line in (tasks / "rows.jsonl").read_text().splitlines()]
    hits = []
    for i, sample in enumerate(sorted(out["samples"][names[0]], key=lambda sample: sample["doc_id"])):
        data = rows[i]["file"] if kind == "image" else {"array": np.load(rows[i]["file"]), "sampling_rate": 16000}
        row = {"question": rows[i]["question"], kind: data}
        options = [{**row, "answer": choice} for choice in rows[i]["choices"]]
        canvases = [read_media(task.sample(option, model.vocab), model.readers) for option in options]
        batches = [collate([one], model.vocab, model.readers, index=[i]) for one in canvases]
        want = [float(bound(model, batch, levels=64).nll_B) for batch in batches]
        found = [float(response[0]) for response in sample["filtered_resps"]]
        assert found == pytest.approx(want, rel=1e-4)
        hits.append(found.index(min(found)) == rows[i]["gold"])
        task.max_new_tokens = 6
        said = session.predict_many([row], first=i)[0]["prediction"].split("e")[0]
        (text,) = [s for s in out["samples"][names[1]] if s["doc_id"] == i]
        assert text["filtered_resps"][0] == said
    assert out["results"][names[0]]["acc,none"] == pytest.approx(sum(hits) / len(hits))


@torch.no_grad()
def test_log_likelihoods_asked_directly(asked: tuple[str, Path, Path]) -> None:
    """An option has a loss, an answer of a task of perplexities log p; greedy decoding gives what was generated."""
    from lmms_eval.api.instance import Instance

    from mmdiff.evals.lmms_eval import Harness

    kind, folder, tasks = asked
    row = json.loads((tasks / "rows.jsonl").read_text().splitlines()[0])
    data = row["file"] if kind == "image" else {"array": np.load(row["file"]), "sampling_rate": 16000}
    harness = Harness(str(folder), levels=64, greedy=True, batch_size=4)
    harness.task_dict = {"t": {"test": [row]}}
    targets = ["a dog", lambda doc: doc["choices"][1], "up"]
    facts = {"task": "t", "doc_id": 0, "repeats": 1}
    requests = [
        Instance("loglikelihood", (row["question"], target, lambda doc: [data], 0, "t", "test"), i, facts)
        for i, target in enumerate(targets)
    ]
    option, answer, _ = (result.text for result in harness.loglikelihood(requests))
    assert option[0] == -answer[0] > 0 and not option[1]


def test_what_a_task_shows() -> None:
    from mmdiff.evals.lmms_eval import medium

    class Decoder:
        def get_all_samples(self) -> Any:
            return type("Samples", (), {"data": torch.ones(2, 5), "sample_rate": 8000})()

    kind, sound = medium(Decoder())
    assert kind == "audio" and sound["sampling_rate"] == 8000 and sound["array"].tolist() == [1.0] * 5
    assert medium({"array": [0.0], "sampling_rate": 1, "path": "x"}) == ("audio", {"array": [0.0], "sampling_rate": 1})
    assert medium("a.WAV")[0] == "audio" and medium("a.png")[0] == "image" and medium(b"")[0] == "image"
    with pytest.raises(DataError, match="a.mp4: a video"):
        medium("a.mp4")


def test_media_that_the_task_does_not_read_are_an_error(asked: tuple[str, Path, Path]) -> None:
    from mmdiff.evals.lmms_eval import Harness

    harness = Harness(str(asked[1]))
    harness.fields = ("question", "answer")
    with pytest.raises(DataError, match="VQA reads no image"):
        harness._row("what", ["a.png"])
    assert isinstance(harness.session.task, VQA)

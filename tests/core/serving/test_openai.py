"""The official client of OpenAI against a real server: answers are those of the session, alone and among others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

openai = pytest.importorskip("openai")

SEE = {"type": "image_url", "image_url": {"url": "data:,"}}
ASK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How are you?"}]


@pytest.fixture(scope="module")
def client(chat_url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{chat_url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def writer(text_url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{text_url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_a_chat_is_answered_as_the_session_does(client: Any, chat_session: Any) -> None:
    found = client.chat.completions.create(model="small", messages=ASK, max_tokens=12, seed=3, logprobs=True)
    (expected,) = chat_session.predict_many([{"messages": ASK}], first=3)
    choice = found.choices[0]
    assert choice.message.content == expected["prediction"] and choice.message.role == "assistant"
    assert found.diffusion["forwards"] == expected["forwards"] == 6 and found.diffusion["seed"] == 3
    sure = [confidence for _, step, confidence in expected["canvas"] if step]
    logs = [np.exp(one.logprob) for one in choice.logprobs.content]
    assert np.allclose(logs, sure[: len(logs)], atol=1e-4) and len(logs) == found.usage.completion_tokens
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert client.models.list().data[0].id == "small"


def test_temperature_and_seed(client: Any) -> None:
    def said(seed: int, **more: Any) -> str:
        found = client.chat.completions.create(model="small", messages=ASK, temperature=1.0, seed=seed, **more)
        return str(found.choices[0].message.content)

    assert said(1) == said(1) and len({said(seed) for seed in range(8)}) > 1
    many = client.chat.completions.create(model="small", messages=ASK, temperature=1.0, seed=5, n=3)
    assert [one.message.content for one in many.choices] == [said(5), said(6), said(7)]


@pytest.mark.parametrize("block", [None, 3])
def test_the_pieces_of_a_stream_are_the_answer(client: Any, block: int | None) -> None:
    extra = {"extra_body": {} if block is None else {"block_length": block}}
    whole = client.chat.completions.create(model="small", messages=ASK, seed=2, **extra)
    usage = {"include_usage": True}
    events = list(
        client.chat.completions.create(model="small", messages=ASK, seed=2, stream=True, stream_options=usage, **extra)
    )
    pieces = [event.choices[0].delta.content or "" for event in events if event.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert events[-1].usage == whole.usage and events[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert not any(hasattr(event, "draft") for event in events)


def test_drafts_show_every_step(client: Any, chat_session: Any) -> None:
    vocab = chat_session.model.vocab
    extra = {"drafts": True, "max_denoising_steps": 4}
    events = list(client.chat.completions.create(model="small", messages=ASK, seed=2, stream=True, extra_body=extra))
    drafts = [event.draft for event in events if hasattr(event, "draft")]
    assert [one["step"] for one in drafts] == [1, 2, 3, 4, 4] and [one["pending"] for one in drafts[-2:]] == [0, 0]
    assert [one["committed"] for one in drafts[:4]] == [3, 6, 9, 12]
    for before, after in zip(drafts, drafts[1:], strict=False):  # what is committed stays
        for old, new in zip(before["tokens"], after["tokens"], strict=True):
            assert old["pending"] or old == new
    assert all((token["id"] == vocab.mask_id) == token["pending"] for token in drafts[0]["tokens"])


def test_ragged_requests_at_once_equal_their_single_runs(client: Any, chat_session: Any) -> None:
    asks = [[{"role": "user", "content": "word " * (1 + n % 7)}] for n in range(24)]

    def said(n: int) -> tuple[str, int]:
        found = client.chat.completions.create(
            model="small", messages=asks[n], seed=n, temperature=0.7, max_tokens=4 + n % 9
        )
        return str(found.choices[0].message.content), int(found.diffusion["batch"])

    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(said, range(24)))
    alone = [said(n) for n in range(24)]
    assert [text for text, _ in together] == [text for text, _ in alone] and len({text for text, _ in alone}) > 12
    assert max(batch for _, batch in together) > 1 and {batch for _, batch in alone} == {1}


def test_completions_infill_and_pin(writer: Any, text_session: Any) -> None:
    vocab = text_session.model.vocab
    found = writer.completions.create(model="small", prompt="The ", suffix=" end", max_tokens=5, seed=0, logprobs=1)
    (expected,) = text_session.predict_many([{"text": ["The ", 5, " end"]}])
    assert found.choices[0].text == expected["prediction"] and len(found.choices[0].logprobs.tokens) <= 5
    seed = [*map(int, vocab.encode("abc")), vocab.mask_id, *map(int, vocab.encode("e"))]
    canvas = {"diffusion_seed_canvas": seed}
    cases = ((canvas, "abc?e"), ({**canvas, "diffusion_pinned": [1]}, "?b???"))
    for xargs, stays in cases:
        kept = writer.completions.create(
            model="small", prompt="x", seed=0, extra_body={"vllm_xargs": xargs, "drafts": False}, logprobs=1
        )
        given = [np.isclose(one, 0.0, atol=0) for one in kept.choices[0].logprobs.token_logprobs]
        tokens = kept.choices[0].logprobs.tokens
        for letter, token, stayed in zip(stays, tokens, given, strict=False):
            assert letter == "?" or (token == letter and stayed)
    assert len(writer.completions.create(model="small", prompt=["a", "b"], n=2, max_tokens=2).choices) == 4
    assert len(writer.completions.create(model="small", prompt=[[5, 6]], max_tokens=2).choices) == 1


def test_json_schema_is_held(writer: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    for seed in range(4):
        found = writer.completions.create(
            model="small", prompt="x", max_tokens=24, seed=seed, temperature=1.0, extra_body={"response_format": wanted}
        )
        assert set(json.loads(found.choices[0].text)) == {"ok"}
    with pytest.raises(openai.BadRequestError, match="positions"):
        writer.completions.create(model="small", prompt="x", max_tokens=3, extra_body={"response_format": wanted})


def test_stop_strings(writer: Any) -> None:
    free = writer.completions.create(model="small", prompt="x", max_tokens=12, seed=0).choices[0]
    letter = free.text[5]
    cut = writer.completions.create(model="small", prompt="x", max_tokens=12, seed=0, stop=[letter]).choices[0]
    assert cut.text == free.text.split(letter)[0] and cut.finish_reason == "stop"
    events = writer.completions.create(model="small", prompt="x", max_tokens=12, seed=0, stop=letter, stream=True)
    assert "".join(event.choices[0].text for event in events) == cut.text


def test_embeddings(writer: Any, text_session: Any) -> None:
    from mmdiff.evaluation.embed import embed_texts

    found = writer.embeddings.create(model="small", input=["one", "two words"])  # base64, as the client asks for
    plain = writer.embeddings.create(model="small", input="two words", encoding_format="float")
    expected = embed_texts(text_session.model, ["one", "two words"])
    assert np.allclose([one.embedding for one in found.data], expected, atol=1e-5)
    assert np.allclose(plain.data[0].embedding, expected[1], atol=1e-5) and plain.usage.prompt_tokens == 9


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bogus": 1}, "bogus: no such field"),
        ({"block_lenght": 8}, 'did you mean "block_length"'),
        ({"temperature": -1}, "temperature: -1"),
        ({"threshold": 2}, "threshold: 2"),
        ({"max_tokens": 0}, "max_tokens: 0"),
        ({"seed": "x"}, "seed: 'x'"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"messages": []}, "messages: "),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "text only",
        ),
        ({"messages": [{"role": "oracle", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"n": 33}, "n: 33"),
        ({"max_tokens": 100_000}, "expected at most"),
        ({"vllm_xargs": {"diffusion_pinned": [0]}}, "needs a diffusion_seed_canvas"),
        ({"vllm_xargs": {"diffusion_seed_canvas": [10**6]}}, "does not fit"),
        ({"vllm_xargs": {"diffusion_seed_canvas": [5], "diffusion_pinned": [1]}}, "no position"),
        ({"response_format": {"type": "json_schema"}}, "missing"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(client: Any, fields: dict[str, Any], said: str) -> None:
    body = {"messages": ASK, **fields}
    with pytest.raises(openai.BadRequestError) as error:
        client.post("/chat/completions", body=body, cast_to=object)
    found = error.value.body
    assert said in found["message"] and "\n" not in found["message"] and len(found["message"]) < 600
    assert found["type"] == "invalid_request_error"


def test_another_model_is_not_found(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.chat.completions.create(model="gpt-4o", messages=ASK)

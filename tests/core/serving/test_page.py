"""The page at /, in a real Chromium against a real server."""

from __future__ import annotations

import base64
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from models.served import byte_tokenizer, served, session
from pages.browser import chromium, open_page

from mmdiff.backbones import new_backbone
from mmdiff.config.settings import GenerationConfig
from mmdiff.connectors.mlp import MLP
from mmdiff.encoders.conv import ConvTower
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.serving.http.files import origin_of, page
from mmdiff.session import Session

MESSAGE = 'textarea[aria-label="Message"]'
WATCH = """() => {
  window.left = [];
  new MutationObserver(() => {
    const left = document.querySelectorAll(".token.pending").length;
    if (document.querySelector(".token") && window.left.at(-1) !== left) window.left.push(left);
  }).observe(document.querySelector(".log"), { childList: true, subtree: true, attributes: true });
}"""  # how many positions are masked, as it changes
SEND = "#ask button[type=submit]"
HAND_OVER = """([event, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], "a.png", { type: "image/png" }));
  const more = { bubbles: true, cancelable: true };
  if (event === "drop") document.body.dispatchEvent(new DragEvent("drop", { ...more, dataTransfer: data }));
  else document.body.dispatchEvent(new ClipboardEvent("paste", { ...more, clipboardData: data }));
}"""  # a picture that is dropped or pasted anywhere
DONE = ".tools:not([hidden])"
PAGE = page("mmdiff.serving/page")
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGP4z8CAFWEXHbQSACj/P8Fu7N9hAAAAAElFTkSuQmCC"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def expect(found: Any) -> Any:
    from playwright.sync_api import expect

    return expect(found)


def ask(page: Any, text: str, where: str = MESSAGE) -> dict[str, Any]:
    """Send a text, wait for the whole answer, and return the request's body."""
    done = page.locator(DONE).count()
    page.fill(where, text)
    page.click(SEND)
    expect(page.locator(DONE)).to_have_count(done + 1 if "Message" in where else 1)
    expect(page.locator(".live")).to_have_count(0)
    return page.sent[-1]  # type: ignore[no-any-return]


def texts(page: Any, where: str = ".token") -> list[str]:
    return list(page.locator(where).all_text_contents())


def seen(text: str) -> str:
    """What the page shows of a token: signs for what nobody would see."""
    return "".join("\u23ce" if c == "\n" else chr(0x2400 + ord(c)) if c < " " else c for c in text)


def background(token: Any) -> str:
    return str(token.evaluate("e => getComputedStyle(e).backgroundColor"))


def test_the_page_may_load_and_ask_nothing_but_its_server(text_url: str) -> None:
    for path in PAGE:
        found = httpx.get(f"{text_url}{path}", trust_env=False)
        assert found.status_code == 200 and found.headers["x-content-type-options"] == "nosniff"
        rules = dict(rule.split(" ", 1) for rule in found.headers["content-security-policy"].split("; "))
        assert rules["default-src"] == "'none'" and rules["script-src"] == rules["connect-src"] == "'self'"
        assert "unsafe" not in str(rules) and "http" not in str(rules)
        assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg|\s|localhost)", found.content), path
        assert b"innerHTML" not in found.content and b"insertAdjacentHTML" not in found.content
    assert {"/", "/page/main.js", "/page/style.css"} < set(PAGE)
    for path in ("/page/", "/page/app.py", "/page/../app.py", "/page/%2e%2e/app.py"):
        assert httpx.get(f"{text_url}{path}", trust_env=False).status_code == 404


def test_an_answer_appears_step_by_step(browser: Any, chat_url: str, chat_session: Any) -> None:
    with open_page(browser, chat_url) as page:
        expect(page.locator("#about")).to_contain_text("Chat")
        page.evaluate(WATCH)
        page.select_option("#pace", "120")
        page.fill("#seed-A", "3")
        page.fill(MESSAGE, "How are you?")
        page.keyboard.press("Enter")
        expect(page.locator(DONE)).to_have_count(1)
        assert page.evaluate("window.left") == [10, 8, 6, 4, 2, 0]  # 12 positions in 6 steps
        page.select_option("#pace", "0")
        row = {"messages": [{"role": "user", "content": "How are you?"}]}
        assert page.sent == [{"row": row, "seed": 3, "stream": True, "drafts": True}]
        (expected,) = chat_session.predict_many([row], first=3)
        vocab = chat_session.model.vocab
        steps = [step for _, step, _ in expected["canvas"]]
        assert "".join(texts(page)) == seen("".join(text for text, _, _ in expected["canvas"]))
        facts = page.locator(".facts").inner_text()
        assert facts.startswith(f"{expected['forwards']} forwards") and facts.endswith("seed 3")
        assert "s in the model" in facts
        # colours: equal steps alike, others not; then by confidence; then none
        tokens = page.locator(".token")
        by_step = [background(tokens.nth(i)) for i in range(12)]
        assert len(set(by_step)) == len(set(steps)) == 6
        assert len(set(zip(by_step, steps, strict=True))) == 6
        page.check("#numbers")
        assert page.locator(".token sub").all_text_contents() == [str(step) for step in steps]
        page.select_option("#colour", "confidence")
        sure = [confidence for _, _, confidence in expected["canvas"]]
        assert page.locator(".token sub").all_text_contents() == [f"{int(100 * round(c, 4) + 0.5)}" for c in sure]
        assert background(tokens.nth(0)) != by_step[0]
        page.select_option("#colour", "none")
        assert {background(tokens.nth(i)) for i in range(12)} == {"rgba(0, 0, 0, 0)"}
        # the second message comes with the first turn
        sent = ask(page, "And you?")["row"]["messages"]
        assert [one["role"] for one in sent] == ["user", "assistant", "user"]
        assert sent[1]["content"] == expected["prediction"] and vocab.tokenizer is not None
        page.click("text=New chat")
        expect(page.locator(".turn")).to_have_count(0)
        assert len(ask(page, "Again")["row"]["messages"]) == 1


def test_a_token_is_rewritten(browser: Any, text_url: str, text_session: Any) -> None:
    mask = text_session.model.vocab.mask_id
    with open_page(browser, text_url) as page:
        page.fill("#max_tokens-A", "8")
        page.locator("#temperature-A").fill("20")  # of 41 values, the 21st is 1
        sent = ask(page, "ab", 'textarea[aria-label="Text"]')
        assert sent["max_tokens"] == 8 and sent["temperature"] == 1 and sent["row"] == {"text": "ab"}
        before = texts(page)
        assert len(before) == 8
        page.locator(".token").nth(2).click()
        expect(page.locator(".token.rewritten")).to_have_count(1)
        expect(page.locator(".live")).to_have_count(0)
        sent = page.sent[-1]
        assert [i == mask for i in sent["canvas"]] == [i == 2 for i in range(8)] and "max_tokens" not in sent
        after = texts(page)
        assert after[:2] + after[3:] == before[:2] + before[3:]
        expect(page.locator(".facts")).to_contain_text("1 forward ")
        # with the keyboard: to the last token, mark it and the one before, rewrite both
        page.locator(".token").nth(7).focus()
        page.locator(".token").nth(7).press("Shift+Enter")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press(" ")
        page.click("text=Rewrite 2 marked")
        expect(page.locator(".token.rewritten")).to_have_count(2)
        expect(page.locator(".live")).to_have_count(0)
        assert [i == mask for i in page.sent[-1]["canvas"]] == [i in (6, 7) for i in range(8)]
        assert texts(page)[:6] == after[:6]


def test_gaps_stand_in_their_text(browser: Any, text_url: str) -> None:
    with open_page(browser, text_url) as page:
        sent = ask(page, "ab[[3]]cd[[2]]", 'textarea[aria-label="Text"]')
        assert sent["row"] == {"text": ["ab", 3, "cd", 2]} and len(texts(page)) == 5
        shown = page.locator(".canvas").inner_text()
        assert shown.startswith("ab") and "".join(texts(page)[:3]) + "cd" in shown


def test_stop_ends_the_request(browser: Any, text_url: str) -> None:
    with open_page(browser, text_url) as page:
        page.fill("#max_tokens-A", "3000")
        page.fill('textarea[aria-label="Text"]', "a")
        page.click(SEND)
        expect(page.locator(".facts")).to_contain_text("committed")
        page.click("text=Stop")
        expect(page.locator(".facts")).to_contain_text("stopped")
        expect(page.locator(SEND)).to_be_enabled()
        for _ in range(100):
            if "mmdiff_requests_running 0.0" in httpx.get(f"{text_url}/metrics", trust_env=False).text:
                break
            page.wait_for_timeout(50)
        else:
            pytest.fail("it runs on")
        page.fill("#max_tokens-A", "4")
        ask(page, "a", 'textarea[aria-label="Text"]')
        assert len(texts(page)) == 4


def test_two_panels_and_pins(browser: Any, chat_url: str) -> None:
    with open_page(browser, chat_url) as page:
        page.click("#compare")
        page.locator("#max_denoising_steps-B").fill("1")  # the second value, 2
        page.fill(MESSAGE, "How are you?")
        page.keyboard.press("Enter")
        expect(page.locator(DONE)).to_have_count(2)
        assert sorted(body.get("max_denoising_steps", 6) for body in page.sent) == [2, 6]
        facts = page.locator(".panel .facts").all_text_contents()
        assert facts[0].startswith("6 forwards") and facts[1].startswith("2 forwards")
        page.locator(".panel >> nth=1 >> text=Pin").click()
        pinned = page.locator("#pinned article")
        expect(pinned).to_contain_text("steps 2")
        tokens = texts(page, "#pinned .token")
        assert tokens == texts(page, ".panel >> nth=1 >> .token") and len(tokens) == 12
        page.click("#compare")
        expect(page.locator(".panel")).to_have_count(1)
        expect(pinned).to_have_count(1)
        page.click("[aria-label='Remove this pinned result']")
        expect(page.locator("#pinned")).to_be_hidden()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_two_runs_side_by_side(browser: Any, chat_session: Any) -> None:
    from mmdiff.tasks.text.chat import Chat
    from mmdiff.tasks.text.templates import ChatTemplate

    other = session(Chat(ChatTemplate("chatml"), max_new_tokens=12), seed=1, steps=3)
    other.folder = Path("runs/other")
    row = {"messages": [{"role": "user", "content": "Hello"}]}
    expected = [one.predict_many([row], first=5)[0] for one in (chat_session, other)]
    here, there = free_port(), free_port()
    first = served(chat_session, port=here, beside=f"http://127.0.0.1:{there}")
    second = served(other, port=there, beside=f"http://127.0.0.1:{here}", token="secret")
    with first as url, second as address, open_page(browser, url) as page:
        page.click("#compare")
        expect(page.locator("#token-title")).to_have_text(f"{address} asks for a token")
        page.fill('input[name="token"]', "secret")
        page.keyboard.press("Enter")
        expect(page.locator(".panel")).to_have_count(2)
        for panel in "AB":
            page.fill(f"#seed-{panel}", "5")
        page.fill(MESSAGE, "Hello")
        page.keyboard.press("Enter")
        expect(page.locator(DONE)).to_have_count(2)
        for i, one in enumerate(expected):
            panel = f".panel >> nth={i}"
            assert "".join(texts(page, f"{panel} >> .token")) == seen("".join(text for text, _, _ in one["canvas"]))
            expect(page.locator(f"{panel} >> .facts")).to_contain_text(f"{one['forwards']} forwards")
        page.select_option("[aria-label='Server of panel B']", index=0)  # this one, twice
        page.fill(MESSAGE, "Hello")
        page.keyboard.press("Enter")
        expect(page.locator(".panel >> nth=1").locator(DONE)).to_have_count(1)
        assert "6 forwards" in page.locator(".panel >> nth=1 >> .facts").inner_text()


def test_a_server_that_is_not_there_is_one_line(browser: Any, text_session: Any) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with served(text_session, beside=address) as url, open_page(browser, url, quiet="CONNECTION_REFUSED") as page:
        page.click("#compare")
        expect(page.locator("#error")).to_have_text(f"{address} does not answer")
        expect(page.locator(".panel")).to_have_count(2)  # of this server, both


def test_only_the_server_beside_may_ask(text_session: Any, text_url: str) -> None:
    with served(text_session, beside="http://127.0.0.1:7/") as url:

        def allowed(url: str, origin: str, **more: str) -> str | None:
            method = "OPTIONS" if more else "GET"
            headers = {"origin": origin, **{name.replace("_", "-"): value for name, value in more.items()}}
            answer = httpx.request(method, f"{url}/health", headers=headers, trust_env=False)
            return answer.headers.get("access-control-allow-origin")

        preflight = {"access_control_request_method": "POST", "access_control_request_headers": "authorization"}
        for origin in ("http://127.0.0.1:7", "http://localhost:7"):
            assert allowed(url, origin) == allowed(url, origin, **preflight) == origin
        for origin in ("http://127.0.0.1:8", "https://127.0.0.1:7", "http://evil.example", "null"):
            assert allowed(url, origin) is None and allowed(url, origin, **preflight) is None
        assert (
            "connect-src 'self' http://127.0.0.1:7;"
            in httpx.get(url, trust_env=False).headers["content-security-policy"]
        )
        assert allowed(text_url, "http://127.0.0.1:7") is None


@pytest.mark.parametrize(
    "address",
    ["", "x", "ftp://a", "http://", "http://a b", "http://a;script-src", "http://a/b", "http://a:x", "http://u@a"],
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ConfigError, match="^beside: .*, expected the address of a server"):
        origin_of(address)
    assert origin_of("http://[::1]:80/") == "http://[::1]" and origin_of("HTTPS://A.b:8443") == "https://a.b:8443"


def test_no_text_becomes_html(browser: Any) -> None:
    """All that the model can say is HTML, and so is the question."""
    from mmdiff.canvas.vocab import word_tokenizer
    from mmdiff.tasks.text.task import PlainText

    evil = "<img/src=x/onerror=document.title='broken'>"
    torch.manual_seed(0)
    backbone = new_backbone(tokenizer=word_tokenizer(words=[evil]), hidden_size=32, layers=1, heads=2)
    sampler = GenerationConfig(suppress_ids=[1, 3])  # the end, and the unknown word
    found = Session(MMDiff(backbone).eval(), PlainText(max_new_tokens=3), sampler, Path("runs/<b>evil"))
    with served(found) as url, open_page(browser, url) as page:
        ask(page, evil, 'textarea[aria-label="Text"]')
        assert texts(page) == [evil] * 3
        expect(page.locator(".asked")).to_have_text(evil)
        page.click("text=Pin")
        page.wait_for_timeout(100)
        assert page.locator("img").count() == 1 and page.locator("b").count() == 0  # the sign in the head
        assert page.title() == "<b>evil · mmdiff"


def test_a_token_is_asked_for(browser: Any, text_session: Any) -> None:
    with served(text_session, token="secret", local=True) as url, open_page(browser, url) as page:
        field = page.locator('input[name="token"]')
        field.fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#token-error")).to_have_text("That is not the token of this server.")
        field.fill("secret")
        page.keyboard.press("Enter")
        expect(page.locator("#token")).to_be_hidden()
        ask(page, "a", 'textarea[aria-label="Text"]')
        assert len(texts(page)) == 12


def test_errors_are_one_line_and_pass(browser: Any, chat_session: Any) -> None:
    with served(chat_session) as url, open_page(browser, url) as page:
        error = page.locator("#error")
        page.click(SEND)
        expect(error).to_have_text("message: is empty")
        page.click("text=More")
        for text, said in (
            ("nothing", 'more: is not a JSON object, expected {"field": value}'),
            ('{"bogus": 1}', "unknown field: 'bogus'"),
        ):
            page.fill('textarea[aria-label="Other fields of the row"]', text)
            page.fill(MESSAGE, "Hello")
            page.keyboard.press("Enter")
            expect(error).to_contain_text(said)
            expect(page.locator(".turn")).to_have_count(0)
            assert page.input_value(MESSAGE) == "Hello"
        page.fill('textarea[aria-label="Other fields of the row"]', "")
        ask(page, "Hello")
        expect(error).to_be_hidden()


@pytest.fixture(scope="module")
def seeing() -> Any:
    pytest.importorskip("soundfile")
    from mmdiff.encoders.speech import SpeechConv
    from mmdiff.tasks.vqa.task import VQA

    torch.manual_seed(0)
    backbone = new_backbone(tokenizer=byte_tokenizer(), hidden_size=32, layers=2, heads=2)
    hearing = SpeechConv.toy()
    encoders = {"image": ConvTower(16, 16, 8), "audio": hearing}
    connectors = {"image": MLP(width_in=16, width_out=32), "audio": MLP(width_in=hearing.width, width_out=32)}
    model = MMDiff(backbone, encoders, connectors).eval()
    return Session(model, VQA(max_new_tokens=6), GenerationConfig(), Path("runs/seeing"))


def test_pictures_are_chosen_and_sounds_recorded(browser: Any, seeing: Any) -> None:
    question = 'textarea[aria-label="Question"]'
    with served(seeing) as url, open_page(browser, url, permissions=["microphone"]) as page:
        page.set_input_files(".picker.image input", {"name": "a.png", "mimeType": "image/png", "buffer": PNG})
        expect(page.locator(".picker.image img")).to_be_visible()
        page.fill(question, "What is it?")
        page.click(SEND)
        expect(page.locator(DONE)).to_have_count(1)
        row = page.sent[-1]["row"]
        assert base64.b64decode(row["image"]) == PNG and row["question"] == "What is it?" and "audio" not in row
        expect(page.locator(".asked img")).to_be_visible()
        page.click("[aria-label='Remove the picture']")
        page.click("text=● Record")
        page.wait_for_timeout(1500)
        page.click("text=■ Stop recording")
        expect(page.locator(".picker.audio audio")).to_be_visible()
        page.fill(question, "What is said?")
        page.click(SEND)
        expect(page.locator(DONE)).to_have_count(2)
        row = page.sent[-1]["row"]
        sound = base64.b64decode(row["audio"])
        assert "image" not in row and sound[:4] == b"RIFF" and int.from_bytes(sound[24:28], "little") == 16000
        assert 0.3 < (len(sound) - 44) / 32000 < 3  # seconds
        assert any(sound[44:])  # it beeps
        # with earlier turns, each of the media stands where it was sent
        page.check("text=send earlier turns")
        page.click("[aria-label='Remove the sound']")
        for event in ("drop", "paste"):
            page.evaluate(HAND_OVER, [event, list(PNG)])
            expect(page.locator(".picker.image img")).to_be_visible()
            page.click("[aria-label='Remove the picture']")
        page.fill(question, "Why?")
        page.click(SEND)
        expect(page.locator(DONE)).to_have_count(3)
        row = page.sent[-1]["row"]
        said = [turn["value"] for turn in row["conversations"][::2]]
        assert said == ["<image>\nWhat is it?", "<audio>\nWhat is said?", "Why?"]
        assert [base64.b64decode(one) for one in row["image"] + row["audio"]] == [PNG, sound]


def test_residues_are_opened_again(browser: Any) -> None:
    from mmdiff.backbones.families.esm import tokenizer
    from mmdiff.tasks.protein.task import Protein

    torch.manual_seed(0)
    backbone = new_backbone(family="esm", tokenizer=tokenizer(), hidden_size=32, layers=1, heads=2, max_length=64)
    found = Session(MMDiff(backbone).eval(), Protein(), GenerationConfig(), Path("runs/protein"))
    with served(found) as url, open_page(browser, url) as page:
        sent = ask(page, "mk__\nl", 'textarea[aria-label="Sequence"]')
        assert sent["row"] == {"sequence": "MK__L"}
        first = "".join(texts(page))
        assert re.fullmatch("MK[ACDEFGHIKLMNPQRSTVWY]{2}L", first)
        page.locator(".token").nth(4).click()  # one that was given
        expect(page.locator(".token.rewritten")).to_have_count(1)
        expect(page.locator(".live")).to_have_count(0)
        assert page.sent[-1]["row"] == {"sequence": first[:4] + "_"} and "canvas" not in page.sent[-1]
        assert re.fullmatch(f"{first[:4]}[ACDEFGHIKLMNPQRSTVWY]", "".join(texts(page)))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(browser: Any, chat_url: str, scheme: str) -> None:
    options = {"width": 390, "height": 844, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    with open_page(browser, chat_url, **options) as page:
        page.fill(MESSAGE, "How are you?")
        page.tap(SEND)
        expect(page.locator(DONE)).to_have_count(1)
        page.locator(".token").nth(1).tap()
        expect(page.locator(".token.rewritten")).to_have_count(1)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        box = page.locator(SEND).bounding_box()
        assert box["x"] + box["width"] <= 390 and box["y"] + box["height"] <= 844 and box["height"] >= 40
        r, g, b = map(int, re.findall(r"\d+", background(page.locator("body")))[:3])
        assert (r + g + b < 120) == (scheme == "dark")

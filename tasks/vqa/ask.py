"""Questions about sounds on the command line: an answer in words, or the likeliest of several.

python -m mmdiff.tasks.vqa.ask --model runs/audio-diffa --audio clip.wav --question "Who is speaking?"
python -m mmdiff.tasks.vqa.ask ... --question "Who is speaking?" --option "a child" --option "an old man"

The task itself is `mmdiff.tasks.vqa.VQA`, whose rows may have `audio`; the dialogue format of DIFFA is
`mmdiff.tasks.dialogue.audio_templates.DIFFAChat`, and several rows of multiple choice are scored by
`mmdiff.tasks.dialogue.choice.MultipleChoice`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mmdiff.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """One question; exit code 2 and one line when something outside the code is wrong."""
    parser = argparse.ArgumentParser(prog="python -m mmdiff.tasks.vqa.ask", description="Ask a model about a sound.")
    parser.add_argument("--model", required=True, help="a run, or a saved model folder")
    parser.add_argument("--audio", action="append", help="a sound file; may be given several times, or left out")
    parser.add_argument("--question", required=True, help="the question; <audio> in it marks the place of a sound")
    parser.add_argument("--option", action="append", help="a possible answer; given several times, one is chosen")
    parser.add_argument("--normalise", choices=("sum", "token"), default="sum", help="of what options are compared by")
    parser.add_argument("--json", action="store_true", help="print all that was found as one JSON object")
    given = parser.parse_args(arguments)
    try:
        out = ask(given.model, given.question, given.audio or [], given.option, normalise=given.normalise)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(out, ensure_ascii=False) if given.json else out["prediction"])
    return 0


def ask(
    model: str, question: str, audio: Sequence[str], options: Sequence[str] | None = None, *, normalise: Any = "sum"
) -> dict[str, Any]:
    """{"prediction", "forwards", "canvas"} in the model's own words, or, of options, {"prediction", "index", "nll", "ties"}."""
    from mmdiff.session import load
    from mmdiff.tasks.dialogue.choice import choose

    session = load(model)
    row = {"question": question, "audio": audio[0] if len(audio) == 1 else list(audio)}
    return session.predict(row) if options is None else asdict(choose(session, row, options, normalise=normalise))


if __name__ == "__main__":
    sys.exit(main())

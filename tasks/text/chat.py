"""Dialogues in text: instruction tuning, and the assistant's next turn.

    {"messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]}

mmdiff chat runs/chat
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from mmdiff.canvas.sample import Sample
from mmdiff.canvas.vocab import Vocab
from mmdiff.data.fields import check_row
from mmdiff.errors import DataError, located
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1
from mmdiff.protocols import Row

from .messages import asked, read_messages
from .templates import ChatTemplate


@part
class Chat:
    """The task of rows as in `mmdiff.tasks.text.messages`. All turns of the assistant are targets when training.

    template: what stands around messages; None: the template in the tokenizer's folder.
    max_new_tokens: masked positions of an answer.
    last_only: train on the last turn of the assistant alone; earlier ones are context.
    """

    fields = ("messages", "conversations", "tools", "system", "answer", "question")

    def __init__(
        self, template: ChatTemplate | None = None, max_new_tokens: AtLeast1 = 128, last_only: bool = False
    ) -> None:
        self.template = ChatTemplate() if template is None else template
        self.max_new_tokens, self.last_only = max_new_tokens, last_only

    def sample(self, row: Row, vocab: Vocab) -> Sample:
        """Returns the canvas with the answers. Raises DataError for a template that does not keep what came before."""
        with located(row.get("where")):
            check_row(row, self.fields)
            messages, tools = read_messages(row), row.get("tools")
            if self.last_only and messages[-1]["role"] != "assistant":
                raise DataError("the last message is not the assistant's, as `last_only` needs")
            return self.template.sample(messages, vocab, tools=tools, last_only=self.last_only)

    def prompt(self, row: Row, vocab: Vocab) -> Sample:
        """Returns the canvas that asks for the answer: behind the dialogue, without its last answer if it has one."""
        with located(row.get("where")):
            check_row(row, self.fields)
            messages, _ = asked(read_messages(row))
            if not messages:
                raise DataError("messages: the only one is the answer")
            return self.template.prompt(messages, vocab, self.max_new_tokens, tools=row.get("tools"))

    def parse(self, ids: Sequence[int], vocab: Vocab) -> str:
        """Returns the answer: what stands before the first end id, or any token that only a template writes."""
        known = self.template.tokens(vocab).every
        before = takewhile(lambda i: not known.fullmatch(vocab.piece(i)), vocab.until_end(ids))
        return vocab.decode(list(before)).strip()

    def score(self, prediction: str, row: Row) -> dict[str, float]:
        """Returns whether the prediction is the answer of the row, white space around both left out."""
        answer: Any = row.get("answer") or asked(read_messages(row))[1]
        return {} if answer is None else {"exact_match": float(prediction == str(answer).strip())}

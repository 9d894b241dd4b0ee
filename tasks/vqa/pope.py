"""POPE: how often a model affirms objects that are not in the picture (Li et al. 2023, arXiv 2305.10355).

{"image": "cat.jpg", "question": "Is there a dog in the image?", "answer": "no"}
"""

from __future__ import annotations

from collections.abc import Sequence

from mmdiff.errors import DataError


def says_yes(prediction: str) -> bool:
    """Whether a prediction counts as yes: its first sentence has none of the words No, no and not.

    This is the rule of the published tool: the text up to the first period, without commas, split at spaces.
    """
    words = prediction.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def pope(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns figures of a set: `accuracy`, `precision`, `recall` and `f1` of yes, `yes_share` of the predictions.

    A figure whose denominator is 0 is 0. Raises DataError for an empty set and a reference other than yes and no.
    """
    if not predictions:
        raise DataError("pope: no predictions")
    answers = [reference[0].strip().lower() for reference in references]
    for answer in answers:
        if answer not in ("yes", "no"):
            raise DataError(f"pope: answer {answer!r:.60}, expected yes or no")
    pairs = [(says_yes(text), answer == "yes") for text, answer in zip(predictions, answers, strict=True)]
    hits, claimed, true = pairs.count((True, True)), sum(yes for yes, _ in pairs), sum(yes for _, yes in pairs)
    return {
        "accuracy": sum(yes == is_yes for yes, is_yes in pairs) / len(pairs),
        "precision": hits / claimed if claimed else 0.0,
        "recall": hits / true if true else 0.0,
        "f1": 2 * hits / (claimed + true) if hits else 0.0,
        "yes_share": claimed / len(pairs),
    }

"""Attention patterns: who sees whom, under every kind of attention, against masks written out position by position.

Shape letters: R rows, L positions, K positions that may be seen, Q positions that are run, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask

from mmdiff.backbones import Backbone, new_backbone
from mmdiff.backbones.families.esm import tokenizer as esm_tokenizer
from mmdiff.canvas.pattern import All, Coordinates, Pattern, Visibility
from mmdiff.canvas.patterns import BlockCausal, Causal, CausalContext, Documents, Full, PrefixCausal
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.errors import ConfigError

WORDS = word_tokenizer([f"w{i}" for i in range(30)])
ATTENTIONS = ["sdpa", "eager", "flex_attention"]

# Two rows of ten: the first is padded on the left and has context on both sides of its targets; the second is padded
# on the right and has two documents, of which the second begins inside the targets.
ATTEND = [[0, 0, 1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1, 1, 0]]
TARGET = [[0, 0, 0, 0, 1, 1, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1, 1, 1, 0]]
CONTEXT = [[0, 0, 1, 1, 0, 0, 0, 0, 0, 1], [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]]
DOCUMENT = [[0] * 10, [0] * 5 + [1] * 5]
L = 10


def number(row: int, i: int, mask: list[list[int]]) -> int:
    """How many positions of the mask stand before position i, in its document."""
    return sum(mask[row][j] for j in range(i) if DOCUMENT[row][j] == DOCUMENT[row][i])


def block(name: str, r: int, i: int) -> int:
    target = TARGET[r][i]
    if name == "causal":
        return number(r, i, ATTEND)
    if name == "prefix":
        return target
    if name == "context":
        return 99 if target else number(r, i, CONTEXT)
    kind, size = name.split()
    if kind == "row":
        return number(r, i, ATTEND) // int(size)
    return 1 + number(r, i, TARGET) // int(size) if target else 0


PATTERNS: dict[str, Pattern] = {
    "full": Full(),
    "causal": Causal(),
    "prefix": PrefixCausal(),
    "context": CausalContext(),
    "row 1": BlockCausal(1),
    "row 3": BlockCausal(3),
    "row 99": BlockCausal(99),
    "targets 1": BlockCausal(1, "targets"),
    "targets 2": BlockCausal(2, "targets"),
}


def brute(name: str, streams: bool = False) -> Tensor:
    """Returns bool (2, L, L), or (2, 2L, 2L) of noisy, then clean positions, from the words of each pattern."""
    n = 2 * L if streams else L
    seen_RLL = torch.zeros(2, n, n, dtype=torch.bool)
    for r in range(2):
        for q in range(n):
            for k in range(n):
                i, j = q % L, k % L
                a, b = (0, 0) if name == "full" else (block(name, r, i), block(name, r, j))
                noisy_q, noisy_k = (q < L, k < L) if streams else (False, False)
                if noisy_k:
                    sees = noisy_q and a == b
                else:
                    sees = b < a if noisy_q else b <= a
                sees = sees and bool(ATTEND[r][j]) and DOCUMENT[r][i] == DOCUMENT[r][j]
                seen_RLL[r, q, k] = sees or q == k
    return seen_RLL


def given(name: str, streams: bool = False) -> tuple[Visibility, Tensor]:
    """Returns the declared pattern over the two rows, and which positions are attended."""
    attend_RL, target_RL, document_RL = torch.tensor(ATTEND) > 0, torch.tensor(TARGET) > 0, torch.tensor(DOCUMENT)
    block_RL = PATTERNS[name].blocks(target_RL, attend_RL, document_RL)
    key = Coordinates(document_RL, block_RL)
    if streams:
        stream_RK = torch.tensor([[1] * L + [0] * L]).expand(2, -1)
        twice = [v if isinstance(v, int) else v.repeat(1, 2) for v in (key.document, key.block)]
        key, attend_RL = Coordinates(*twice, stream_RK), attend_RL.repeat(1, 2)
    return Visibility(PATTERNS[name] & Documents(), key), attend_RL


def small(attention: str = "sdpa") -> Backbone:
    """Two layers, with weights large enough that attention matters."""
    torch.manual_seed(0)
    backbone = new_backbone(tokenizer=WORDS, hidden_size=32, layers=2, heads=4, kv_heads=2, attention=attention)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
    return backbone.eval()


def ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(4, 34, (rows, length), generator=torch.Generator().manual_seed(seed))


def eagerly(run: Callable[[], Tensor]) -> Tensor:
    """Flex attention's kernel is compiled for minutes on a CPU; what it computes is the same without."""
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        return run()


def dense(mask: Any, q: int, k: int) -> Tensor:
    """The pairs of a mask of any kind, bool (R, Q, K)."""
    if isinstance(mask, Tensor):
        return (mask if mask.dtype == torch.bool else mask == 0)[:, 0]
    at = [torch.arange(n) for n in (2, q, k)]
    return mask.mask_mod(at[0][:, None, None], None, at[1][:, None], at[2])


# One declaration, three kinds of attention


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_mask_is_the_one_written_out(attention: str, name: str, streams: bool) -> None:
    visibility, attend_RL = given(name, streams)
    n = attend_RL.shape[1]
    assert torch.equal(dense(visibility.mask(torch.zeros(2, n, 4), attend_RL, attention), n, n), brute(name, streams))


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("name", PATTERNS)
def test_hidden_states_are_those_of_the_mask_written_out(name: str, streams: bool) -> None:
    visibility, attend_RL = given(name, streams)
    backbone, row = small(), ids(2, attend_RL.shape[1])
    position_ids_RL = torch.arange(L).repeat(2, attend_RL.shape[1] // L)

    def run(attention: str, seen: Visibility | Written) -> Tensor:
        backbone.model.set_attn_implementation(attention)
        return eagerly(lambda: backbone.hidden(backbone.embed(row), attend_RL, position_ids_RL, seen))  # type: ignore[arg-type]

    expected = run("sdpa", Written(brute(name, streams)[:, None]))
    for attention in ATTENTIONS:
        torch.testing.assert_close(run(attention, visibility), expected, atol=1e-5, rtol=0)


def test_encoders_attend_by_the_same_patterns() -> None:
    torch.manual_seed(0)
    backbone = new_backbone(
        family="esm", tokenizer=esm_tokenizer(), hidden_size=32, layers=2, heads=4, max_length=32, init_std=0.25
    ).eval()
    (visibility, attend_RL), row = given("targets 2"), ids(2, L) % 30

    def run(attention: str, seen: Any) -> Tensor:
        backbone.model.set_attn_implementation(attention)
        return eagerly(lambda: backbone.hidden(backbone.embed(row), attend_RL, None, seen))

    expected = run("sdpa", Written(brute("targets 2")[:, None]))
    for attention in ATTENTIONS:
        torch.testing.assert_close(run(attention, visibility), expected, atol=1e-5, rtol=0)
    assert (run("sdpa", None) - expected)[attend_RL].abs().max() > 0.1


class Written:
    """A mask of pairs in the place of a declared pattern."""

    def __init__(self, mask: Tensor) -> None:
        self.mask_R1QK = mask

    def mask(self, x_RQD: Tensor, attend_RK: Tensor | None, attention: str) -> Tensor:
        return self.mask_R1QK


@pytest.mark.slow
@torch.no_grad()
def test_the_compiled_kernel_of_flex_attention_computes_the_same() -> None:
    visibility, attend_RL = given("row 3", True)
    backbone, row = small(), ids(2, 2 * L)
    by = []
    for attention in ("sdpa", "flex_attention"):
        backbone.model.set_attn_implementation(attention)
        by.append(backbone.hidden(backbone.embed(row), attend_RL, None, visibility))
    torch.testing.assert_close(*by, atol=1e-5, rtol=0)


# Nothing leaks: what a position must not see does not change its state, what it must see does


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("name", PATTERNS)
@torch.no_grad()
def test_a_position_changes_with_what_it_sees_and_with_nothing_else(name: str, streams: bool) -> None:
    """With two layers a state reaches what is seen by what is seen."""
    (visibility, attend_RL), backbone = given(name, streams), small()
    n = attend_RL.shape[1]
    row = ids(2, n)
    position_ids_RL = torch.arange(L).repeat(2, n // L)
    seen = brute(name, streams)
    reach = (seen.long() @ seen.long()) > 0
    before = backbone.hidden(backbone.embed(row), attend_RL, position_ids_RL, visibility)
    for k in range(n):
        other = row.clone()
        other[:, k] = 4 + (other[:, k] - 3) % 30
        after = backbone.hidden(backbone.embed(other), attend_RL, position_ids_RL, visibility)
        moved_RL = (after - before).abs().amax(-1) > 1e-6
        assert torch.equal(moved_RL, reach[:, :, k]), k


@pytest.mark.parametrize("name", [name for name in PATTERNS if name != "full"])
def test_every_pattern_hides_something(name: str) -> None:
    """So that the tests above fail for each when its pattern is dropped. `row 99` hides nothing but documents."""
    assert (brute(name) != brute("full")).any() == (name != "row 99")
    assert (brute(name, True) != brute("full", True)).any() == (name != "row 99")


# Where nothing needs a mask of pairs, none is made


def test_no_mask_is_made_where_all_see_all() -> None:
    x_RLD, attend_RL = torch.zeros(2, 4, 8), torch.tensor([[True] * 4, [False, True, True, True]])
    for pattern in (Full(), Documents(), Full() & Documents(), All((Documents(), Full())), PrefixCausal()):
        key = Coordinates()
        for attention in (*ATTENTIONS, "flash_attention_2"):
            assert Visibility(pattern, key).mask(x_RLD, None, attention) is None
            assert Visibility(pattern, key).mask(x_RLD, attend_RL, attention) is attend_RL
    key = Coordinates(0, Causal().blocks(attend_RL, attend_RL))
    assert Visibility(Causal(), key).mask(x_RLD, None, "sdpa") is not None


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [True, False])
@torch.no_grad()
def test_the_bits_are_those_of_transformers_own_masks(attention: str, padded: bool) -> None:
    """Documents, and copies behind one context, as they were before there were patterns."""
    backbone, row = small(attention=attention), ids(2, L)
    attend_RL = torch.tensor(ATTEND) > 0 if padded else None
    document_RL = torch.tensor(DOCUMENT)
    copy_RL = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 0, 1, 1, 1, 1, 2, 2, 2, 2]])
    x_RLD = backbone.embed(row)

    def before(pairs: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        def sees(r: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            seen = pairs(r, q, k) if attend_RL is None else attend_RL[r, k] & pairs(r, q, k)
            return seen | (q == k)

        mask = create_bidirectional_mask(backbone.model.config, x_RLD, None, and_mask_function=sees)
        return backbone.hidden(x_RLD, attend_RL, None, Written(mask))  # type: ignore[arg-type]

    packed = Visibility(Full() & Documents(), Coordinates(document_RL))
    same = before(lambda r, q, k: document_RL[r, q] == document_RL[r, k])
    assert torch.equal(backbone.hidden(x_RLD, attend_RL, None, packed), same)
    copies = Visibility(PrefixCausal(), Coordinates(block=copy_RL.clamp(max=1), stream=copy_RL))
    same = before(lambda r, q, k: (copy_RL[r, k] == 0) | (copy_RL[r, k] == copy_RL[r, q]))
    assert torch.equal(backbone.hidden(x_RLD, attend_RL, None, copies), same)


@torch.no_grad()
def test_full_attention_has_the_bits_of_no_pattern() -> None:
    backbone, row, attend_RL = small(), ids(2, L), torch.tensor(ATTEND) > 0
    for attend in (None, attend_RL):
        full = Visibility(Full() & Documents(), Coordinates())
        plain = backbone.hidden(backbone.embed(row), attend)
        assert torch.equal(backbone.hidden(backbone.embed(row), attend, None, full), plain)


# Some positions are run, all are seen


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_queries_may_be_any_positions_of_the_keys(attention: str, name: str) -> None:
    visibility, attend_RL = given(name)
    at_RQ = torch.tensor([[7, 2, 9], [0, 4, 8]])
    some = Visibility(visibility.pattern, visibility.key, at_RQ)
    mask = dense(some.mask(torch.zeros(2, 3, 4), attend_RL, attention), 3, L)
    assert torch.equal(mask, brute(name).gather(1, at_RQ[:, :, None].expand(-1, -1, L)))
    last = visibility.mask(torch.zeros(2, 4, 4), attend_RL, attention)  # where nothing is said: the last ones
    assert torch.equal(dense(last, 4, L), brute(name)[:, -4:])


@pytest.mark.parametrize("name", PATTERNS)
@torch.no_grad()
def test_what_is_settled_stays_as_it_is(name: str) -> None:
    """And what is not settled changes, so that nothing is left out that could be kept."""
    (visibility, attend_RL), backbone, row = given(name), small(), ids(2, L)
    block_RL = torch.as_tensor(visibility.key.block).expand(2, L)
    before = backbone.hidden(backbone.embed(row), attend_RL, None, visibility)
    for first in range(L + 1):
        changing_RL = (torch.arange(L) >= first).expand(2, -1) & (torch.tensor(TARGET) > 0)
        other = torch.where(changing_RL, 4 + (row - 3) % 30, row)
        same_RL = (backbone.hidden(backbone.embed(other), attend_RL, None, visibility) == before).all(-1)
        beyond = torch.where(changing_RL, block_RL, 999).amin(1, keepdim=True)
        settled_RL = (
            (block_RL < beyond) if PATTERNS[name].exact_prefix else ~changing_RL.any(1, keepdim=True).expand(2, L)
        )
        assert same_RL[settled_RL].all(), first
        assert settled_RL[~changing_RL.any(1)].all()
        assert torch.equal(settled_RL[0, attend_RL[0]], same_RL[0, attend_RL[0]])  # the row of one document
    assert PATTERNS[name].exact_prefix == (name != "full")
    assert (PATTERNS[name] & Documents()).exact_prefix == (name != "full")


def test_what_cannot_be_is_refused() -> None:
    x_RLD = torch.zeros(2, L, 4)
    visibility, attend_RL = given("targets 2")
    with pytest.raises(ConfigError, match=r"'flash_attention_2': .*BlockCausal\(size=2.*needs sdpa"):
        visibility.mask(x_RLD, attend_RL, "flash_attention_2")
    with pytest.raises(ConfigError, match="both number blocks"):
        Causal() & Documents() & BlockCausal(4)
    assert (Causal() & Documents() & Full()).node["patterns"] == [p.node for p in (Causal(), Documents(), Full())]

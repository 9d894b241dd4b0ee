"""D3PM's matrices: sums, Bayes' rule by enumeration, the known processes, the bound of one word, laws of samples."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from logit_tables import SLOT, by_query
from logit_tables import VOCAB as WORDY
from oracle import LENGTH, SEQUENCES, WORDS, Chain, distance
from safetensors.torch import save_file
from torch import Tensor
from toy import batch_of, model, samples

from mmdiff.canvas.sample import Target, Text
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.transitions import MOST, Gaussian, Masking, Neighbours, Spectrum, Transition, Uniform, spectrum
from mmdiff.errors import ConfigError, DataError
from mmdiff.objectives.replacing.hybrid import MatrixBound
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.processes.hybrid import Hybrid
from mmdiff.samplers.processes.matrix import Matrix, States

KINDS = [Uniform(), Masking(), Gaussian(1.0), Gaussian(3.0), Neighbours(1), Neighbours(2)]
CPU = torch.device("cpu")
N, ROWS = 6, 4_000


def of(kind: Transition, n: int = N) -> Spectrum:
    return spectrum(kind, tuple(range(n)), CPU)


def matrix(found: Spectrum, share: float) -> Tensor:
    """Q(share), (S, S)."""
    n = len(found.rate_S)
    return found.forward(torch.eye(n, dtype=torch.float64), torch.full((n,), share))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_rows_sum_to_one_and_it_is_the_exponential_of_its_rates(kind: Transition) -> None:
    found = of(kind)
    rates = kind.rates(tuple(range(N)))
    rates = rates - torch.diag(rates.sum(1))
    gap = torch.linalg.eigvals(rates).real.neg().sort().values[1]
    for share in (1.0, 0.8, 0.3, 0.01, 0.0):
        q = matrix(found, share)
        assert torch.allclose(q.sum(1), torch.ones(len(q), dtype=torch.float64)) and (q >= 0).all()
        if share:
            exact = torch.linalg.matrix_exp(-rates / gap * torch.tensor(share, dtype=torch.float64).log())
            assert torch.allclose(q, exact, atol=1e-12)
        if not kind.masks:
            assert torch.allclose(q.sum(0), torch.ones(N, dtype=torch.float64)), "doubly stochastic"
    stays = torch.eye(N + 1, dtype=torch.float64)[-1] if kind.masks else torch.full((N,), 1 / N, dtype=torch.float64)
    assert torch.allclose(matrix(found, 0.0), stays.expand_as(matrix(found, 0.0))), "nothing is left at time 1"
    assert torch.allclose(matrix(found, 0.6) @ matrix(found, 0.5), matrix(found, 0.3))


def test_near_ids_are_likelier(tmp_path: Path) -> None:
    for kind in (Gaussian(1.0), Neighbours(2)):
        q = matrix(of(kind), 0.7)
        assert (q[0, :-1] > q[0, 1:]).all() and (q[2, 2:-1] > q[2, 3:]).all()
    order = torch.tensor([3, 0, 4, 1, 5, 2])  # on a line, ids lie so
    save_file({"embeddings": order.float()[:, None]}, str(tmp_path / "e.safetensors"))
    q = matrix(of(Neighbours(2, str(tmp_path / "e.safetensors"))), 0.7)
    line = order.argsort()
    assert torch.allclose(q[line][:, line], matrix(of(Neighbours(2)), 0.7), atol=1e-12)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_posterior_is_bayes_rule(kind: Transition, own: bool) -> None:
    found, t, s = of(kind), 0.7, 0.45
    prior_N = torch.arange(1, N + 1, dtype=torch.float64) / 21
    q_s, q_t, step = matrix(found, 1 - s), matrix(found, 1 - t), matrix(found, (1 - t) / (1 - s))
    for now in range(len(step)):
        joint_S = (prior_N[:, None] * q_s[:N] * step[:, now]).sum(0)
        likelihood_N = prior_N * q_t[:N, now]
        p_N = likelihood_N / likelihood_N.sum() if own else prior_N
        times = (torch.tensor([x], dtype=torch.float64) for x in (t, s))
        post_S = found.posterior(p_N[None], torch.tensor([now]), *times, own=own)[0]
        assert torch.allclose(post_S, joint_S / joint_S.sum(), atol=1e-12) and abs(float(post_S.sum()) - 1) < 1e-12


def test_a_token_that_the_model_rules_out_stays_where_noise_only_masks() -> None:
    p_N, times = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64), (torch.tensor([x]).double() for x in (0.7, 0.45))
    assert of(Masking(), 3).posterior(p_N, torch.tensor([1]), *times)[0].tolist() == [0, 1, 0, 0]


def test_two_of_them_are_processes_that_are_known() -> None:
    p_N = torch.arange(1, N + 1, dtype=torch.float64)[None] / 21
    t, s = (torch.tensor([x], dtype=torch.float64) for x in (0.7, 0.45))
    masked = of(Masking()).posterior(p_N, torch.tensor([N]), t, s)[0]
    assert torch.allclose(masked, torch.cat([p_N[0] * (0.7 - 0.45) / 0.7, torch.tensor([0.45 / 0.7])]))
    assert of(Masking()).posterior(p_N, torch.tensor([2]), t, s)[0].tolist() == [0, 0, 1, 0, 0, 0, 0]
    for own in (False, True):
        hybrid = Hybrid(1.0, "all" if own else "others")
        allow_PV = torch.ones(1, N, dtype=torch.bool)
        ids_PV, mask_P = hybrid._posterior(p_N, allow_PV, torch.tensor([False]), torch.tensor([2]), t, s)
        assert torch.allclose(of(Uniform()).posterior(p_N, torch.tensor([2]), t, s, own=own), ids_PV / ids_PV.sum())
        assert float(mask_P) == 0


@pytest.mark.parametrize("given", ["others", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_bound_of_one_word_is_its_entropy(kind: Transition, given: Any) -> None:
    """With the exact model the sum over all steps and noised ids is H(p), for any number of steps."""
    found = of(kind)
    states = States(found, torch.arange(len(found.rate_S)), torch.arange(len(found.rate_S)), N)
    p_N = torch.arange(1, N + 1, dtype=torch.float64) / 21
    for steps in (1, 3, 20):
        bound, total = MatrixBound(Matrix(kind, given), steps), 0.0
        for i in range(1, steps + 1):
            t_P = torch.full((N,), i / steps, dtype=torch.float64)
            q = matrix(found, 1 - i / steps)
            for now in range(len(q)):
                if (q[:N, now] < 1e-15).all():
                    continue
                seen_N = p_N * q[:N, now]
                logits = (seen_N / seen_N.sum() if given == "all" else p_N).log().expand(N, N)
                reachable_N = q[:N, now] > 1e-12
                loss_N = bound.loss(logits, torch.arange(N), torch.full((N,), now), t_P, states)
                total += float((p_N * q[:N, now] * loss_N)[reachable_N].sum()) / steps
        assert total == pytest.approx(float(-(p_N * p_N.log()).sum()), abs=1e-6), steps


def test_masking_is_cross_entropy_over_the_mask_rate() -> None:
    found, steps = of(Masking()), 50
    states = States(found, torch.arange(N + 1), torch.arange(N + 1), N)
    logits = torch.randn(4, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_P, t_P = torch.tensor([0, 3, 5, 1]), torch.tensor([0.02, 0.4, 0.9, 1.0], dtype=torch.float64)
    for given in ("others", "all"):
        bound = MatrixBound(Matrix(Masking(), given), steps)  # type: ignore[arg-type]
        loss = bound.loss(logits, x_P, torch.full((4,), N), t_P, states)
        assert torch.allclose(loss, -logits.log_softmax(-1)[range(4), x_P] / t_P, atol=1e-8)
    seen = MatrixBound(Matrix(Masking()), steps).loss(logits, x_P, x_P, t_P, states)
    assert torch.allclose(seen[:3], torch.zeros(3, dtype=torch.float64), atol=1e-8)


SEQUENCES_SL = torch.tensor(SEQUENCES)


def exact_noised(found: Spectrum, p_S: Tensor, steps: int, given: str) -> Any:
    """The exact conditionals of a clean word given noised ones, with or without its own noised id."""

    def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        q_XZ = matrix(found, calls[0] / steps)[:WORDS]
        calls[0] += 1
        canvases, back_R = ids_RL.unique(dim=0, return_inverse=True)
        likelihood_RSL = q_XZ[SEQUENCES_SL[None], canvases[:, None]]
        out_RLV = torch.zeros(len(canvases), LENGTH, 5, dtype=torch.float64)
        for position in range(LENGTH):
            kept_L = [i for i in range(LENGTH) if i != position or given == "all"]
            weight_RS = likelihood_RSL[:, :, kept_L].prod(-1) * p_S
            word_SX = torch.nn.functional.one_hot(SEQUENCES_SL[:, position], WORDS).double()
            out_RLV[:, position, :WORDS] = weight_RS @ word_SX / weight_RS.sum(1, keepdim=True)
        return out_RLV.log()[back_R][predict_RL].float()

    calls = [0]
    return by_query(denoise)


@pytest.mark.parametrize("given", ["others", "all"])
@pytest.mark.parametrize("kind", [Masking(), Gaussian(0.7), Neighbours(1)], ids=str)
def test_with_the_exact_posterior_the_samples_approach_the_data(kind: Any, given: Any) -> None:
    bed, far = Chain(LENGTH, 0.8), {}
    p_S, found = bed.joint.flatten(), of(kind, WORDS)
    noisy = collate([[Target(length=LENGTH, allow=((0, WORDS),))]] * ROWS, bed.vocab)
    for steps in (2, 32):
        named: dict[str, Any] = {"steps": steps, "process": Matrix(kind, given)}
        config = generation_config(temperature=1.0, early_stop=False, seed=3, **named)
        out = sample(exact_noised(found, p_S, steps, given), noisy, bed.vocab, config)
        assert out.calls == steps and (out.step_BL == steps).all() and (out.ids_BL < WORDS).all()
        far[steps] = distance(p_S, bed.law(out.ids_BL).flatten())
    assert far[32] < bed.floor(bed.joint, ROWS) + 0.03 < far[2]


def test_noised_ids_have_the_law_of_their_time() -> None:
    """Of 4 steps: samples are spread over the times 1/4, ..., 1, and ids follow the row of the matrix."""
    bed = Chain(LENGTH)
    batch = collate([[Text([1]), Target([2] * 400, allow=((0, WORDS),))]] * 40, bed.vocab)
    for kind in (Gaussian(1.0), Masking()):
        bound = MatrixBound(Matrix(kind), steps=4)
        plan = bound.plan(batch, NoiseKey(0, 0, "x", batch=40), bed.vocab)
        assert torch.equal(plan.ids_BL, bound.plan(batch, NoiseKey(0, 0, "x", batch=40), bed.vocab).ids_BL)
        assert (plan.ids_BL[:, 0] == 1).all() and plan.counts == {"matrix": 16_000.0}
        for i in range(1, 5):
            here_B = plan.t_B == i / 4
            assert int(here_B.sum()) == 10
            expected = matrix(of(kind, WORDS), 1 - i / 4)[2]
            found = torch.bincount(plan.ids_BL[here_B, 1:].flatten(), minlength=len(expected)).double() / 4_000
            assert distance(found[: len(expected)], expected) < 0.03


def test_a_model_learns_and_its_bound_falls() -> None:
    """With gradients: one of four words, twice, is at least log(4) / 2 per token; as if apart, it would be log 4."""
    torch.manual_seed(0)
    m, rows = toy.MMDiff(toy.backbone()), toy.Corners(64)
    low, where = m.vocab.encode("north")[0], Text(m.vocab.encode("where"))
    targets = [Target(m.vocab.encode(rows[i]["answer"]), allow=((low, low + 4),)) for i in range(64)]
    batch = collate([[where, target] for target in targets], m.vocab)
    bound = MatrixBound(Matrix(Gaussian(1.0)), steps=20, auxiliary=0.1)
    optimizer = torch.optim.Adam(m.parameters(), 1e-2)

    def terms(step: int, stream: str = "x") -> dict[str, Any]:
        return bound.terms(m, bound.plan(batch, NoiseKey(0, step, stream, batch=64), m.vocab))

    def figure() -> float:
        with torch.no_grad():
            return sum(float(terms(step, "eval")["matrix"].value) for step in range(16)) / (16 * 128)

    before = figure()
    for step in range(40):
        loss = sum(term.coefficient * term.value / 128 for term in terms(step).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert {name: term.coefficient for name, term in terms(0).items()} == {"matrix": 1.0, "auxiliary": 0.1}
    assert abs(before - math.log(4)) < 0.05 and math.log(4) / 2 < figure() < 0.85 * math.log(4)


def test_a_generation_begins_with_noise() -> None:
    seen = list[Tensor]()

    @by_query
    def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        seen.append(ids_RL)
        return torch.zeros(int(predict_RL.sum()), 5)

    bed = Chain(LENGTH)
    batch = collate([[Target([0, 3, 3, 3], allow=((0, WORDS),))]] * ROWS, bed.vocab)
    for kind in (Gaussian(1.0), Masking()):
        sample(denoise, batch, bed.vocab, generation_config(process=Matrix(kind), steps=1, temperature=1.0))
    shares = torch.bincount(seen[0][:, 1:].flatten(), minlength=WORDS).double() / (3 * ROWS)
    assert distance(shares, torch.full((WORDS,), 1 / WORDS, dtype=torch.float64)) < 0.02
    assert (seen[1][:, 1:] == bed.vocab.mask_id).all() and all((ids[:, 0] == 0).all() for ids in seen)


@pytest.mark.parametrize("kind", [Gaussian(2.0), Masking()], ids=str)
def test_a_row_is_the_same_alone_and_in_a_batch(kind: Any) -> None:
    m = model()
    named: dict[str, Any] = {"process": Matrix(kind), "steps": 6, "block_length": 4, "temperature": 0.7, "seed": 1}
    together = m.generate(batch_of(m, samples(), [8, 3, 5, 4]), early_stop=False, **named)
    assert not (together.ids_BL[together.target_BL] == m.vocab.mask_id).any()
    for b in range(4):
        alone = m.generate(batch_of(m, [samples()[b]], [[8, 3, 5, 4][b]]), early_stop=False, **named)
        assert alone.targets()[0] == together.targets()[b]


def test_what_cannot_be_is_refused_in_one_sentence(tmp_path: Path) -> None:
    bed = Chain(2)
    one, other = Target(length=1, allow=((0, 2),)), Target(length=1, allow=((0, 3),))
    config = generation_config(process=Matrix(), early_stop=False)
    (tmp_path / "x.safetensors").write_bytes(b"no")
    for raising, message in [
        (lambda: sample(bed, collate([[one, other]], bed.vocab), bed.vocab, config), "needs one allow-set"),
        (lambda: of(Uniform(), MOST + 1), f"over {MOST + 1} ids, expected from 2 to {MOST}"),
        (lambda: of(Neighbours(1, "nowhere.safetensors")), "expected a safetensors file"),
        (lambda: of(Neighbours(1, str(tmp_path / "x.safetensors"))), "not a safetensors file"),
        (lambda: Matrix(3), "3 has no `rates`"),
        (lambda: generation_config(process=Matrix(), threshold=2.0), "threshold"),
        (
            lambda: sample(bed, bed.canvas(1), bed.vocab, replace(config, threshold=0.5)),
            "sampler.threshold: Matrix has a way",
        ),
    ]:
        with pytest.raises(ConfigError) as raised:
            raising()
        assert message in str(raised.value) and "\n" not in str(raised.value)
    save_file({"e": torch.tensor([[0.0], [0.1], [9.0], [9.1]])}, str(tmp_path / "far.safetensors"))
    with pytest.raises(ConfigError, match="groups of ids that noise never joins"):
        of(Neighbours(1, str(tmp_path / "far.safetensors")), 4)
    with pytest.raises(DataError, match="an id that its allow-set does not"):
        MatrixBound().plan(collate([[Target([SLOT])]], WORDY), NoiseKey(0), WORDY)

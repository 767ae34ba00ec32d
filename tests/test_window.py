"""The window of one optimizer step: how it is cut into micro-batches and spread over ranks does not matter."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_atex.types import Rollouts, Verdict
from lit_atex.window import Batch, StepWindow

SAMPLES = 2
SUMS = ("loss", "mismatch", "student_entropy", "teacher_entropy", "clipped", "negative")


class Example:
    """Problems with all that is known of their rollouts, from which any slice makes a micro-batch."""

    def __init__(self, count: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.count, self.width = count, 6
        self.lengths = torch.randint(0, self.width + 1, (count * SAMPLES,), generator=draw)
        self.ended = torch.rand(count * SAMPLES, generator=draw) < 0.5
        self.verdicts = [list(Verdict)[i] for i in torch.randint(0, 4, (count * SAMPLES,), generator=draw)]
        self.values = {n: torch.randn(count * SAMPLES, self.width, generator=draw, dtype=torch.float64) for n in SUMS}
        self.exposures = torch.rand(count, generator=draw).tolist()
        self.truncated = torch.randint(0, 2, (count,), generator=draw)

    def batch(self, start: int, end: int) -> Batch:
        rows = slice(start * SAMPLES, end * SAMPLES)
        lengths = self.lengths[rows]
        width = int(lengths.max()) if len(lengths) else 0
        rollouts = Rollouts(torch.zeros(len(lengths), width, dtype=torch.long), lengths, self.ended[rows])
        return Batch(
            problem_ids=[f"p{i}" for i in range(start, end)],
            levels=[str(i % 3) for i in range(start, end)],
            exposures=self.exposures[start:end],
            verdicts=self.verdicts[rows],
            rollouts=rollouts,
            sums={name: values[rows, :width][rollouts.mask].sum() for name, values in self.values.items()},
            truncated=int(self.truncated[start:end].sum()),
            skipped=end - start,
            seconds={"rollout": 0.5 * (end - start), "teacher": 0.25 * (end - start)},
        )

    def window(self, cuts: list[int]) -> StepWindow:
        window = StepWindow()
        borders = [0, *sorted(cuts), self.count]
        for start, end in zip(borders, borders[1:]):  # noqa: RUF007 - with beginnings and ends named
            window.add(self.batch(start, end))
        return window


def same(one: StepWindow, two: StepWindow) -> None:
    a, b = one.feedback(7, 6), two.feedback(7, 6)
    for name in a._fields:
        assert getattr(a, name) == pytest.approx(getattr(b, name)), name
    assert one.scalars(2.0) == pytest.approx(two.scalars(2.0))


@settings(deadline=None)
@given(
    st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n), max_size=4))),
    st.integers(0, 99),
)
def test_micro_batches_add_up_to_one_big_batch(cut: tuple[int, list[int]], seed: int) -> None:
    count, cuts = cut
    example = Example(count, seed)
    whole = example.window([])
    same(example.window(cuts), whole)
    # The oracle: means over all tokens at once.
    mask = torch.arange(example.width) < example.lengths[:, None]
    feedback = whole.feedback(3, 6)
    for name in ("loss", "mismatch", "student_entropy", "teacher_entropy"):
        mean = float(example.values[name][mask].mean()) if mask.any() else 0.0
        assert getattr(feedback, name) == pytest.approx(mean), name
    assert feedback.mean_length == pytest.approx(float(example.lengths.double().mean()))
    assert feedback.share_cut == pytest.approx(float((~example.ended).double().mean()))
    assert feedback.accuracy == pytest.approx(example.verdicts.count(Verdict.CORRECT) / len(example.verdicts))
    assert feedback.verdicts == example.verdicts
    assert feedback.problem_ids == [f"p{i}" for i in range(count)]


def by_hand() -> StepWindow:
    window = StepWindow()
    zeros = torch.zeros(2, 4, dtype=torch.long)
    sums = {"loss": 6.0, "mismatch": 3.0, "student_entropy": 9.0, "teacher_entropy": 1.5, "clipped": 2.0}
    window.add(
        Batch(
            ["a"],
            ["1"],
            [0.5],
            [Verdict.CORRECT, Verdict.WRONG],
            Rollouts(zeros, torch.tensor([4, 1]), torch.tensor([False, True])),
            {name: torch.tensor(value) for name, value in sums.items()},
            truncated=1,
            skipped=0,
            seconds={"rollout": 1.0, "verify": 0.5},
        )
    )
    window.add(
        Batch(
            ["b"],
            ["2"],
            [1.0],
            [Verdict.TIMEOUT, Verdict.UNPARSED],
            Rollouts(zeros[:, :1], torch.tensor([1, 0]), torch.tensor([False, False])),
            {"loss": torch.tensor(-3.0), "negative": torch.tensor(1.0)},
            truncated=0,
            skipped=3,
            seconds={"rollout": 2.0},
        )
    )
    return window


def test_feedback_by_hand() -> None:
    feedback = by_hand().feedback(step=4, max_new_tokens=4)
    assert feedback.step == 4
    assert feedback.max_new_tokens == 4
    assert feedback.problem_ids == ["a", "b"]
    assert feedback.levels == ["1", "2"]
    assert feedback.exposures == [0.5, 1.0]
    assert feedback.verdicts == [Verdict.CORRECT, Verdict.WRONG, Verdict.TIMEOUT, Verdict.UNPARSED]
    assert feedback.accuracy == 0.25
    # six tokens, four rollouts
    assert feedback.loss == 0.5
    assert feedback.mismatch == 0.5
    assert feedback.student_entropy == 1.5
    assert feedback.teacher_entropy == 0.25
    assert feedback.mean_length == 1.5
    assert feedback.share_cut == 0.75


def test_scalars_by_hand() -> None:
    assert by_hand().scalars(seconds=2.0) == pytest.approx(
        {
            "loss/divergence": 0.5,
            "loss/clipped_share": 1 / 3,
            "loss/negative_share": 1 / 6,
            "mismatch/forward_kl": 0.5,
            "entropy/student": 1.5,
            "entropy/teacher": 0.25,
            "exposure/ratio": 0.75,
            "teacher/truncated": 1.0,
            "data/prompt_too_long": 3.0,
            "competence/correct": 0.25,
            "competence/wrong": 0.25,
            "competence/unparsed": 0.25,
            "competence/timeout": 0.25,
            "length/mean": 1.5,
            "length/share_cut": 0.75,
            "length/share_empty": 0.5,  # nothing but the end token, or nothing at all; not the one token that was cut
            "throughput/completion_tokens_per_s": 3.0,
            "throughput/problems_per_step": 2.0,
            "time/rollout": 3.0,
            "time/verify": 0.5,
            "time/step": 2.0,
        }
    )


def test_an_empty_window_is_all_zeros() -> None:
    window = StepWindow()
    nothing = Rollouts(torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0) > 0)
    for _ in range(2):
        feedback = window.feedback(0, 8)
        assert feedback[1:5] == ([], [], [], [])
        assert feedback[5:11] == (0.0,) * 6
        assert feedback.accuracy == 0.0
        scalars = window.scalars(0.0)
        assert all(value == 0 and math.isfinite(value) for value in scalars.values()), scalars
        window.add(Batch([], [], [], [], nothing, {name: torch.tensor(0.0) for name in SUMS}, 0, 0, {"rollout": 0.0}))


def test_clear_begins_anew_and_leaves_what_was_handed_out_alone() -> None:
    window = by_hand()
    feedback = window.feedback(0, 4)
    window.add(Example(2, 0).batch(0, 2))
    window.clear()
    assert [len(values) for values in feedback[1:5]] == [2, 2, 2, 4]
    same(window, StepWindow())
    batch = Example(2, 0).batch(0, 2)
    window.add(batch)
    window.add(Example(3, 1).batch(0, 3))
    assert len(batch.problem_ids) == 2  # the batch's own lists do not grow


def test_reduce_on_one_rank_changes_nothing() -> None:
    window = by_hand()
    window.reduce()
    same(window, by_hand())


def reduce_on_a_rank(rank: int, folder: str) -> None:
    """A process of its own: three of five problems on rank 0, two on rank 1."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    example = Example(5, seed=11)
    window = StepWindow()
    window.add(example.batch(0, 3) if rank == 0 else example.batch(3, 5))
    window.reduce()
    whole = example.window([])
    for name in ("seconds/rollout", "seconds/teacher"):
        whole.totals[name] /= 2  # wall-clock time is the ranks' mean; all else is as if one rank had done all
    same(window, whole)
    assert all(type(v) is Verdict for v in window.verdicts)
    Path(folder, f"rank{rank}").write_text("done")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_are_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(reduce_on_a_rank, (str(tmp_path),), nprocs=2)
    assert (tmp_path / "rank0").exists()
    assert (tmp_path / "rank1").exists()

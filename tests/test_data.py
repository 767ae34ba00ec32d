"""The data module: order over ranks and workers, held-out sets, broken rows, and a position that resumes exactly."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import jsonargparse
import lightning.pytorch as pl
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lit_atex.contamination import ContaminationCheck
from lit_atex.data import ProblemDataModule
from lit_atex.resume import open_next_pass
from lit_atex.rows import Columns
from lit_atex.sources import Embedded, JsonLines, Source
from lit_atex.stream import EvalBatches, Tally, TrainStream, read, shuffle
from lit_atex.types import BadRow, Problem, seeded

# lightning 2.6 with torch 2.13: a message of torch's pytree, on every combined loader
pytestmark = pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\):FutureWarning")

CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "data").glob("*.yaml"))


class Numbers(Source):
    """Problems "q0", "q1", ...; every `bad_every`-th row is broken; endless without a size."""

    def __init__(self, size: int | None = 10, prefix: str = "q", bad_every: int = 0, seed: int = 0) -> None:
        self.name, self.finite = prefix, size is not None
        self.size, self.bad_every, self.seed = size, bad_every, seed

    def __iter__(self) -> Iterator[Problem | BadRow]:
        for i in count() if self.size is None else range(self.size):
            if self.bad_every and i % self.bad_every == self.bad_every - 1:
                yield BadRow("empty question", f"row {i}")
            else:
                yield Problem(f"{i}", f"{self.name}{i}", "1+1=2\n#### 2", "2")


class Recorder(pl.LightningModule):
    """Records (epoch, ids) of every batch, in order of training and of evaluation; may save or fail on the way."""

    def __init__(self, save_at: int = -1, path: Path | None = None, hook: str = "end", fail_at: int = -1) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[tuple[int, list[str]]] = []
        self.evaluated: list[tuple[int, list[str]]] = []
        self.steps_after: list[int] = []  # batches seen at each optimizer step
        self.save_at, self.path, self.hook, self.fail_at = save_at, path, hook, fail_at

    def training_step(self, batch: list[Problem], batch_idx: int) -> torch.Tensor:
        assert all(type(problem) is Problem for problem in batch)
        if len(self.seen) == self.fail_at:
            raise RuntimeError("killed")
        self.seen.append((self.current_epoch, [problem.id for problem in batch]))
        self.log("loss", 0.0, batch_size=1)
        return self.layer(torch.ones(1, 1)).sum()

    def save(self, hook: str) -> None:
        if self.hook == hook and len(self.seen) == self.save_at:
            self.trainer.save_checkpoint(self.path)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.steps_after.append(len(self.seen))

    def on_train_batch_end(self, *args: object) -> None:
        self.save("end")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        open_next_pass(checkpoint)  # as the real module does

    def on_train_epoch_end(self) -> None:
        self.save("epoch_end")

    def on_validation_end(self) -> None:
        self.save("validation_end")

    def on_train_batch_start(self, *args: object) -> None:
        self.save("start")

    def validation_step(self, batch: list[Problem], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluated.append((dataloader_idx, [problem.id for problem in batch]))

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveOnException(pl.Callback):
    """Saves in the middle of the step that failed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_exception(self, trainer: pl.Trainer, *args: object) -> None:
        trainer.save_checkpoint(self.path)


def trainer(folder: Path, **args: object) -> pl.Trainer:
    defaults = {"max_epochs": -1, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "logger": False}
    quiet = {"enable_checkpointing": False, "enable_model_summary": False, "num_sanity_val_steps": 1}
    return pl.Trainer(**{**defaults, **quiet, "default_root_dir": folder, **args})


def data(num_workers: int = 0, **args: object) -> ProblemDataModule:
    return ProblemDataModule(
        **{
            "train": Numbers(14),
            "validation": {"v": Numbers(3, "v")},
            "batch_size": 3,
            "shuffle_buffer": 4,
            "num_workers": num_workers,
            **args,
        }
    )


def train(folder: Path, datamodule: ProblemDataModule, model: Recorder, ckpt: Path | None = None, **args: object):
    pl_trainer = trainer(folder, **args)
    pl_trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt, weights_only=False if ckpt else None)
    return pl_trainer


# Resuming


@pytest.mark.slow
@pytest.mark.parametrize(("num_workers", "accumulate"), [(0, 1), (2, 2)])
@pytest.mark.parametrize(
    ("hook", "save_at"),
    [("end", 3), ("end", 4), ("end", 5), ("epoch_end", 5), ("validation_end", 5), ("end", 6), ("epoch_end", 10)],
)
def test_a_resumed_run_sees_what_the_undisturbed_run_saw(tmp_path, num_workers, accumulate, hook, save_at):
    args = {"max_steps": 12 if accumulate == 1 else 7, "accumulate_grad_batches": accumulate}  # 12 batches, 5 a pass
    whole = Recorder(save_at, tmp_path / "x.ckpt", hook)
    train(tmp_path, data(num_workers), whole, **args)
    assert len(whole.seen) == 12
    resumed = Recorder()
    train(tmp_path, data(num_workers), resumed, tmp_path / "x.ckpt", **args)
    assert [ids for _, ids in resumed.seen] == [ids for _, ids in whole.seen[save_at:]]
    assert resumed.seen == whole.seen[save_at:]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stopped_after_three_steps_and_resumed_to_eight(tmp_path, num_workers):
    whole, first, second = Recorder(), Recorder(), Recorder()
    train(tmp_path, data(num_workers), whole, max_steps=8)
    train(tmp_path, data(num_workers), first, max_steps=3).save_checkpoint(tmp_path / "x.ckpt")
    train(tmp_path, data(2 - num_workers), second, tmp_path / "x.ckpt", max_steps=8)  # workers may change
    # ids only: Lightning counts an epoch that `max_steps` cuts short as a whole one
    assert [x for _, x in first.seen + second.seen] == [x for _, x in whole.seen]
    assert [epoch for epoch, _ in whole.seen] == [0] * 5 + [1] * 3
    assert whole.seen[0][1] != whole.seen[5][1]  # passes are shuffled differently


@pytest.mark.slow
@pytest.mark.parametrize("limit", [2, 4, 7])  # of 5 batches a pass
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("save_at", [2, 4, 5, 6, 8])
def test_with_a_limit_an_epoch_is_so_many_batches_and_goes_on_in_the_passes(tmp_path, limit, accumulate, save_at):
    """Lightning asks for a new iterator every `limit` batches, without fetching ahead; a pass ends within an epoch."""
    args = {"max_steps": 13, "limit_train_batches": limit, "limit_val_batches": 0}
    args |= {"accumulate_grad_batches": accumulate}
    plain, resumed = Recorder(), Recorder()
    whole = Recorder(save_at, tmp_path / "x.ckpt", "epoch_end" if save_at % limit == 0 else "end")
    train(tmp_path, data(), whole, **args)
    train(tmp_path, data(), plain, max_steps=len(whole.seen))
    train(tmp_path, data(), resumed, tmp_path / "x.ckpt", **args)
    assert [x for _, x in whole.seen] == [x for _, x in plain.seen]
    assert [epoch for epoch, _ in whole.seen] == [i // limit for i in range(len(whole.seen))]
    # every batch is in a step: a step takes `accumulate`, or what is left of the epoch
    ends = [i for i in range(1, len(whole.seen) + 1) if i % limit == 0 or i % limit % accumulate == 0]
    assert whole.steps_after == ends
    assert [x for _, x in resumed.seen] == [x for _, x in whole.seen[save_at:]]
    assert resumed.steps_after == [i - save_at for i in whole.steps_after if i > save_at]


def test_an_endless_source_is_one_epoch_and_resumes(tmp_path):
    whole, resumed = Recorder(6, tmp_path / "x.ckpt"), Recorder()
    args = {"max_steps": 10, "val_check_interval": 4, "check_val_every_n_epoch": None}
    train(tmp_path, data(train=Numbers(None)), whole, **args)
    train(tmp_path, data(train=Numbers(None)), resumed, tmp_path / "x.ckpt", **args)
    assert resumed.seen == whole.seen[6:]
    assert {epoch for epoch, _ in whole.seen} == {0}
    assert sum(len(ids) for _, ids in whole.evaluated) == 3 * 3  # the sanity check and two validations


@pytest.mark.parametrize("save_at", [2, 5])
def test_a_batch_whose_step_has_not_ended_is_trained_on_again(tmp_path, save_at):
    whole, resumed = Recorder(save_at, tmp_path / "x.ckpt", hook="start"), Recorder()
    train(tmp_path, data(), whole, max_steps=8)
    train(tmp_path, data(), resumed, tmp_path / "x.ckpt", max_steps=8)
    assert resumed.seen == whole.seen[save_at:]


def test_a_run_that_died_in_a_step_repeats_its_batch(tmp_path):
    whole, dead, resumed = Recorder(), Recorder(fail_at=3), Recorder()
    train(tmp_path, data(), whole, max_steps=8)
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path, data(), dead, max_steps=8, callbacks=[SaveOnException(tmp_path / "x.ckpt")])
    train(tmp_path, data(), resumed, tmp_path / "x.ckpt", max_steps=8)
    assert dead.seen + resumed.seen == whole.seen


def test_a_module_that_is_used_again_begins_again_unless_the_trainer_goes_on(tmp_path):
    datamodule, first, second, third = data(), Recorder(), Recorder(), Recorder()
    train(tmp_path, datamodule, first, max_steps=3)
    going_on = train(tmp_path, datamodule, second, max_steps=3)
    assert second.seen == first.seen
    trainer(tmp_path).validate(third, datamodule=datamodule, verbose=False)
    going_on.fit_loop.epoch_loop.max_steps = 7
    going_on.fit(second, datamodule=datamodule)
    train(tmp_path, data(), third, max_steps=7)
    assert [ids for _, ids in second.seen] == [ids for _, ids in third.seen]


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"batch_size": 4}, r"data\.batch_size is 4.* 3: "),
        ({"shuffle_buffer": 2}, r"data\.shuffle_buffer"),
        ({"seed": 5}, r"data\.seed is 5"),
        ({"train": Numbers(14, seed=5)}, r"data\.train \(seed\) is 5"),
        ({"train": Numbers(15)}, r"data\.train \(size\)"),
    ],
)
def test_a_position_that_would_mean_other_problems_is_refused(tmp_path, changed, key):
    train(tmp_path, data(), Recorder(), max_steps=3).save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=key):
        train(tmp_path, data(**changed), Recorder(), tmp_path / "x.ckpt", max_steps=8)
    tested = Recorder()  # testing needs no position
    trainer(tmp_path).validate(
        tested, datamodule=data(**changed), ckpt_path=tmp_path / "x.ckpt", verbose=False, weights_only=False
    )
    assert tested.evaluated


def test_a_source_that_keeps_count_and_holds_objects_resumes(tmp_path):
    class Counted(Numbers):
        def __init__(self, size=14):
            super().__init__(size)
            self.passes, self.client = 0, Client()

        def __iter__(self):
            self.passes += 1
            return super().__iter__()

    class Client:
        pass

    first, second = Recorder(), Recorder()
    train(tmp_path, data(train=Counted()), first, max_steps=8).save_checkpoint(tmp_path / "x.ckpt")
    train(tmp_path, data(train=Counted()), second, tmp_path / "x.ckpt", max_steps=10)
    assert len(second.seen) == 2
    with pytest.raises(ValueError, match=r"data\.train \(size\)"):
        train(tmp_path, data(train=Counted(15)), Recorder(), tmp_path / "x.ckpt", max_steps=12)


def test_of_problems_that_a_source_holds_a_checkpoint_keeps_a_digest():
    problems = [Problem(str(i), f"q{i}", "x" * 500 + "#### 2", "2") for i in range(100)]
    first, same = data(train=Made(*problems)), data(train=Made(*problems))
    first.setup("fit")
    state = first.state_dict()
    assert max(map(len, state["settings"].values())) < 200
    same.load_state_dict(state)
    same.train_dataloader()
    state["settings"]["data.train (rows)"] = repr(tuple(problems))  # as earlier checkpoints have it
    same.load_state_dict(state)
    same.train_dataloader()
    other = data(train=Made(*problems[:-1], problems[0]))
    other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"data\.train \(rows\) is .*q0.*SHA-256.* with .*q0.*SHA-256") as caught:
        other.train_dataloader()
    assert len(str(caught.value)) < 700


def test_another_number_of_ranks_is_refused():
    datamodule = data()
    datamodule.setup("fit")
    state = datamodule.state_dict()
    state["settings"]["trainer.devices x trainer.num_nodes"] = "2"
    datamodule.load_state_dict(state)
    with pytest.raises(ValueError, match=r"trainer\.devices x trainer\.num_nodes is 1, .* with 2"):
        datamodule.train_dataloader()


def test_other_held_out_sets_are_told_of(tmp_path, caplog):
    train(tmp_path, data(), Recorder(), max_steps=3).save_checkpoint(tmp_path / "x.ckpt")
    with caplog.at_level(logging.WARNING, "lit_atex"):
        train(tmp_path, data(validation=None), Recorder(), tmp_path / "x.ckpt", max_steps=4, limit_val_batches=0)
    assert "held-out sets are not those of the checkpoint" in caplog.text


def test_the_state_is_plain_numbers_and_text(tmp_path):
    train(tmp_path, data(), Recorder(), max_steps=3).save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["ProblemDataModule"]
    assert (state["epoch"], state["batch"]) == (0, 3)


# Order


def batches(world_size: int = 1, rank: int = 0, num_workers: int = 0, **args: object) -> list[list[Problem]]:
    defaults = {"source": Numbers(23), "held_out": frozenset(), "batch_size": 2, "shuffle_buffer": 5}
    stream = TrainStream(**{**defaults, "max_bad_share": 0.1, "seed": 1, **args}, world_size=world_size, rank=rank)
    loaded: Any = iter(DataLoader(stream, None, num_workers=num_workers, collate_fn=lambda x: x))
    try:
        return [batch for batch, _ in loaded if batch is not None]
    finally:
        if num_workers:  # an error would leave them to the garbage collector, which waits five seconds for each
            loaded._shutdown_workers()


def ids(batch: list[Problem]) -> list[str]:
    return [problem.id for problem in batch]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 30), st.integers(0, 9), st.integers(0, 4))
def test_ranks_share_each_super_batch_without_overlap_or_loss(world_size, batch_size, size, buffer, skip):
    args = {"source": Numbers(size), "batch_size": batch_size, "shuffle_buffer": buffer, "skip": skip}
    ranks = [batches(world_size, rank, **args) for rank in range(world_size)]
    together = batches(1, 0, **{**args, "batch_size": batch_size * world_size})
    assert {len(own) for own in ranks} == {len(together)}
    for step, expected in enumerate(together):
        shares = [own[step] for own in ranks]
        assert sorted(id_ for share in shares for id_ in ids(share)) == sorted(ids(expected))
        for i, problem in enumerate(expected):
            assert shares[i % world_size][i // world_size] == problem
    seen = [id_ for batch in together for id_ in ids(batch)]
    assert len(seen) == len(set(seen)) == max(0, size - skip * batch_size * world_size)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("skip", [0, 1])
def test_workers_change_nothing(num_workers, world_size, skip):
    for rank in range(world_size):
        assert batches(world_size, rank, num_workers, skip=skip) == batches(world_size, rank, skip=skip)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 12), st.integers(0, 5))
def test_shuffle_moves_no_problem_forward_by_a_buffer(size, buffer, seed):
    problems = list(Numbers(size))
    shuffled = list(shuffle(problems, buffer, seeded(seed, "shuffle", 0)))
    assert sorted(ids(shuffled)) == sorted(ids(problems))
    assert all(int(problem.id) < place + max(buffer, 1) for place, problem in enumerate(shuffled))
    assert buffer > 1 or shuffled == problems


def test_epochs_and_seeds_shuffle_differently():
    orders = [[ids(b) for b in batches(epoch=e, seed=s)] for e in (0, 1) for s in (0, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_an_endless_source_is_read_only_as_far_as_needed():
    asked = []

    class Asked(Numbers):
        def __iter__(self) -> Iterator[Problem | BadRow]:
            for row in super().__iter__():
                asked.append(row)
                yield row

    stream = TrainStream(Asked(None), frozenset(), 4, shuffle_buffer=10, max_bad_share=0.1, seed=0)
    assert len(list(islice(stream, 3))) == 3
    assert len(asked) == 10 + 3 * 4


# Held out


def test_held_out_questions_are_skipped_in_training_counted_and_said(caplog):
    datamodule = data(train=Numbers(14), validation={"v": Numbers(2)}, test={"t": Numbers(3, "Q 1")}, shuffle_buffer=0)
    datamodule.test["t"] = Renamed(["  Q5\n", "q7"])
    datamodule.setup("fit")
    seen = [problem.question for batch in datamodule.train_dataloader() for problem in batch]
    assert seen == [f"q{i}" for i in range(14) if i not in (0, 1, 5, 7)]
    assert datamodule.report() == {
        "validation.v": {"rows": 2, "problems": 2, "held out": 0},
        "test.t": {"rows": 2, "problems": 2, "held out": 0},
        "train": {"rows": 14, "problems": 10, "held out": 4},
    }
    said = [r.getMessage() for r in caplog.records]
    assert said[-1].endswith(" rows are broken, 4 are held out for evaluation")
    assert len(said) <= 3  # as the count doubles
    assert len(list(datamodule.train_dataloader())) == 4
    assert len(caplog.records) == len(said)  # once, not in each pass


class Made(Source):
    """Given problems."""

    def __init__(self, *rows: Problem | BadRow) -> None:
        self.name, self.rows = "made", rows

    def __iter__(self) -> Iterator[Problem | BadRow]:
        return iter(self.rows)


class Renamed(Source):
    """Given questions."""

    def __init__(self, questions: list[str], id_: str | None = None) -> None:
        self.name, self.questions, self.id = "renamed", questions, id_

    def __iter__(self) -> Iterator[Problem | BadRow]:
        for i, question in enumerate(self.questions):
            yield Problem(self.id or str(i), question, "#### 1", "1")


def test_two_held_out_sets_must_not_share_a_question():
    sets = {"validation": {"x": Renamed(["What is  2+2?"])}, "test": {"x": Renamed(["other", "what IS\n2+2?"])}}
    with pytest.raises(ValueError, match=r"data\.validation\.x and data\.test\.x share the question 'what IS"):
        data(**sets).setup("fit")
    with pytest.raises(ValueError, match=r"data\.probe and data\.validation\.x share"):
        data(validation=sets["validation"], probe=Renamed(["what is 2+2?"])).setup("fit")


def test_two_questions_of_one_id_are_not_one_problem():
    with pytest.raises(ValueError, match=r"data\.train: the id 'same' is that of two questions.*give each"):
        list(read(Renamed(["a", "b"], "same"), Tally(), "data.train", 0.1))
    assert len(list(read(Renamed(["a", "a"], "same"), Tally(), "data.train", 0.1))) == 2


def test_what_a_source_gives_is_looked_at():
    class Dicts(Numbers):
        def __iter__(self):
            yield {"question": "1+1"}

    with pytest.raises(ValueError, match=r"data\.train: a row of Dicts is a dict, not a Problem or BadRow"):
        list(read(Dicts(1), Tally(), "data.train", 0.1))


def test_questions_that_a_held_out_set_repeats_are_counted_and_said_once(caplog):
    datamodule = data(validation={"v": Numbers(3)}, test={"t": Renamed(["a", "A ", "b", "a"])})
    datamodule.setup("fit")
    datamodule.setup("test")
    assert [r.getMessage() for r in caplog.records] == [
        "data.test.t: 2 of 4 questions repeat one before them, and count again"
    ]


GOOD = Problem("a", "1+1?", "#### 2", "2")


@pytest.mark.parametrize(
    ("changed", "reason", "detail"),
    [
        ({"level": 3}, "not text", "level is a int"),
        ({"answer": None, "id": 7}, "not text", "id is a int, answer is a NoneType"),
        ({"question": " \n"}, "empty question", "'a' has no question"),
        ({"solution": ""}, "empty solution", "'a' has no solution"),
        ({"answer": " "}, "no answer", "'a' has no answer"),
        ({"id": "", "answer": ""}, "empty id", "'' has no id and no answer"),
    ],
)
def test_a_problem_that_lacks_something_is_a_broken_row(changed, reason, detail):
    tally = Tally()
    assert list(read(Made(GOOD, GOOD._replace(**changed)), tally, "data.train", 0.5)) == [GOOD]
    assert tally.bad == {reason: 1}
    assert tally.examples[reason][0].startswith(f"Made row 1: {detail}")


@pytest.mark.parametrize("fails", [KeyError("question"), OSError("the server is away"), ValueError("no number")])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_source_that_fails_is_named_with_the_row(fails, num_workers):
    class Failing(Numbers):
        def __iter__(self):
            yield from super().__iter__()
            raise fails

    with pytest.raises(ValueError, match=rf"data\.train: Failing row 4: {type(fails).__name__}: {fails}") as caught:
        batches(source=Failing(4), num_workers=num_workers)
    assert num_workers or caught.value.__cause__ is fails


def test_a_source_that_begins_otherwise_each_time_is_warned_of(caplog):
    class Shuffled(Numbers):
        passes = 0

        def __iter__(self):
            self.passes += 1
            return islice(super().__iter__(), self.passes, None)

    data(train=Numbers(9)).setup("fit")
    assert not caplog.records
    data(train=Shuffled(9)).setup("fit")
    assert "data.train: Shuffled begins with another problem each time" in caplog.records[0].getMessage()


def test_a_source_that_does_not_start_over_is_refused():
    class Once(Numbers):
        def __iter__(self):
            self.rows = getattr(self, "rows", None) or super().__iter__()
            return self.rows

    datamodule = data(train=Once())
    with pytest.raises(ValueError, match=r"data\.train: Once\.__iter__ returns the same iterator each time.*`yield`"):
        datamodule.setup("fit")


def test_a_source_that_keeps_its_generator_is_refused():
    """Whoever leaves a pass before its end closes it, and the next one is empty."""

    class Kept(Numbers):
        def __iter__(self):
            self.rows = getattr(self, "rows", None) or super().__iter__()
            yield from self.rows

    datamodule = data(train=Kept())
    with pytest.raises(ValueError, match=r"data\.train: a second pass over Kept is empty: its __iter__ must begin"):
        datamodule.setup("fit")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Numbers(None), r"data\.test\.t never ends: set data\.test\.t\.init_args\.size"),
        (Numbers(0), r"data\.test\.t has no problem\. It is empty: no row was read$"),
        (Renamed(["a", "a"], "same"), r"data\.test\.t: the id 'same' occurs twice: give each problem its own"),
        (Renamed(["a", "b"], "same"), r"data\.test\.t: the id 'same' is that of two questions.*: give each problem"),
    ],
)
def test_what_no_held_out_set_can_be(source, message):
    with pytest.raises(ValueError, match=message):
        data(test={"t": source}).setup("test")


def test_limit_held_out_limits_what_is_evaluated_but_not_what_is_held_out():
    datamodule = data(validation={"v": Numbers(5)}, probe=Numbers(None, "p"), limit_held_out=2, shuffle_buffer=0)
    datamodule.setup("fit")
    assert [ids(batch) for batch in datamodule.val_dataloader()[0]] == [["0", "1"]]
    assert [problem.question for problem in datamodule.probe_problems] == ["p0", "p1"]
    assert ids(next(iter(datamodule.train_dataloader()))) == ["5", "6", "7"]


def test_a_source_that_is_held_out_whole_does_not_hang():
    held_out = frozenset(f"q{i}" for i in range(20_000))
    with pytest.raises(ValueError, match=r"data\.train: 10000 questions in a row are held out"):
        batches(source=Numbers(None), held_out=held_out)
    with pytest.raises(ValueError, match=r"no problem. 0 of 3 rows are broken, 3 are held out for evaluation"):
        data(train=Numbers(3, "v")).setup("fit")


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 7))
def test_evaluation_is_shared_without_overlap_loss_or_unequal_numbers_of_batches(size, world_size, batch_size):
    problems = list(Numbers(size))
    shares = [EvalBatches(problems, batch_size, world_size, rank) for rank in range(world_size)]
    seen = [[problem for batch in share for problem in batch] for share in shares]
    assert sorted(id_ for share in seen for id_ in ids(share)) == sorted(ids(problems))
    assert all(own == problems[rank::world_size] for rank, own in enumerate(seen))
    assert len({len(list(share)) for share in shares} | {len(share) for share in shares}) == 1
    assert all(len(batch) <= batch_size for share in shares for batch in share)


def test_lightning_evaluates_each_set_once_in_order(tmp_path):
    datamodule = data(test={"b": Numbers(3, "b"), "a": Numbers(2, "a")}, eval_batch_size=2)
    model = Recorder()
    trainer(tmp_path).test(model, datamodule=datamodule, verbose=False)
    assert datamodule.test_names == ["b", "a"]
    assert model.evaluated == [(0, ["0", "1"]), (0, ["2"]), (1, ["0", "1"])]


def test_training_without_any_held_out_set(tmp_path):
    model = Recorder()
    train(tmp_path, data(validation=None), model, max_steps=3, limit_val_batches=0)
    assert len(model.seen) == 3


# Broken rows


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_rows_are_counted_shown_and_reported(num_workers, caplog):
    datamodule = data(num_workers, train=Numbers(40, bad_every=5), max_bad_share=0.2, batch_size=1)
    datamodule.setup("fit")
    with caplog.at_level(logging.WARNING, "lit_atex"):
        for _ in range(2):  # counts are those of one pass
            assert len(list(datamodule.train_dataloader())) == 32
    assert datamodule.report()["train"] == {"rows": 40, "problems": 32, "held out": 0, "empty question": 8}
    assert 1 <= len(caplog.records) <= 5  # as the count doubles, not row by row
    assert "data.train: 8 of 40 rows are broken\n  empty question: 8\n    row 4\n    row 9\n    row 14" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_broken_rows_stop_the_run_and_are_shown(num_workers):
    stream = {"source": Numbers(None, bad_every=4), "max_bad_share": 0.2, "num_workers": num_workers}
    told = r"(?s)12 of 50 rows are broken.*empty question: 12\n    row 3.*max_bad_share=0.2"
    with pytest.raises(ValueError, match=rf"{told}: mend the rows; or leave"):
        batches(**stream)


@pytest.mark.parametrize(
    ("id_", "mend"),
    [
        ("null", r"mend the rows, or .*\(data\.t\.init_args\.columns"),
        ('"same"', r"set data\.t\.init_args\.columns\.id"),
    ],
)
def test_of_a_table_the_columns_are_named(tmp_path, id_, mend):
    row = '{"problem": "%s", "solution": "#### 1", "level": "1", "id": ' + id_ + "}\n"
    (tmp_path / "rows").write_text(row % "a" + row % "b" + row % "")
    table = JsonLines(str(tmp_path / "rows"), Columns(id="id"))
    with pytest.raises(ValueError, match=mend):
        list(read(table, Tally(), "data.t", 0.1))


def test_a_short_source_is_judged_at_its_end():
    tally = Tally()
    with pytest.raises(ValueError, match=r"data\.test\.x: 2 of 8 rows"):
        list(read(Numbers(8, bad_every=4), tally, "data.test.x", 0.2))
    assert tally.problems == 6
    assert len(list(read(Numbers(8, bad_every=4), Tally(), "data.test.x", 0.25))) == 6


@pytest.mark.parametrize("source", [Numbers(0), Numbers(3)])
def test_no_training_problem_is_an_error(source):
    with pytest.raises(ValueError, match=r"data\.train has no problem"):  # before a first evaluation
        data(train=source, validation={"v": Numbers(3)}).setup("fit")


def test_a_source_that_begins_with_held_out_and_broken_rows_is_read_on():
    rows = [Problem(f"v{i}", f"v{i}", "#### 2", "2") for i in range(999)]
    datamodule = data(train=Made(BadRow("odd", "x"), *rows[:3], GOOD), max_bad_share=0.3)
    datamodule.setup("fit")
    assert [p.id for batch in datamodule.train_batches() for p in batch] == ["a"]
    with pytest.raises(ValueError, match=r"data\.train has no problem\. 0 of 999 rows are broken, 999 are held out"):
        data(train=Made(*rows), validation={"v": Numbers(999, "v")}).setup("fit")
    many = data(train=Made(*rows, rows[0], GOOD), validation={"v": Numbers(999, "v")})
    many.setup("fit")  # the look is bounded
    assert [p.id for batch in many.train_batches() for p in batch] == ["a"]


@pytest.mark.parametrize(
    "args",
    [{"batch_size": 0}, {"eval_batch_size": 0}, {"limit_held_out": 0}, {"max_bad_share": 1.5}, {"num_workers": -1}],
)
def test_arguments_out_of_range_name_their_key(args):
    with pytest.raises(ValueError, match=rf"data\.{next(iter(args))}="):
        data(**args)


@pytest.mark.parametrize("name", ["math/algebra", "", ".hidden", "a.rank0", "a\nb"])
def test_a_set_has_a_name_that_files_can_have(name):
    with pytest.raises(ValueError, match=r"data\.validation: .*names of files"):
        data(validation={name: Numbers(3)})


# Ranks


class RankRecorder(Recorder):
    """Writes what each rank saw to a file of its own."""

    def on_fit_end(self) -> None:
        folder = Path(self.trainer.default_root_dir)
        (folder / f"rank{self.global_rank}").write_bytes(pickle.dumps((self.seen, self.evaluated)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_see_what_one_sees(tmp_path):
    one = Recorder()
    train(tmp_path, data(batch_size=4), one, max_steps=6)
    train(tmp_path, data(batch_size=2), RankRecorder(), max_steps=6, devices=2, strategy="ddp_fork")
    ranks = [pickle.loads((tmp_path / f"rank{rank}").read_bytes()) for rank in range(2)]
    assert [sorted(a + b) for (_, a), (_, b) in zip(ranks[0][0], ranks[1][0])] == [sorted(x) for _, x in one.seen]
    assert [[found for _, found in evaluated] for _, evaluated in ranks] == [[["0", "2"]] * 2, [["1"]] * 2]


# Configs


def parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(ProblemDataModule, "data")
    parser.add_class_arguments(ContaminationCheck, "contamination")
    return parser


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_short_parses_and_makes_sources_without_reading_them(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 25
    assert lines[0].startswith("# ")
    assert set(yaml.safe_load(path.read_text())) - {"contamination"} == {"data"}
    below = [] if "train" in yaml.safe_load(path.read_text())["data"] else [CONFIGS[0].with_name("embedded.yaml")]
    configs = [argument for config in [*below, path] for argument in ("--config", str(config))]
    datamodule = parser().instantiate(parser().parse_args(configs)).data
    assert isinstance(datamodule, ProblemDataModule)
    assert all(
        isinstance(s, Source) for s in [datamodule.train, *datamodule.validation.values(), *datamodule.test.values()]
    )


@pytest.mark.parametrize("name", ["embedded", "gsm_symbolic"])
def test_generated_sets_share_no_question(name):
    pytest.importorskip("reasoning_gym")
    config = parser().parse_args(["--config", str(CONFIGS[0].with_name(f"{name}.yaml"))])
    datamodule = parser().instantiate(config).data
    datamodule.setup("fit")
    assert len(next(iter(datamodule.train_dataloader()))) == datamodule.batch_size
    assert all(counts["rows"] == counts["problems"] for key, counts in datamodule.report().items() if key != "train")


def test_an_unknown_key_is_an_error():
    with pytest.raises(jsonargparse.ArgumentError, match="terse"):
        parser().parse_args(["--data.train", "lit_atex.sources.Embedded", "--data.train.init_args.terse", "1"])


def test_an_error_of_a_source_says_which_set_it_is(tmp_path):
    missing = JsonLines(str(tmp_path / "none.jsonl"))
    data = ProblemDataModule(train=Embedded(level=4), validation={"mine": missing})
    with pytest.raises(ValueError, match=r"^data\.validation\.mine\.init_args\.path: there is no file"):
        data.setup("fit")
    data = ProblemDataModule(train=missing)
    data.setup("validate")
    with pytest.raises(ValueError, match=r"^data\.train\.init_args\.path: there is no file"):
        data.setup("fit")  # not after an evaluation, when the first batch is read


def test_held_out_sets_that_are_exchanged_are_read_anew():
    first, second, third = (Embedded(level=2, size=3, split="test", seed=seed) for seed in (1, 2, 3))
    data = ProblemDataModule(Embedded(), test={"t": first})
    data.setup("test")
    data.test = {"t": second, "other": third}
    data.setup("test")
    found = [[p for batch in loader for p in batch] for loader in data.test_dataloader()]
    assert found == [list(second), list(third)] != [list(first), list(third)]
    kept = data.held_out("data.test.t")[0]
    data.setup("test")
    assert data.held_out("data.test.t")[0] is kept


def test_sets_that_were_refused_leave_nothing_behind():
    good, other = (Embedded(level=2, size=3, split="test", seed=seed) for seed in (1, 2))
    data = ProblemDataModule(Embedded(), test={"t": good})
    data.setup("test")
    data.test = {"t": other, "again": other}
    with pytest.raises(ValueError, match="share the question"):
        data.setup("test")
    data.test = {"t": good}
    data.setup("test")
    assert data.held_out("data.test.t") == list(good)


def test_of_exchanged_sets_broken_rows_are_told_and_gone_sets_are_not(caplog):
    data = ProblemDataModule(Embedded(), test={"t": Numbers(20, bad_every=5)}, max_bad_share=0.5)
    data.setup("test")
    for name in ("t", "u"):
        caplog.clear()
        data.test = {name: Numbers(20, "p", bad_every=10)}  # fewer than before
        data.setup("test")
        assert f"data.test.{name}: 2 of 20 rows are broken" in caplog.text
        assert list(data.report()) == [f"test.{name}"]


def test_data_that_evaluated_a_checkpoint_begin_anew(tmp_path):
    train(tmp_path, data(), Recorder(), max_steps=3).save_checkpoint(tmp_path / "x.ckpt")
    plain, evaluated, used = Recorder(), Recorder(), data(batch_size=2)
    trainer(tmp_path).validate(evaluated, used, ckpt_path=tmp_path / "x.ckpt")
    train(tmp_path, data(batch_size=2), plain, max_steps=2)
    train(tmp_path, used, evaluated, max_steps=2)
    assert evaluated.seen == plain.seen

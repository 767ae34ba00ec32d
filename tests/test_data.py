"""The data module: order over ranks and workers, held-out sets, broken rows, and a position that resumes exactly."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import jsonargparse
import lightning.pytorch as pl
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lit_atex.data import ProblemDataModule
from lit_atex.sources import Source
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

    def on_train_batch_end(self, *args: object) -> None:
        self.save("end")

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


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
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

"""Problems as a Lightning data module, with a position in the training data that a checkpoint keeps.

It knows nothing of tokens, prompts, rollouts or rewards, nor of where the problems come from.
"""

from __future__ import annotations

import logging
import zlib
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from lit_atex.settings import brief
from lit_atex.sources import Source
from lit_atex.stream import EvalBatches, Tally, TrainStream, check_ids, check_names, look_at, read, same
from lit_atex.types import Problem

log = logging.getLogger("lit_atex")


class TrainBatches:
    """What Lightning iterates: each `iter()` goes on where training stands, whichever batches were fetched ahead."""

    def __init__(self, data: ProblemDataModule) -> None:
        self.data = data

    def __iter__(self) -> Iterator[list[Problem]]:
        return self.data.train_batches()

    def state_dict(self) -> dict[str, Any]:
        """Empty, since the data module keeps the position; without it Lightning warns that the loader starts over."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""


class ProblemDataModule(pl.LightningDataModule):
    """Problems for training, validation and test, as `list[Problem]`."""

    def __init__(
        self,
        train: Source,
        probe: Source | None = None,
        validation: dict[str, Source] | None = None,
        test: dict[str, Source] | None = None,
        batch_size: int = 8,
        eval_batch_size: int = 32,
        shuffle_buffer: int = 1000,
        limit_held_out: int | None = None,
        max_bad_share: float = 0.1,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        """Sources and how they are cut into batches.

        The position in the training data is the number of batches that were trained on. It is in the checkpoint; a
        resumed run replays the text stream up to it, so it sees what the undisturbed run would have seen, whatever
        Lightning and the workers had fetched ahead. With `trainer.limit_train_batches` an epoch is exactly so many
        batches: it begins where the one before it ended in the pass, and where the pass ends goes on in the next.

        Args:
            train: Problems to train on. Without that limit, an epoch is one pass; of an endless source, it never ends.
            probe: A small fixed set that learning progress is measured on; held out from training and evaluation.
            validation: Held-out sets by name; without any, set `trainer.limit_val_batches` to 0.
            test: Held-out sets by name.
            batch_size: Problems per rank and micro-batch, >= 1.
            eval_batch_size: Problems per rank and evaluation batch, >= 1.
            shuffle_buffer: Problems that the next one is drawn from; 0 or 1 keeps the source's order.
            limit_held_out: Evaluate only the first so many problems of each held-out set, >= 1; all of a finite set are
                still held out from training.
            max_bad_share: Largest share of broken rows in a source, in [0, 1].
            num_workers: Processes per rank that prepare training batches, >= 0; no effect on the batches.
            seed: Seed of the shuffling, >= 0.
        """
        super().__init__()
        for key, value, least in [
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("shuffle_buffer", shuffle_buffer, 0),
            ("limit_held_out", 1 if limit_held_out is None else limit_held_out, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
        ]:
            if value < least:
                raise ValueError(f"data.{key}={value} must be at least {least}.")
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"data.max_bad_share={max_bad_share} must be in [0, 1].")
        self.train, self.probe, self.validation, self.test = train, probe, validation or {}, test or {}
        check_names({"validation": self.validation, "test": self.test})
        self.batch_size, self.eval_batch_size, self.shuffle_buffer = batch_size, eval_batch_size, shuffle_buffer
        self.max_bad_share, self.num_workers, self.seed = max_bad_share, num_workers, seed
        self.limit_held_out = limit_held_out
        self.answered: dict[str, int] = {}
        """Problems of this rank's share, by config key, that an evaluation which goes on has the answers of."""
        self._held_out: dict[str, list[Problem]] = {}  # config key -> problems, all of them
        self._read: dict[str, Source] = {}  # where they are from
        self._tallies: dict[str, Tally] = {}
        self._shown: dict[str, int] = {}  # rows left out that the log has told of
        self._loaded: dict[str, Any] = {}  # of the checkpoint that was read
        self._train_settings = train.settings()  # before a pass: a source may keep count
        self._position = self._previous = (0, 0)  # what training needs next; the same before the last counted batch
        self._fetched: deque[tuple[int, int]] = deque()  # what was handed out and not yet trained on
        self._lengths: dict[int, int] = {}  # batches per pass, once a pass has been read to its end

    # Held-out sets

    validation_names = property(lambda self: list(self.validation), doc="Names of the validation sets, in their order.")
    test_names = property(lambda self: list(self.test), doc="The same of the test sets; both may be exchanged.")

    def setup(self, stage: str | None = None) -> None:
        """Read the held-out sets, and begin at the first batch unless the trainer has trained already.

        Raises:
            ValueError: If a set is endless or empty, has an id twice or another's question; or if training has none.
        """
        self._read_held_out()
        if stage == "fit":
            self._train_settings = self.train.settings()
            look_at(self.train, "data.train", self.max_bad_share, self.held_out_questions())
            if self.trainer is not None and self.trainer.global_step == 0:
                self._start_at(0, 0)

    def _read_held_out(self) -> None:
        sources = {"data.probe": self.probe} if self.probe is not None else {}
        sources |= {f"data.validation.{name}": source for name, source in self.validation.items()}
        sources |= {f"data.test.{name}": source for name, source in self.test.items()}
        if sources == self._read:
            return
        check_names({"validation": self.validation, "test": self.test})
        self._held_out, self._read, self._tallies, self._shown = {}, {}, {}, {}
        owners: dict[str, str] = {}
        for key, source in sources.items():
            if not source.finite and self.limit_held_out is None:
                raise ValueError(f"{key} never ends: set {key}.init_args.size, or data.limit_held_out.")
            tally = self._tallies[key] = Tally()
            rows = read(source, tally, key, self.max_bad_share)
            held = self._held_out[key] = list(islice(rows, None if source.finite else self.limit_held_out))
            self._warn(key, tally)
            if not held:
                raise ValueError(f"{key} has no problem. {tally.describe()}")
            if (repeated := check_ids(key, source, held)) and self._ranks()[1] == 0:
                log.warning("%s: %d of %d questions repeat one before them, and count again", key, repeated, len(held))
            for problem in held:
                if (owner := owners.setdefault(same(problem.question), key)) != key:
                    raise ValueError(
                        f"{owner} and {key} share the question {problem.question[:200]!r}: give them different files,"
                        " splits or seeds."
                    )
        self._read = sources

    def val_dataloader(self) -> list[EvalBatches]:
        """One loader per validation set, in the order of `validation_names`."""
        return [self._eval_batches(f"data.validation.{name}") for name in self.validation_names]

    def test_dataloader(self) -> list[EvalBatches]:
        """One loader per test set, in the order of `test_names`."""
        return [self._eval_batches(f"data.test.{name}") for name in self.test_names]

    def predict_dataloader(self) -> list[EvalBatches]:
        """The test sets."""
        return self.test_dataloader()

    @property
    def probe_problems(self) -> list[Problem]:
        """The whole probe, on every rank; empty without one."""
        return self._held_out.get("data.probe", [])[: self.limit_held_out]

    def held_out(self, key: str) -> list[Problem]:
        """What is evaluated of the set with this config key, on all ranks."""
        return self._held_out[key][: self.limit_held_out]

    def share(self, key: str) -> list[Problem]:
        """This rank's part of it."""
        world_size, rank = self._ranks()
        return self.held_out(key)[rank::world_size]

    def _eval_batches(self, key: str) -> EvalBatches:
        return EvalBatches(self.held_out(key), self.eval_batch_size, *self._ranks(), self.answered.get(key, 0))

    # Training

    def train_dataloader(self) -> TrainBatches:
        """Batches from where training stands.

        Raises:
            ValueError: If the checkpoint was written with settings under which its position means something else.
        """
        self._check_settings()
        return TrainBatches(self)

    def train_batches(self) -> Iterator[list[Problem]]:
        """The rest of the pass that training stands in, or all of the next one.

        With `trainer.limit_train_batches`, pass after pass: Lightning then does not fetch ahead, so it would not know
        of a pass that ends first, and would leave a step open there.
        """
        limited = self.trainer is not None and isinstance(self.trainer.limit_train_batches, int)
        self._fetched.clear()
        epoch, first = self._position
        while True:
            index, stream = first, self._train_stream(epoch, first)
            loader = DataLoader(stream, batch_size=None, num_workers=self.num_workers, collate_fn=_as_it_is)
            for problems, tally in loader:
                if tally.rows > self._tallies.setdefault("data.train", tally).rows:
                    self._tallies["data.train"] = tally
                self._warn("data.train", tally, final=problems is None)
                if problems is not None:
                    self._fetched.append((epoch, index))
                    index += 1
                    yield problems
            if index == 0:
                raise ValueError(f"data.train has no problem. {self._tallies['data.train'].describe()}")
            self._lengths[epoch] = index
            if self._position == (epoch, index):
                self._position = (epoch + 1, 0)
            if index > first and not limited:
                return
            epoch, first = epoch + 1, 0  # if index == first, training stood at the very end of the pass

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Count the batch: Lightning calls this for the very batch that is trained on next."""
        if self.trainer is not None and self.trainer.training and self._fetched:
            epoch, index = self._previous = self._fetched.popleft()
            self._position = (epoch + 1, 0) if self._lengths.get(epoch) == index + 1 else (epoch, index + 1)
        return batch

    def _train_stream(self, epoch: int, skip: int) -> TrainStream:
        given = (self.batch_size, self.shuffle_buffer, self.max_bad_share, self.seed)
        return TrainStream(self.train, self.held_out_questions(), *given, epoch, skip, *self._ranks())

    def _start_at(self, epoch: int, batch: int) -> None:
        self._position = self._previous = (epoch, batch)
        self._fetched.clear()
        self._lengths, self._loaded = {}, {}

    # Checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Epoch and batch that come next, and what gives these numbers their meaning."""
        epoch, batch = self._previous if self._in_flight() else self._position
        return {"epoch": epoch, "batch": batch, "settings": self._settings(), "held_out": self._held_out_digest()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Stand where the checkpoint stood; whether the settings allow that is checked when training begins."""
        self._start_at(state_dict["epoch"], state_dict["batch"])
        self._loaded = state_dict

    def _in_flight(self) -> bool:
        """Whether a batch was counted whose training step has not ended: a checkpoint of an exception, say."""
        progress: Any = self.trainer and self.trainer.fit_loop.epoch_loop.batch_progress.current
        return progress is not None and progress.ready > progress.processed

    def _settings(self) -> dict[str, str]:
        settings = {f"data.{key}": repr(getattr(self, key)) for key in ("batch_size", "shuffle_buffer", "seed")}
        settings["trainer.devices x trainer.num_nodes"] = repr(self._ranks()[0])
        return settings | {f"data.train ({key})": brief(value) for key, value in self._train_settings.items()}

    def _check_settings(self) -> None:
        then, now = {k: brief(v) for k, v in self._loaded.get("settings", {}).items()}, self._settings()
        for key in sorted(then.keys() | now.keys()) if then else ():
            if then.get(key) != now.get(key):
                raise ValueError(
                    f"{key} is {now.get(key)}, but the checkpoint was written with {then.get(key)}: its position in the"
                    f" training data would mean other problems. Set {key} back, or begin a new run from its weights."
                )
        if self._loaded and self._loaded["held_out"] != self._held_out_digest():
            log.warning("The held-out sets are not those of the checkpoint: training may skip other problems.")

    def held_out_questions(self) -> frozenset[str]:
        """Of all sets, in the form of `same`: training skips them."""
        return frozenset(same(problem.question) for problems in self._held_out.values() for problem in problems)

    def _held_out_digest(self) -> int:
        return zlib.crc32("\n".join(sorted(self.held_out_questions())).encode("utf-8", "backslashreplace"))

    def report(self) -> dict[str, dict[str, int]]:
        """Rows, problems, held-out and broken rows by reason; of training, for the pass that has been read furthest."""
        return {key.removeprefix("data."): tally.counts() for key, tally in self._tallies.items()}

    def _warn(self, key: str, tally: Tally, final: bool = True) -> None:
        """Say how many rows are left out, each time that their number has doubled, and at the end of the pass."""
        left_out, shown = tally.rows - tally.problems, self._shown.get(key, 0)
        if self._ranks()[1] == 0 and left_out > shown and (final or left_out >= 2 * shown):
            self._shown[key] = left_out
            log.warning("%s: %s", key, tally.describe())

    def _ranks(self) -> tuple[int, int]:
        """World size and rank as far as data are concerned; (1, 0) without a trainer."""
        ranks = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return (ranks["num_replicas"], ranks["rank"]) if ranks else (1, 0)


def _as_it_is(item: Any) -> Any:
    return item

"""Runs on a device that is not the CPU's (`apart.py`); tests/test_device.py starts this in a process of its own."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apart
import numpy as np
import pytest
import torch
from apart import Apart, Watched
from fakes import two_layer_model

from lit_atex.api import load
from lit_atex.decode import decoder_for
from lit_atex.metric_shells import GPassAtK, PassAtK
from lit_atex.rollout import TransformersEngine
from lit_atex.sampling import Sampling, draw
from lit_atex.types import widest

library = apart.register()
ON_IT = {"trainer.accelerator": "apart", "trainer.strategy": "apart", "trainer.inference_mode": False}
"""Tensors of a class of their own and inference mode do not go together in torch."""
SHORT = {"trainer.max_steps": 2, "trainer.num_sanity_val_steps": 0, "data.validation": {}, "checkpoint.monitor": None}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    Watched.operations, Watched.float64 = 0, True
    Watched.waits.clear()
    widest.cache_clear()
    yield
    Watched.float64 = True
    widest.cache_clear()


def test_the_device_refuses_what_a_gpu_would_and_counts_what_makes_the_host_wait():
    x = torch.arange(6.0).view(2, 3).to("apart")
    assert x.device == torch.device("apart", 0)
    assert torch.equal((x @ x.T).cpu(), torch.tensor([[5.0, 14.0], [14.0, 50.0]]))
    with pytest.raises(RuntimeError, match="one device, got"):
        x + torch.ones(2, 3)
    number, row = torch.tensor(1.0), torch.zeros(1, 3, dtype=torch.long)
    for wrong in (
        lambda: torch.stack([x.sum(), number]),
        lambda: x.gather(0, row),
        lambda: x.index_select(0, row[0, 0]),
        lambda: torch.nn.functional.embedding(row, x),
        lambda: number.add_(x.sum()),
    ):
        with pytest.raises(RuntimeError, match="one device, got"):
            wrong()
    assert torch.equal((x + number).cpu(), torch.arange(1.0, 7.0).view(2, 3))
    Watched.waits.clear()
    assert x[row[0]].shape == (3, 3)
    assert Watched.waits == {"elsewhere": 1}
    with pytest.raises(TypeError, match="numpy"):
        np.asarray(x)
    x[:, 1] = 7  # a view of the same memory
    Watched.waits.clear()
    assert x.tolist() == [[0.0, 7.0, 2.0], [3.0, 7.0, 5.0]]
    assert float(x.sum()) == 24.0
    assert len(x[x > 2.5]) == 4
    assert Watched.waits == {"elsewhere": 3}
    Watched.float64 = False
    with pytest.raises(TypeError, match="float64"):
        x.double()


def trained(at: Path, *stack: str | dict[str, Any], **options: bool) -> list[dict[str, str]]:
    """The metrics of a run of `fit`, step by step."""
    load("base", "tiny", *stack, run=str(at), **options).train()
    with (at / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


PARTS = {"model.part_tokens": 300, "model.samples": 2, "trainer.accumulate_grad_batches": 2}
LEARNED = ("exposure/beta_policy", "progress/probe_accuracy", {"exposure.hold": 1})
NLL, MATCH, REWEIGHTED = (
    {"exposure.progress": {"class_path": f"lit_atex.{name}"}}
    for name in ("measures.ProbeNLL", "measures.ProbeMatch", "reweighted.ReweightedAccuracy")
)


@pytest.mark.parametrize(
    ("stack", "float64"),
    [
        (("objective/grpo", PARTS), True),
        (("model/lora", "hint/masked"), True),
        (("objective/off_policy", {"model.divergence": "JSD"}), True),
        (("teacher/gated", *LEARNED), False),
        ((*LEARNED, NLL), False),
        ((*LEARNED, MATCH), False),
        ((*LEARNED, REWEIGHTED), False),
    ],
    ids=["parts", "lora", "references", "probe", "nll", "match", "reweighted"],
)
def test_a_run_there_is_the_run_on_the_cpu(tmp_path: Path, stack: Any, float64: bool):
    here = trained(tmp_path / "cpu", *stack, SHORT)
    assert Watched.operations == 0
    Watched.float64 = float64
    there = trained(tmp_path / "apart", *stack, SHORT, ON_IT)
    assert Watched.operations > 1000  # a hundred times that; the model was there
    assert len(here) == len(there) == 2
    for a, b in zip(here, there):
        same = [x for x in ("loss/divergence", "mismatch/forward_kl", "gradient/norm", "exposure/progress") if a.get(x)]
        for name in (*same, "length/mean", "competence/correct"):
            assert math.isclose(float(a[name]), float(b[name]), rel_tol=1e-3), name


def test_a_run_that_was_stopped_there_goes_on_and_is_evaluated(tmp_path: Path):
    steps = {"trainer.num_sanity_val_steps": 0, "checkpoint.every_n_train_steps": 1, **ON_IT}
    whole = trained(tmp_path / "whole", {"trainer.max_steps": 3, **steps})
    trained(tmp_path / "parts", {"trainer.max_steps": 2, **steps, "data.validation": {}, "checkpoint.monitor": None})
    parts = trained(tmp_path / "parts", {"trainer.max_steps": 3, **steps}, resume=True)
    assert [row["loss/divergence"] for row in whole] == [row["loss/divergence"] for row in parts]
    assert whole[-1]["validation/level-4/avg@2"] == parts[-1]["validation/level-4/avg@2"] != ""


def test_the_host_does_not_wait_for_a_token():
    model = two_layer_model().to("apart")
    waits = {}
    for tokens in (16, 64, 128):
        Watched.waits.clear()
        given = (model, [[5, 6, 7], [8, 9]], 2, Sampling(max_new_tokens=tokens), set(), rows(4))
        TransformersEngine().generate(*given)
        waits[tokens] = Watched.waits.total()
    assert waits[128] - waits[64] == 4  # one look in 16 tokens at what has ended
    assert waits[64] - waits[16] == 3
    assert waits[16] < 20


def rows(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(i) for i in range(count)]


def test_the_same_tokens_come_of_the_same_numbers():
    model = two_layer_model()
    given = ([[5, 6, 7], [8, 9]], 8, Sampling(max_new_tokens=40, top_p=0.9, top_k=50, min_p=0.01), {0, 3})
    here = TransformersEngine().generate(model, *given, rows(16))
    there = TransformersEngine().generate(model.to("apart"), *given, rows(16))
    assert isinstance(there.ids, Apart)
    for a, b in zip(here, there):
        assert torch.equal(a, b.cpu())


def test_draws_without_float64_have_the_same_distribution():
    """100,000 draws from eight tokens: each count within 4.5 standard deviations of its mean."""
    Watched.float64 = False
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5, -torch.inf, 1.5, -3.0]]).repeat(100_000, 1)

    uniforms = torch.from_numpy(np.random.default_rng(0).random(100_000)).float()
    uniforms[0] = 1.0  # as float32 rounds what is nearly 1
    found = draw(logits.to("apart"), uniforms.to("apart"), Sampling())
    counts = torch.bincount(found.cpu(), minlength=8).double()
    p = logits[0].double().softmax(0)
    spread = (100_000 * p * (1 - p)).sqrt()
    assert ((counts - 100_000 * p).abs() <= 4.5 * spread).all()
    assert counts[5] == 0


@pytest.mark.parametrize("float64", [True, False])
def test_metrics_there(float64: bool):
    Watched.float64 = float64
    correct, samples = torch.tensor([0, 2, 4]), torch.tensor([4, 4, 4])
    for here, there in [(PassAtK(2), PassAtK(2)), (GPassAtK(4, 0.5), GPassAtK(4, 0.5))]:
        here.update(correct, samples)
        there.to("apart").update(correct.to("apart"), samples.to("apart"))
        assert there.compute().device.type == "apart"
        assert float(there.compute()) == pytest.approx(float(here.compute()), abs=1e-6)


def test_what_the_model_reads_is_there():
    decoder = decoder_for(two_layer_model().to("apart"))
    assert isinstance(decoder.read([[1, 2], [3]], 1, 4), Apart)

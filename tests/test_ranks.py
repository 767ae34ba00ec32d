"""Two ranks give what one rank gives. This file is also the script that the ranks run."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import SIX, ScriptedEngine, byte_tokenizer
from lightning.pytorch.callbacks import ModelCheckpoint
from test_module import LORA, Listed, Memory, Spoiled, distillation, problems_of, saved_model, trainer, weights
from torch.optim import SGD

from lit_atex.beta_policy import BetaPolicy
from lit_atex.callbacks import ExposureControl
from lit_atex.collapse import CollapseMonitor
from lit_atex.divergence import ForwardKL
from lit_atex.estimator import CompetenceEstimator
from lit_atex.exposure import Random
from lit_atex.measures import ProbeMatch, ProbeNLL
from lit_atex.reweighted import ReweightedAccuracy
from lit_atex.rollout import RolloutEngine
from lit_atex.teacher import Ema, Frozen
from lit_atex.types import Rollouts
from lit_atex.weighting import GroupRelative

TESTS = Path(__file__).parent
STEPS = 4
TIMED = ("time/", "throughput/completion")
MATCH = ("learned from a match", "resumed")


class Answers(RolloutEngine):
    """Answers of various lengths, right and wrong, set by the generators alone; nothing at all to muted prompts."""

    def __init__(self) -> None:
        self.muted: list[list[int]] = []

    def generate(self, model, prompts, samples, sampling, end_ids, generators) -> Rollouts:
        rows = []
        for i, g in enumerate(generators):
            text = "." * int(g.integers(6)) + f"\\boxed{{{g.choice([5, 24, 3, -3])}}}"
            ids = byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
            rows.append([] if prompts[i // samples] in self.muted else ids + [0] * int(g.integers(2)))
        return ScriptedEngine(rows).generate(model, prompts, samples, sampling, end_ids, generators)


def run(model: str, out: str, case: str, devices: int) -> None:
    """Train on five problems, validate on six, and save what each rank has.

    One rank takes batches of four problems. Two ranks take either batches of two, or two accumulated batches of one;
    the fifth problem is alone in its optimizer step, so that one rank has an empty batch. In the case "parts" a rank of
    two takes its batch of two in parts of one. In the case "resumed" two ranks go on from step 2 of those before.
    """
    rank = int(os.environ.get("LOCAL_RANK", 0))
    torch.manual_seed(100 + rank)  # nothing may depend on it
    accumulate = 2 if case == "accumulate" and devices == 2 else 1
    spoiled = case == "not finite" and (devices == 1 or rank == 1)
    module = distillation(
        model,
        lora=LORA if case == "lora" else None,
        teacher=Frozen() if case in ("not finite", *MATCH) else Ema(0.7),
        divergence=Spoiled(0) if spoiled else ForwardKL(),
        engine=Answers(),
        optimizer=lambda params: SGD(params, lr=0.3),
        samples=2,
        chunk_tokens=1000,
        part_tokens=1 if case == "parts" and devices == 2 else 10_000,
    )
    module.configure_model()
    if case == "accumulate":  # rank 0 has nothing to say in the first step
        module.weighting = GroupRelative()
        module.engine.muted = [module.prompts.student(p, module.tokenizer) for p in (SIX[0], SIX[2])]
    per_batch = 4 // (devices * accumulate)
    other = Listed([p._replace(question=f"Again: {p.question}") for p in SIX])
    probe = Listed(
        [p._replace(id=f"probe {i}", question=f"Probe {i}: {p.question}") for i, p in enumerate([*SIX, SIX[0]])]
    )
    data = problems_of(per_batch, SIX[:5], validation={"again": other}, eval_batch_size=2, probe=probe)
    collapse = CollapseMonitor(window=2)
    control = ExposureControl(Random(per="problem"))
    if learned := case in ("learned", "parts", *MATCH):  # the probe's seven problems are shared out unevenly
        measure = ProbeMatch() if case in MATCH else ProbeNLL() if case == "learned" else ReweightedAccuracy()
        control = ExposureControl(BetaPolicy(horizon=1), hold=1, progress=measure)
    every = ModelCheckpoint(Path(out) / "steps", filename="{step}", save_top_k=-1, every_n_train_steps=1)
    one = trainer(
        STEPS,
        devices=devices,
        strategy="ddp" if devices == 2 else "auto",
        accumulate_grad_batches=accumulate,
        callbacks=[control, competence := CompetenceEstimator(), collapse, *[every] * (case in MATCH)],
        enable_checkpointing=case in MATCH,
        default_root_dir=out,
        limit_val_batches=1.0,
        check_val_every_n_epoch=None,
        val_check_interval=10_000,
    )
    checkpoint = Path(out) / "steps" / "step=2.ckpt" if case == "resumed" else None
    one.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    assert one.world_size == devices
    validated = one.validate(module, data, verbose=False)
    found = {
        "weights": weights(module),
        "average": dict(module.teacher.state_dict().get("copy", {})),
        "log": numbers(one.logger) if rank == 0 else {},
        "competence": competence.state_dict(),
        "decisions": json.dumps(control.strategy.state_dict().get("queue")),
        "learned": [list(m) for m in control.strategy.learner.windows] if learned else [],
        "collapse": json.dumps(collapse.state_dict()),
        "results": json.dumps([r.to_json() for r in module.evaluation.results], sort_keys=True),
        "validated": validated[0],
        "skipped": module.skipped.total,
    }
    torch.save(found, Path(out) / f"{case} {devices}-{rank}.pt")


def numbers(log: Memory) -> dict[int, dict[str, float]]:
    return {s: {k: v for k, v in row.items() if not k.startswith(TIMED)} for s, row in log.steps.items()}


CASES = ("lora", "accumulate", "not finite", "learned", "parts", *MATCH)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The model, and a folder with what two ranks have in each of the cases, one after the other in two processes.

    In the last of them they go on from a checkpoint of those before, in two others.
    """
    folder = tmp_path_factory.mktemp("ranks")
    model = saved_model(folder / "model")
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for cases in (CASES[:-1], CASES[-1:]):
        command = [sys.executable, __file__, model, str(folder), *cases]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
    return model, folder


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case != MATCH[0]])
def test_two_ranks_give_what_one_rank_gives(ranks, tmp_path, case):
    model, folder = ranks
    run(model, str(tmp_path), MATCH[0] if case == "resumed" else case, 1)
    (alone,) = tmp_path.glob("*.pt")
    paths = (alone, folder / f"{case} 2-0.pt", folder / f"{case} 2-1.pt")
    alone, first, second = (torch.load(path, weights_only=True) for path in paths)

    # The ranks agree with each other to the bit: weights, teacher, decisions, results.
    for key in ("weights", "average"):
        torch.testing.assert_close(second[key], first[key], rtol=0, atol=0)
    for key in ("competence", "decisions", "learned", "collapse", "results", "validated", "skipped"):
        np.testing.assert_equal(second[key], first[key])  # to the bit; NaN is equal to NaN
    # And with one rank to rounding.
    for key in ("weights", "average"):
        torch.testing.assert_close(first[key], alone[key], rtol=1e-5, atol=1e-6)
    assert first["results"] == alone["results"]
    assert first["competence"] == alone["competence"]
    assert first["skipped"] == alone["skipped"] == (case == "not finite")
    steps = [s for s in range(STEPS) if not (case == "not finite" and s == 0) and not (case == "resumed" and s < 2)]
    for step in steps:
        assert first["log"][step] == pytest.approx(alone["log"][step], rel=1e-4, abs=1e-6, nan_ok=True)
    assert [alone["log"][s]["throughput/problems_per_step"] for s in steps] == [4, 1, 4, 1][-len(steps) :]
    assert len(first["learned"]) == (STEPS - 1 if case in ("learned", "parts", "resumed") else 0)
    for ours, theirs in zip(first["learned"], alone["learned"], strict=True):
        assert [*ours[0], *ours[1:]] == pytest.approx([*theirs[0], *theirs[1:]], rel=1e-3, abs=1e-5, nan_ok=True)
    if case == "accumulate":
        assert alone["log"][0]["length/share_empty"] == 0.5
        assert max(alone["log"][step]["loss/weighted_share"] for step in steps) > 0
    result = json.loads(alone["results"])[0]
    assert result["problems"] == 6
    assert 0 < result["average"] < 1


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*", FutureWarning)
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists", UserWarning)
    torch.set_num_threads(1)
    for case in sys.argv[3:]:
        run(*sys.argv[1:3], case, 2)

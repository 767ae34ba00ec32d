"""The training step against plain float64 forward passes, and what it must survive; the results of an evaluation."""

import copy
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import yaml
from fakes import SIX, ScriptedEngine, byte_tokenizer, two_layer_model
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

from lit_atex.callbacks import ExposureControl
from lit_atex.data import ProblemDataModule
from lit_atex.divergence import Divergence, ForwardKL, ReverseKL
from lit_atex.embedded import MODEL_DIR
from lit_atex.exposure import Fixed, Scheduled
from lit_atex.models import LanguageModel, Lora
from lit_atex.module import SelfDistillation
from lit_atex.prompts import PromptStyle
from lit_atex.rollout import RolloutEngine, Sampling, TransformersEngine
from lit_atex.settings import resolve
from lit_atex.solver import Solver
from lit_atex.sources import BadRow, Source
from lit_atex.teacher import Ema, Frozen, Teacher
from lit_atex.types import Problem, Rollouts, Verdict, seeded
from lit_atex.verify import Verifier
from lit_atex.weighting import Weighting

# ---------------------------------------------------------------- parts, which test_resume and test_ranks use too


class Listed(Source):
    """The problems that it is given."""

    def __init__(self, problems: list[Problem] = SIX) -> None:
        self.name, self.problems = "listed", list(problems)

    def __iter__(self) -> Iterator[Problem | BadRow]:
        return iter(self.problems)


class Drawn(RolloutEngine):
    """Random ids of random length, set by the generators alone: no model is asked. Keeps what it gave."""

    def __init__(self, shortest: int = 1, longest: int = 9, empty_calls: tuple[int, ...] = ()) -> None:
        self.shortest, self.longest, self.empty_calls = shortest, longest, empty_calls
        self.calls: list[tuple[list[list[int]], list[list[int]]]] = []

    def generate(self, model, prompts, samples, sampling, end_ids, generators) -> Rollouts:
        rows = [g.integers(3, 259, size=int(g.integers(self.shortest, self.longest + 1))).tolist() for g in generators]
        rows = [[] for _ in rows] if len(self.calls) in self.empty_calls else rows
        self.calls.append(([list(p) for p in prompts], rows))
        return ScriptedEngine(rows).generate(model, prompts, samples, sampling, end_ids, generators)


class Memory(Logger):
    """A logger that keeps the numbers of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[int, dict[str, float]] = {}

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args, **kwargs) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.steps.setdefault(step, {}).update(metrics)

    def values(self, name: str) -> list[float]:
        return [self.steps[step][name] for step in sorted(self.steps) if name in self.steps[step]]


def saved_model(folder: Path, seed: int = 0) -> str:
    two_layer_model(seed=seed).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def distillation(
    name: str,
    lora: Lora | None = None,
    teacher: Teacher | None = None,
    divergence: Divergence | None = None,
    engine: RolloutEngine | None = None,
    optimizer: Callable[..., Optimizer] = lambda params: AdamW(params, lr=1e-3),
    schedule: Callable[[int], float] = lambda step: 1.0,
    samples: int = 1,
    chunk_tokens: int = 16,
    part_tokens: int = 10_000,
    max_new_tokens: int = 9,
    max_prompt_tokens: int = 200,
    seed: int = 0,
    weighting: Weighting | None = None,
) -> SelfDistillation:
    sampling = Sampling(max_new_tokens=max_new_tokens)
    return SelfDistillation(
        student=LanguageModel(name, lora=lora),
        prompts=PromptStyle("{question}", "{question}\n{hint}", max_prompt_tokens=max_prompt_tokens),
        teacher=teacher or Frozen(),
        divergence=divergence or ForwardKL(),
        engine=engine or Drawn(),
        sampling=sampling,
        eval_sampling=sampling,
        verifier=Verifier(),
        optimizer=optimizer,
        lr_scheduler=lambda optimizer: LambdaLR(optimizer, schedule),
        samples=samples,
        eval_samples=2,
        chunk_tokens=chunk_tokens,
        part_tokens=part_tokens,
        seed=seed,
        weighting=weighting,
    )


def trainer(steps: int, **options) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    defaults = {"logger": Memory(), "enable_checkpointing": False, "limit_val_batches": 0, "log_every_n_steps": 1}
    return pl.Trainer(accelerator="cpu", max_steps=steps, **{**quiet, **defaults, **options})


def problems_of(batch_size: int, problems: list[Problem] = SIX, **options) -> ProblemDataModule:
    return ProblemDataModule(Listed(problems), batch_size=batch_size, shuffle_buffer=0, **options)


def fit(module: SelfDistillation, steps: int = 1, batch_size: int = 6, **options) -> Memory:
    """Train; returns what was logged."""
    run = trainer(steps, **options)
    run.fit(module, problems_of(batch_size))
    return run.logger


class Batches:
    """A loader of given batches; a plain list would count as several loaders."""

    def __init__(self, batches: list[list[Problem]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[Problem]]:
        return iter(self.batches)


def fit_batches(module: SelfDistillation, batches: list[list[Problem]], steps: int = 1, **options) -> Memory:
    run = trainer(steps, **options)
    run.fit(module, Batches(batches), Batches([]))
    return run.logger


def weights(module: SelfDistillation) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in module.student.named_parameters()}


@pytest.fixture(scope="module")
def name(tmp_path_factory) -> str:
    return saved_model(tmp_path_factory.mktemp("student"))


# ---------------------------------------------------------------- the loss


def plain_loss(student, teacher, module: SelfDistillation, exposure: float, temperature: float) -> torch.Tensor:
    """Mean KL(teacher || student) per completion token: one unpadded row at a time, all logits, float64."""
    total, tokens = 0.0, 0
    (prompts, rows) = module.engine.calls[-1]
    assert [module.prompts.student(p, module.tokenizer) for p in SIX] == prompts
    for r, completion in enumerate(rows):
        if not completion:
            continue
        problem = SIX[r // module.samples]
        log_probs = []
        hinted = module.prompts.teacher(problem, exposure, module.tokenizer).ids
        for model, prompt in ((teacher, hinted), (student, prompts[r // module.samples])):
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0] / temperature
            log_probs.append(logits[len(prompt) - 1 : len(prompt) - 1 + len(completion)].log_softmax(-1))
        p, q = (torch.distributions.Categorical(logits=x) for x in log_probs)
        total = total + torch.distributions.kl_divergence(p, q).sum()
        tokens += len(completion)
    return total / tokens


@pytest.mark.parametrize(("samples", "temperature"), [(1, 1.0), (2, 0.7)])
def test_loss_and_update_are_those_of_plain_forward_passes(name, samples, temperature):
    module = distillation(
        name,
        divergence=ForwardKL(temperature=temperature),
        engine=Drawn(shortest=0),
        optimizer=lambda params: SGD(params, lr=0.5),
        samples=samples,
        chunk_tokens=7,
    )
    module.configure_model()
    teacher = copy.deepcopy(module.student).double().eval()
    with torch.no_grad():  # a student that has left the teacher
        for p in module.student.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)), alpha=0.02)
    student = copy.deepcopy(module.student).double()
    module.exposure = 0.5
    log = fit(module)
    loss = plain_loss(student, teacher.requires_grad_(False), module, 0.5, temperature)
    assert loss > 0.1
    assert log.values("loss/divergence") == [pytest.approx(loss.item(), rel=1e-5)]
    if temperature == 1:
        assert log.values("mismatch/forward_kl") == [pytest.approx(loss.item(), rel=1e-5)]
    loss.backward()
    expected = {n: (p - 0.5 * p.grad).float() for n, p in student.named_parameters()}
    torch.testing.assert_close(weights(module), expected, rtol=1e-5, atol=1e-6)


def test_one_ratio_per_problem_sets_each_hint(name):
    module = distillation(name)
    module.exposure = [0.0, 1.0, 0.5, 0.0, 1.0, 1.0]
    log = fit(module)
    assert module.seen.exposures == module.exposure
    for problem, ratio, prompt in zip(SIX, module.exposure, module.seen.teacher_prompts):
        assert prompt.hint == {0.0: "", 1.0: problem.solution}.get(ratio, prompt.hint)
        assert (prompt.ids == module.prompts.student(problem, module.tokenizer)) == (ratio == 0)
    assert 0 < len(module.seen.teacher_prompts[2].hint) < len(SIX[2].solution)
    assert log.values("exposure/ratio") == [pytest.approx(3.5 / 6)]


def assert_null_control(module: SelfDistillation, problems: list[Problem]) -> None:
    """At exposure 0 an untouched student's loss is exactly 0, and nothing moves; at 1 the hint is everything."""
    start = None

    class Start(pl.Callback):
        def on_train_start(self, trainer, module):
            nonlocal start
            start = weights(module)

    for exposure in (0.0, 1.0):
        module.exposure = exposure
        run = trainer(1, callbacks=[Start()])
        run.fit(module, problems_of(len(problems), problems))
        hints = [t.hint for t in module.seen.teacher_prompts]
        losses = run.logger.values("loss/divergence")
        if exposure == 0:
            assert losses == [0.0]
            assert run.logger.values("mismatch/forward_kl") == [0.0]
            assert hints == [""] * len(problems)
            torch.testing.assert_close(weights(module), start, rtol=0, atol=0)
        else:
            assert hints == [p.solution.rstrip() for p in problems]
            assert losses[0] > 1e-4


LORA = Lora(rank=2, alpha=4.0)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_exposure_0_gives_a_loss_of_exactly_0(name, lora):
    engine = TransformersEngine()
    assert_null_control(distillation(name, lora, engine=engine, optimizer=lambda p: SGD(p, lr=0.1)), SIX)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_exposure_0_gives_a_loss_of_exactly_0_with_the_embedded_model(lora):
    if not MODEL_DIR.is_dir():
        pytest.skip("the embedded model has not been trained yet")
    from lit_atex.embedded.domain import make_problem

    module = distillation("embedded", lora, engine=TransformersEngine(), optimizer=lambda p: SGD(p, lr=0.1))
    assert_null_control(module, [make_problem(i, 4, 0.0, "train", 0) for i in range(4)])


# ---------------------------------------------------------------- one optimizer step, however it is cut


@pytest.mark.parametrize("steps", [1, 4])
def test_accumulation_changes_nothing(name, steps):
    """Six problems: windows of 4 and 2, so the last window of a pass is a short one."""
    logs, finals = [], []
    for batch_size, accumulate in ((4, 1), (1, 4), (2, 2)):
        module = distillation(name, optimizer=lambda params: SGD(params, lr=0.3))
        logs.append(fit(module, steps, batch_size, accumulate_grad_batches=accumulate))
        finals.append(weights(module))
        assert module.global_step == steps
    tokens = [len(r) for _, rows in module.engine.calls for r in rows]
    assert len(set(tokens[:4])) > 1  # else a mean per micro-batch would pass too
    for log, final in zip(logs[1:], finals[1:]):
        torch.testing.assert_close(final, finals[0], rtol=1e-5, atol=1e-6)
        for value in ("loss/divergence", "mismatch/forward_kl", "length/mean", "throughput/problems_per_step"):
            assert log.values(value) == pytest.approx(logs[0].values(value), rel=1e-4)
            assert len(log.values(value)) == steps


def test_schedule_and_logs_count_optimizer_steps(name):
    module = distillation(name, optimizer=lambda p: SGD(p, lr=0.1), schedule=lambda step: 1 / (1 + step))
    log = fit(module, 4, batch_size=1, accumulate_grad_batches=2)
    assert log.values("loss/lr") == [pytest.approx(0.1 / (1 + step)) for step in range(4)]
    assert log.values("loss/skipped_steps") == [0.0] * 4


def test_gradient_clipping_acts_on_the_mean_gradient(name):
    module = distillation(name, optimizer=lambda p: SGD(p, lr=1.0))
    module.configure_model()
    start = weights(module)
    log = fit(module, batch_size=1, accumulate_grad_batches=6, gradient_clip_val=1e-3)
    norm = math.sqrt(sum(float((p - start[n]).double().square().sum()) for n, p in weights(module).items()))
    assert norm == pytest.approx(1e-3, rel=1e-2)
    free = distillation(name, optimizer=lambda p: SGD(p, lr=1.0))
    free_log = fit(free, batch_size=1, accumulate_grad_batches=6, gradient_clip_val=1e3)
    norm = math.sqrt(sum(float((p - start[n]).double().square().sum()) for n, p in weights(free).items()))
    assert 1e-2 < norm < 1e3
    # What is logged is the norm of the mean gradient, before clipping.
    assert log.values("gradient/norm") == pytest.approx([norm], rel=1e-4)
    assert free_log.values("gradient/norm") == pytest.approx([norm], rel=1e-4)


def test_weights_that_are_trained_in_half_precision_are_said_to_hardly_learn(name):
    module = distillation(name)
    module.configure_model()
    module.student.bfloat16()
    with pytest.warns(UserWarning, match=r"100% .* bfloat16.*dtype to float32.*bf16-mixed.*lora"):
        module.configure_optimizers()
    adapters = distillation(name, LORA)
    adapters.configure_model()
    for weight in adapters.student.parameters():
        if not weight.requires_grad:
            weight.data = weight.data.bfloat16()
    adapters.configure_optimizers()  # no warning, which would be an error here


def test_a_precision_that_cannot_be_is_refused(name):
    for precision, why in (
        ("16-mixed", "cannot hold the sum"),
        ("bf16-true", "would convert the student and not its teacher"),
    ):
        module = distillation(name)
        module.trainer = SimpleNamespace(precision=precision, strategy=object())
        with pytest.raises(ValueError, match=rf"trainer\.precision: {precision} {why}.*bf16-mixed"):
            module.setup("fit")


def test_overfit_batches_is_refused_with_what_to_do_instead(name):
    with pytest.raises(ValueError, match=r"trainer\.overfit_batches .* data\.train\.init_args\.size"):
        fit(distillation(name), overfit_batches=1)


def test_a_schedule_that_cannot_be_followed_is_refused_at_once(name):
    module = distillation(name)
    module.make_scheduler = ReduceLROnPlateau
    with pytest.raises(ValueError, match=r"model\.lr_scheduler: ReduceLROnPlateau reads a metric.*OneCycleLR"):
        fit(module)
    module = distillation(name)
    module.make_scheduler = lambda optimizer: OneCycleLR(optimizer, 1e-3, total_steps=3)
    with pytest.raises(ValueError, match=r"OneCycleLR ends at step 3, and trainer\.max_steps is 4: set .*total_steps"):
        fit(module, 4)
    with pytest.raises(ValueError, match=r"OneCycleLR ends at step 3, and trainer\.max_steps sets no end: set it to 3"):
        fit(module, -1, max_epochs=9)  # how many steps these are is known when they are done


def test_warm_up_and_cosine_from_a_config(name):
    """What base.yaml's comment says; the oracle is the formula: half a cosine up, half a cosine down to nothing."""
    base = Path(__file__).parents[1] / "configs/base.yaml"
    line = next(line for line in base.read_text(encoding="utf-8").splitlines() if line.startswith("  lr_scheduler:"))
    given = yaml.safe_load("{" + line.partition("{")[2])
    words = ["--model.lr_scheduler", "OneCycleLR", *(f"--model.lr_scheduler.{k}={v}" for k, v in given.items())]
    told = resolve(["fit", "--config", str(base), *words])
    assert told["model"]["lr_scheduler"]["class_path"] == "torch.optim.lr_scheduler.OneCycleLR"
    assert {k: told["model"]["lr_scheduler"]["init_args"][k] for k in given} == given
    total, warm, top = 12, 3, given["max_lr"]
    module = distillation(name)
    module.make_scheduler = lambda optimizer: OneCycleLR(
        optimizer, **given | {"total_steps": total, "pct_start": warm / total}
    )
    found = fit(module, total, max_epochs=-1).values("loss/lr")
    start, end, peak = top / 25, top / 25 / 1e4, warm - 1
    up = [start + (top - start) * (1 - math.cos(math.pi * i / peak)) / 2 for i in range(warm)]
    down = [end + (top - end) * (1 + math.cos(math.pi * i / (total - warm))) / 2 for i in range(1, total - warm + 1)]
    assert found == pytest.approx(up + down, rel=1e-9)


def test_bf16_mixed_runs_and_stays_near_float32(name):
    logs = {}
    for precision in ("32-true", "bf16-mixed"):
        module = distillation(name)
        logs[precision] = fit(module, 3, 3, precision=precision).values("loss/divergence")
        assert {p.dtype for p in module.student.parameters()} == {torch.float32}
        assert all(torch.isfinite(p).all() for p in module.student.parameters())
    assert logs["bf16-mixed"] == pytest.approx(logs["32-true"], rel=0.1)
    assert logs["bf16-mixed"] != logs["32-true"]


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_bf16_mixed_trains_every_weight(name, lora):
    """Autocast must not hand the student's own pass a cast that was made without a graph in the rollouts."""
    module = distillation(name, lora, engine=TransformersEngine(), optimizer=lambda p: SGD(p, lr=0.1))
    grads = {}

    class Look(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            grads.update((n, p.grad) for n, p in module.student.named_parameters() if p.requires_grad)

    fit(module, precision="bf16-mixed", callbacks=[Look()])
    assert grads
    assert all(g is not None for g in grads.values())
    assert all(bool(g.any()) for n, g in grads.items() if "lora_A" not in n)  # A has no gradient while B is 0


# ---------------------------------------------------------------- rollouts


def test_rollouts_depend_on_seed_step_problem_and_sample_alone(name):
    module = distillation(name, engine=TransformersEngine(), samples=3, max_new_tokens=12)
    module.configure_model()

    def sample(problems: list[Problem], module: SelfDistillation = module) -> list[list[int]]:
        module.window.clear()
        rollouts = module.rollout(problems, [module.prompts.student(p, module.tokenizer) for p in problems])
        return [row[:n].tolist() for row, n in zip(rollouts.ids, rollouts.lengths)]

    together = sample(SIX)
    assert sample(SIX) == together
    assert [row for p in SIX for row in sample([p])] == together
    assert sample(SIX[::-1]) == [row for i in range(5, -1, -1) for row in together[3 * i : 3 * i + 3]]
    assert len({tuple(row) for row in together[:3]}) == 3  # samples of one problem differ
    other = distillation(name, engine=TransformersEngine(), samples=3, max_new_tokens=12, seed=1)
    other.configure_model()
    assert all(a != b for a, b in zip(sample(SIX, other), together))


class OwnRollouts(SelfDistillation):
    def rollout(self, problems, prompts):
        return Rollouts.of([[40 + len(prompt), 41, 0] for prompt in prompts], self.end_ids, self.device)


def test_a_subclass_makes_its_rollouts_otherwise(name):
    module = distillation(name)
    module.__class__ = OwnRollouts
    fit(module)
    assert module.seen.rollouts.lists() == [[40 + len(prompt), 41, 0] for prompt in module.seen.student_prompts]


def test_rollouts_change_with_the_optimizer_step_not_with_the_micro_batch(name):
    """A problem that comes twice in a step is sampled anew, in one batch or in two."""
    cut, whole = distillation(name), distillation(name)
    fit_batches(cut, [[SIX[0]]] * 4, 2, accumulate_grad_batches=2)
    fit_batches(whole, [[SIX[0]] * 2] * 2, 2)
    apart, together = ([row for _, rows in module.engine.calls for row in rows] for module in (cut, whole))
    assert apart == together
    assert len({tuple(row) for row in apart}) == 4


# ---------------------------------------------------------------- nothing to learn from


def test_a_step_without_any_token_changes_no_weight(name):
    optimizer = lambda params: AdamW(params, lr=0.01, weight_decay=0.1)  # noqa: E731  has momentum and decay
    module = distillation(name, engine=Drawn(empty_calls=(2,)), optimizer=optimizer)
    kept = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            kept.append((weights(module), module.feedback))

    log = fit(module, 4, callbacks=[Look()])
    (_, _), (before, _), (empty, feedback), (after, _) = kept
    torch.testing.assert_close(empty, before, rtol=0, atol=0)
    assert any(not torch.equal(after[n], empty[n]) for n in after)
    assert log.values("length/share_empty") == [0.0, 0.0, 1.0, 0.0]
    assert log.values("loss/divergence")[2] == 0.0
    assert log.values("loss/skipped_steps") == [0.0] * 4
    assert feedback.mean_length == 0
    assert feedback.verdicts == [Verdict.UNPARSED] * 6


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_scripted_engine_that_says_nothing(name, lora):
    module = distillation(name, lora, engine=ScriptedEngine([[]]))
    module.configure_model()
    before = weights(module)
    log = fit(module, 2, precision="bf16-mixed")
    torch.testing.assert_close(weights(module), before, rtol=0, atol=0)
    assert log.values("length/share_empty") == [1.0, 1.0]


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_an_engine_of_the_users_is_looked_at(name, stage):
    module = distillation(name, engine=ScriptedEngine([[3, 259]]))
    data = problems_of(6, SIX[:3], validation={"v": Listed(SIX[3:])})
    with pytest.raises(ValueError, match=r"model\.engine: ScriptedEngine\.generate must return .*ids from 3 to 259"):
        getattr(trainer(1, limit_val_batches=1), stage)(module, data)


class Twice(SGD):
    """Asks for two gradients a step, as sharpness-aware minimisation does."""

    def step(self, closure=None):
        closure()
        return super().step(closure)


def test_an_optimizer_that_evaluates_a_step_several_times_is_refused(name):
    with pytest.raises(ValueError, match=r"model\.optimizer: LBFGS evaluates"):
        fit(distillation(name, optimizer=torch.optim.LBFGS))
    with pytest.raises(ValueError, match=r"model\.optimizer: Twice evaluates"):
        fit(distillation(name, optimizer=lambda params: Twice(params, lr=0.1)))
    with pytest.raises(ValueError, match=r"model\.optimizer: Invalid learning rate: -1"):
        fit(distillation(name, optimizer=lambda params: SGD(params, lr=-1.0)))


def test_a_run_without_anything_to_train_on_ends_with_an_error(name):
    with pytest.raises(ValueError, match=r"no problem of the first 3 optimizer steps could .*max_prompt_tokens"):
        fit(distillation(name, max_prompt_tokens=1), 5)


def test_long_prompts_in_a_row_end_no_run_that_has_trained(name):
    module = distillation(name)
    assert len(fit_batches(module, [SIX, [], [], [], [], SIX], 6).values("loss/divergence")) == 2
    assert (module.skipped.total, module.skipped.in_a_row) == (4, 0)


def test_a_teacher_does_not_move_in_a_step_without_rollouts(name):
    module = distillation(name, teacher=Ema(0.5), optimizer=lambda p: SGD(p, lr=0.5))
    averages = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            averages.append(torch.cat([p.flatten() for p in module.teacher._copy.parameters()]))

    log = fit_batches(module, [SIX, [], SIX], 3, callbacks=[Look()])
    assert torch.equal(averages[0], averages[1])
    assert not torch.equal(averages[1], averages[2])
    assert log.values("loss/skipped_steps") == [0.0, 1.0, 1.0]
    assert len(log.values("loss/divergence")) == len(log.values("competence/correct")) == 2


def test_an_interrupted_step_leaves_nothing_to_the_next_training(name):
    class Interrupt(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            raise RuntimeError("here")

    module, fresh = (distillation(name, optimizer=lambda p: SGD(p, lr=0.0)) for _ in range(2))
    with pytest.raises(RuntimeError, match="here"):
        fit_batches(module, [SIX[:2], SIX[2:4]], accumulate_grad_batches=2, callbacks=[Interrupt()])
    logs = [fit_batches(m, [SIX[:2], SIX[2:4]], accumulate_grad_batches=2) for m in (module, fresh)]
    for metric in ("loss/divergence", "gradient/norm", "throughput/problems_per_step"):
        assert logs[0].values(metric) == logs[1].values(metric)


def test_another_problems_hint_needs_another_problem(name):
    module = distillation(name)
    module.prompts = PromptStyle("{question}", "{question}\n{hint}", hint="other", max_prompt_tokens=200)
    with pytest.raises(ValueError, match=r"data\.batch_size to 2"):
        fit(module, batch_size=1)
    assert len(fit(module, batch_size=2).values("loss/divergence")) == 1


def test_an_empty_batch_is_no_batch_at_all(name):
    finals = []
    for batches in ([SIX[:2], [], SIX[2:4], []], [SIX[:2], SIX[2:4]]):
        module = distillation(name, optimizer=lambda p: SGD(p, lr=0.3))
        log = fit_batches(module, batches, accumulate_grad_batches=len(batches))
        finals.append((weights(module), log.values("loss/divergence"), log.values("length/mean")))
    torch.testing.assert_close(finals[0], finals[1], rtol=1e-6, atol=1e-7)
    log = fit_batches(distillation(name), [[]])
    assert log.values("loss/skipped_steps") == [1.0]
    assert log.values("loss/divergence") == []


def test_prompts_that_are_too_long_are_skipped_and_counted(name, caplog):
    limit = max(len(distillation(name).prompts.student(p, byte_tokenizer())) for p in SIX if p.id != "d")
    assert len(distillation(name).prompts.student(SIX[3], byte_tokenizer())) > limit
    module = distillation(name, max_prompt_tokens=limit)
    module.exposure = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    log = fit(module)
    assert log.values("data/prompt_too_long") == [1.0]
    assert module.feedback.problem_ids == ["a", "b", "c", "e", "f"]
    assert module.feedback.exposures == [0.0, 0.1, 0.2, 0.4, 0.5]
    assert "['d']" in caplog.text
    assert "max_prompt_tokens" in caplog.text
    nothing = distillation(name, max_prompt_tokens=1)
    log = fit(nothing)
    assert log.values("data/prompt_too_long") == [6.0]
    assert nothing.engine.calls == []


# ---------------------------------------------------------------- steps that go wrong


class Spoiled(ForwardKL):
    """NaN in the micro-batches with these numbers: in the value, or in the gradient alone."""

    def __init__(self, *calls: int, gradient_only: bool = False) -> None:
        super().__init__()
        object.__setattr__(self, "plan", (calls, gradient_only, []))

    def contributions(self, log_p, log_q):
        calls, gradient_only, seen = self.plan
        seen.append(None)
        terms = super().contributions(log_p, log_q)
        if len(seen) - 1 not in calls:
            return terms
        return terms + (log_q - log_q.detach()).abs().sqrt() if gradient_only else terms * math.nan


@pytest.mark.parametrize("gradient_only", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_is_not_finite_is_skipped_and_named(name, caplog, gradient_only, accumulate):
    caplog.set_level(logging.WARNING, "lit_atex")
    spoiled = Spoiled(accumulate * 1, gradient_only=gradient_only)  # the first micro-batch of optimizer step 1
    module = distillation(name, divergence=spoiled, chunk_tokens=1000)
    kept = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            if not trainer.fit_loop._should_accumulate():
                kept.append((weights(module), module.feedback))

    log = fit(module, 3, 3 if accumulate == 1 else 1, accumulate_grad_batches=accumulate, callbacks=[Look()])
    assert len(kept) == 3
    assert any(not torch.equal(kept[2][0][n], kept[1][0][n]) for n in kept[0][0])
    torch.testing.assert_close(kept[1][0], kept[0][0], rtol=0, atol=0)
    assert [f is None for _, f in kept] == [False, True, False]
    assert kept[2][1].step == 2
    assert module.skipped.total == 1
    assert log.values("loss/skipped_steps") == [0.0, 1.0, 1.0]
    ids = ["d", "e", "f"] if accumulate == 1 else ["c", "d"]
    assert f"step 1 skipped: loss or gradient is not finite; problems: {ids}" in caplog.text
    assert all(math.isfinite(v) for v in log.values("loss/divergence"))


def test_three_bad_steps_in_a_row_stop_the_run(name):
    module = distillation(name, divergence=Spoiled(0, 1, 3, 4, 5), chunk_tokens=1000)
    module.configure_model()
    start = weights(module)
    with pytest.raises(FloatingPointError, match=r"3 optimizer steps in a row.*learning rate.*gradient_clip_val"):
        fit(module, 10)
    assert module.skipped.total == 5
    assert module.global_step == 5
    assert any(not torch.equal(p, start[n]) for n, p in weights(module).items())  # step 2 was a good one


class BrokenTeacher(Frozen):
    def attach(self, student):
        super().attach(student)
        torch.nn.init.constant_(self._copy.model.norm.weight, math.nan)


@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL()])
def test_a_teacher_that_is_not_finite_is_told_from_a_loss(name, caplog, divergence):
    told = "what the teacher scored was not finite in 3 optimizer steps.*look at model.teacher"
    with pytest.raises(FloatingPointError, match=told):
        fit(distillation(name, teacher=BrokenTeacher(), divergence=divergence), 10)
    assert "step 0 skipped: what the teacher scored is not finite" in caplog.text


def test_a_model_that_cannot_be_sampled_from_is_skipped_counted_and_stops_the_run(name, caplog):
    module = distillation(name, engine=TransformersEngine())
    module.configure_model()
    torch.nn.init.constant_(module.student.model.norm.weight, math.nan)
    with pytest.raises(FloatingPointError, match="3 optimizer steps in a row"):
        fit(module, 5)
    assert module.skipped.total == 3
    assert "student logits are not finite at completion token 0" in caplog.text
    assert "problems: ['a'" in caplog.text


def test_prompts_keep_to_the_models_context(name, caplog):
    long = Problem("long", "1+1 " * 40, "Step one.\n" * 200 + "#### 2", "2", "six", "1")
    module = distillation(name)
    module.configure_model()
    seen = module.prompts.teacher(long, 1.0, module.tokenizer, module.train_room)
    assert len(seen.ids) <= module.train_room < len(module.tokenizer(long.solution)["input_ids"])
    assert seen.truncated
    assert seen.hint
    module.exposure = 1.0
    assert fit_batches(module, [[long, SIX[0]]]).values("teacher/truncated") == [1.0]
    huge = long._replace(id="huge", question="1+1 " * 400)
    rows = {row["id"]: row for row in module.answer([SIX[0], huge, SIX[1]])}
    assert list(rows) == ["a", "huge", "b"]
    assert set(rows["huge"]["verdicts"]) == {"unparsed"}
    assert set(rows["huge"]["completions"]) == {""}
    assert rows["huge"]["prompt_tokens"] > 512
    alone = {row["id"]: row for row in module.answer([SIX[0], SIX[1]])}
    assert all(alone[i]["completions"] == rows[i]["completions"] for i in ("a", "b"))
    assert "['huge']" in caplog.text


def test_completions_that_fill_the_context_are_refused(name):
    module = distillation(name, max_new_tokens=512)
    with pytest.raises(ValueError, match=r"model\.(eval_)?sampling\.max_new_tokens=512 leaves no room"):
        module.configure_model()


@pytest.mark.parametrize("key", ["samples", "chunk_tokens", "part_tokens"])
def test_numbers_out_of_range_name_their_key(name, key):
    with pytest.raises(ValueError, match=rf"model\.{key} must be at least 1"):
        distillation(name, **{key: 0})


def test_dropout_is_drawn_anew_at_each_step_and_alike_in_each_run(name):
    lora = Lora(rank=2, dropout=0.5)
    finals = []
    for noise in (1, 2):
        torch.manual_seed(noise)  # what happened before must not matter, not even to the new adapters
        module = distillation(name, lora, engine=Drawn(), optimizer=lambda p: SGD(p, lr=0.0))
        module.configure_model()
        with torch.no_grad():
            for n, p in module.student.named_parameters():
                if "lora_B" in n:
                    p.fill_(0.1)
        finals.append(fit_batches(module, [SIX[:2], SIX[:2]], 2).values("loss/divergence"))
    assert finals[0] == finals[1]
    assert finals[0][0] != finals[0][1]


# ---------------------------------------------------------------- a run without an end


def test_a_schedule_needs_the_length_of_the_run_and_a_fixed_exposure_does_not(name):
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            trainer.should_stop = trainer.global_step == 2

    endless = {"max_epochs": -1}
    log = fit(distillation(name), -1, callbacks=[ExposureControl(Fixed(0.5)), Stop()], **endless)
    assert log.values("exposure/ratio") == [0.5, 0.5]
    with pytest.raises(ValueError, match=r"trainer\.max_steps"):
        fit(distillation(name), -1, callbacks=[ExposureControl(Scheduled()), Stop()], **endless)


# ---------------------------------------------------------------- evaluation


def test_validation_logs_the_results_of_each_set(name):
    """An answer in a box, said by script: two of six problems have it."""
    box = byte_tokenizer()("\\boxed{5}", add_special_tokens=False)["input_ids"]
    module = distillation(name, engine=ScriptedEngine([[*box, 0], box[:3]]))
    data = problems_of(2, SIX[4:], validation={"one": Listed(SIX[:3]), "two": Listed(SIX[3:4])}, eval_batch_size=2)
    run = trainer(1, limit_val_batches=1.0)
    metrics = run.validate(module, data, verbose=False)
    assert len(metrics) == 2
    logged = {k: v for m in metrics for k, v in m.items()}
    assert logged["validation/one/avg@2"] == pytest.approx(1 / 6)  # of three problems one, in one of two samples
    assert logged["validation/one/pass@2"] == pytest.approx(1 / 3)
    assert logged["validation/two/avg@2"] == 0
    assert logged["validation/mean"] == pytest.approx(1 / 12)  # what checkpoint.monitor means by it
    assert logged["validation/one/cut"] == pytest.approx(0.5)
    rows = run.predict(module, problems_of(2, SIX[4:], test={"one": Listed(SIX[:3])}))
    assert [r["id"] for batch in rows for r in batch] == ["a", "b", "c"]
    assert rows[0][0]["verdicts"] == ["correct", "unparsed"]


def test_evaluation_draws_are_paired_between_students(name, tmp_path):
    """The same uniform numbers for the same problem, whatever the step, the set's order and the other problems."""
    first = distillation(name)
    first.configure_model()
    first.answer(SIX)
    first.answer([SIX[4]])
    (_, together), (_, alone) = first.engine.calls
    assert together[8:10] == alone
    generator = seeded(0, "evaluate", "six", "e", 1)
    assert alone[1] == generator_row(generator)
    assert Solver.answer(first, []) == []


def generator_row(generator) -> list[int]:
    length = int(generator.integers(1, 10))
    return generator.integers(3, 259, size=length).tolist()


def test_old_gradients_are_not_kept_through_the_next_forward_pass(name):
    seen = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            seen.append(sum(p.grad is not None for p in module.student.parameters()))

    fit(distillation(name), steps=2, callbacks=[Look()])
    assert seen == [0, 0]


class FSDPStrategy(SingleDeviceStrategy):
    """By its name."""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"precision": "bf16-true"}, r"trainer\.precision: bf16-true would convert the student and not its teacher"),
        ({"strategy": FSDPStrategy("cpu")}, r"trainer\.strategy: sharded parameters"),
    ],
)
def test_what_would_part_student_and_teacher_or_ranks_is_refused(name, options, told):
    with pytest.raises(ValueError, match=told):
        fit(distillation(name), **options)


@pytest.mark.parametrize(("interval", "told"), [(1, True), (2, False), (1.0, False)])
def test_evaluations_between_the_batches_of_a_step_are_named(name, caplog, interval, told):
    fit(distillation(name), batch_size=3, accumulate_grad_batches=2, val_check_interval=interval)
    assert ("trainer.val_check_interval: 1 counts batches, of which a step takes 2" in caplog.text) == told


def test_a_hint_that_rounds_to_nothing_is_evaluated_as_no_hint_is(name):
    """A curve over exposures begins where the student is measured, thinking mode included."""
    module = distillation(name)
    module.configure_model()
    module.prompts.student_thinking, module.prompts.eval_thinking = True, False
    none, some = (module.eval_prompts(SIX, exposure)[0] for exposure in (0.0, 0.01))
    assert some == none != [module.prompts.student(p, module.tokenizer) for p in SIX]
    assert module.eval_prompts(SIX, 1.0)[0] == [module.prompts.teacher(p, 1.0, module.tokenizer).ids for p in SIX]

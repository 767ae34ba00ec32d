"""Run folders as training leaves them, made up: a student whose accuracy has a best exposure. For tests of reports."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import yaml

from lit_atex.evaluation import Evaluation
from lit_atex.types import seeded


def result(accuracy: float, seed: int, problems: int, samples: int, name: str = "level-8", question: str = "") -> dict:
    """One set's entry in results.json, of answers that are drawn: problems differ, seeds differ less."""
    hard = seeded(0, "problems").normal(0, 1.5, problems)
    chance = 1 / (1 + np.exp(-(np.log(accuracy / (1 - accuracy)) + hard)))
    evaluation = Evaluation()
    evaluation.begin([name], samples)
    draws = seeded(seed, "answers", round(accuracy * 1000)).random((problems, samples))
    rows = []
    for i in range(problems):
        right = draws[i] < chance[i]
        rows.append(
            {
                **{
                    "id": f"p{i}",
                    "question": question,
                    "answer": "1",
                    "answers": ["1" if r else "2" for r in right],
                    "lengths": [20] * samples,
                },
                **{"verdicts": ["correct" if r else "wrong" for r in right], "ended": [True] * samples},
            }
        )
    evaluation.add(0, rows)
    evaluation.close()
    return evaluation.results[0].to_json()


def write_run(
    folder: Path,
    strategy: str,
    exposures: list[float],
    seed: int,
    *,
    best: float = 0.6,
    problems: int = 30,
    samples: int = 4,
    every: int = 10,
    tokens: float = 1000.0,
    terseness: float = 0.0,
    finished: bool = True,
    skill: float = 0.9,
    question: str = "",
) -> None:
    """A run that has taken these exposures, a step each, evaluated before it and every so many steps."""
    folder.mkdir(parents=True)
    steps = len(exposures)
    init = {"ratio": exposures[0]} if strategy == "Fixed" else {"seed": seed}
    config = {
        "seed_everything": seed,
        "exposure": {"strategy": {"class_path": f"lit_atex.exposure.{strategy}", "init_args": init}},
        "data": {"train": {"init_args": {"terseness": terseness}}},
        "trainer": {"max_steps": steps},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    manifest = {"seed": seed, "commands": [{"command": [], "began": "2026-01-01T00:00:00"}], "git_commit": "abc"}
    manifest |= {"git_dirty": False, "finished": finished} | ({"optimizer_steps": steps} if finished else {})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    noise = seeded(seed, "noise")
    level, rows, results = 0.0, [], {}
    accuracies = []
    for step, exposure in enumerate(exposures):
        accuracy = min(max(0.4 + level + 0.02 * noise.standard_normal(), 0.05), skill)
        accuracies.append(accuracy)
        if step % every == 0:
            results[f"step-{step}"] = [result(accuracy, seed, problems, samples, question=question)]
        level += (1 - 2.5 * (exposure - best) ** 2) * 0.5 / steps * np.exp(-2 * step / steps) * 2
        rows.append(
            {
                **{"step": step, "loss/divergence": 0.2 * exposure, "exposure/ratio": exposure},
                **{"mismatch/forward_kl": 0.3 * exposure * np.exp(-step / steps), "competence/running": accuracy},
                **{"competence/correct": accuracy, "length/mean": 40 - 10 * exposure * step / steps},
                **{"entropy/student": 0.5 - 0.3 * step / steps, "throughput/completion_tokens_per_s": tokens},
                "time/step": 1.0,
            }
        )
        if step % every == 0:
            rows[-1]["validation/level-8/avg@4"] = accuracy
    results[f"step-{steps}"] = [result(min(max(0.4 + level, 0.05), skill), seed, problems, samples, question=question)]
    (folder / "results.json").write_text(json.dumps(results))
    fields = list(dict.fromkeys(key for row in rows for key in row))
    with open(folder / "metrics.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)

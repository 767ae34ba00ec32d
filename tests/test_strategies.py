"""Every overlay in configs/exposure trains on tiny.yaml, and decides what its strategy says."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from lit_atex.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"
OVERLAYS = sorted((CONFIGS / "exposure").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("overlay", OVERLAYS, ids=[path.stem for path in OVERLAYS])
def test_every_strategy_trains_on_tiny(overlay: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack = [CONFIGS / "base.yaml", overlay, CONFIGS / "tiny.yaml"]
    learns = overlay.stem in ("beta_policy", "bandit")  # both hold a decision for two steps
    words = [*(word for path in stack for word in ("--config", str(path))), "--seed_everything", "5"]
    main(["fit", *words, "--run", str(tmp_path)])
    config = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    draws = learns or overlay.stem == "random"
    assert config["exposure"]["strategy"].get("init_args", {}).get("seed") == (5 if draws else None)  # that of the run
    with open(tmp_path / "metrics.csv", newline="", encoding="utf-8") as file:
        ratios = [float(row["exposure/ratio"]) for row in csv.DictReader(file) if row.get("exposure/ratio")]
    assert len(ratios) == 6
    assert all(0 <= ratio <= 1 for ratio in ratios)
    assert (len(set(ratios)) == 1) == (overlay.stem == "fixed")
    if learns:
        decisions = [json.loads(line) for line in (tmp_path / "decisions.jsonl").read_text().splitlines()]
        assert [d["decision"] for d in decisions] == [0, 1, 2]
        assert ratios == pytest.approx([d["ratio"] for d in decisions for _ in range(2)], abs=1e-6)
        assert "exposure: 3 decisions" in capsys.readouterr().out

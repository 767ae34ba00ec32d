"""`lit-atex inspect`: what it shows of a run, with and without colours, and what it does not let through."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lit_atex.cli import main
from lit_atex.inspection import SCALE, safe, show, sparkline

ROOT = Path(__file__).parents[1]
STACK = ["--config", str(ROOT / "configs/base.yaml"), "--config", str(ROOT / "configs/tiny.yaml")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 6 steps; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    main(["fit", *STACK, "--run", str(folder), "--sample_log.every_n_steps", "2"])
    return folder


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def shown(folder, terminal=False, width=80, **words):
    colours = {"force_terminal": True, "color_system": "truecolor"} if terminal else {}
    console = Console(file=io.StringIO(), width=width, highlight=False, **colours)
    show(folder, console, **words)
    return console.file.getvalue()


def samples(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def refused(*words):
    with pytest.raises(SystemExit) as end:
        main(["inspect", *map(str, words)])
    assert isinstance(end.value.code, str)
    assert end.value.code.startswith("lit-atex: error: ")
    assert "\n" not in end.value.code
    return end.value.code


@pytest.mark.slow
def test_the_command_shows_it_all(run, capsys):
    main(["inspect", str(run)])
    text = capsys.readouterr().out
    assert "\x1b" not in text  # not a terminal
    for word in ("finished", "lit-atex fit --config", "6 optimizer steps; seed 0", "steps 0 to 5", "before and after",
                 "step-0 and step-6", "level-4", "bars under the tokens", "sample 3 of 3 · step 4", "3 of 6 samples",
                 "--step K (there are 0, 2, 4)"):  # fmt: skip
        assert word in text, word


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        main(["inspect", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "The run folder." in text
    assert "--samples" in text


@pytest.mark.slow
def test_the_trace_says_what_metrics_csv_says(run):
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        values = [float(row["mismatch/forward_kl"]) for row in csv.DictReader(file) if row["mismatch/forward_kl"]]
    (line,) = (x for x in shown(run).splitlines() if x.strip().startswith("mismatch "))
    figures = (values[0], values[-1], min(values), max(values))
    assert line.split()[1:] == [sparkline(values), *(f"{v:.3g}" for v in figures)]


@pytest.mark.slow
def test_everything_fits_into_80_columns(run):
    lines = shown(run, every=2).split("before and after")[0].splitlines()
    assert max(map(len, lines)) <= 80
    numbers = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert [row[0] for row in numbers] == ["0", "2", "4"]
    assert "…" not in "".join(lines)


@pytest.mark.slow
def test_samples_of_a_step(run):
    text = shown(run, step=2, samples=9)
    assert "sample 2 of 2 · step 2" in text
    assert text.count("· step 2 ·") == 2
    for row in samples(run)[2:4]:
        assert row["question"] in text
        assert row["hint"] in text
        assert row["verdict"] in text
    assert "sample 1" not in shown(run, samples=0)


@pytest.mark.slow
def test_tokens_are_coloured_by_divergence(copy):
    row = samples(copy)[0] | {"tokens": ["a", "b", "c", "d", "e"], "divergence": [-0.1, 0.05, 0.5, 2.0, 9.0]}
    (copy / "samples.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    line = shown(copy, terminal=True).splitlines()[-1]
    colours = [tuple(int(style[-6:][i : i + 2], 16) for i in (0, 2, 4)) for style in list(SCALE.values())[1:]]
    assert line.startswith("a")
    for letter, (red, green, blue) in zip("bcde", colours):
        assert f"48;2;{red};{green};{blue}m{letter}\x1b[0m" in line
    plain = shown(copy).splitlines()
    assert plain[-2:] == ["abcde", " ▁▄██"]


@pytest.mark.slow
def test_without_colours_a_terminal_shows_bars(run, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert "bars under the tokens" in shown(run, terminal=True)


EVIL = "\x1b[31mred\x1b]0;title\x07 \x9b2J \r\b\x7f [bold]m[/bold] :smile: [link=x]y[/] \u202eesrever\u2028 \ud800 \0"


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_model_says_is_shown_and_not_obeyed(copy, terminal):
    evil = dict.fromkeys(("id", "question", "hint", "completion", "answer", "verdict"), EVIL)
    row = samples(copy)[0] | evil | {"tokens": [EVIL, "\n", EVIL], "divergence": [0.0, 0.5, 2.0]}
    (copy / "samples.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    manifest["commands"][-1]["command"] = ["lit-atex", EVIL]
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    text = shown(copy, terminal=terminal, width=400)
    assert text.count(safe(EVIL)) == 8
    for character in set(EVIL) - set(safe(EVIL)) - ({"\x1b"} if terminal else set()):
        assert character not in text
    assert "\x1b[31mred" not in text
    assert "\x1b]" not in text


@given(st.text())
def test_safe_text_is_printable_and_plain_text_stays(text):
    assert all(c == "\n" or c.isprintable() or c.isspace() for c in safe(text))
    assert not set(safe(text)) & set("\r\t\x0b\x0c\x1b\x85\u2028\u2029")
    letters = "".join(c for c in text if c.isalnum())
    assert safe(letters) == letters


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200))
def test_a_sparkline_has_its_extremes_where_they_are(values):
    line = sparkline(values, width=30)
    assert len(line) == min(30, len(values))
    if len(values) <= 30 and max(values) - min(values) > 1e-3:
        assert line[values.index(max(values))] == "█"
        assert line[values.index(min(values))] == "▁"


# Runs that are not whole


@pytest.mark.slow
def test_numbers_of_each_so_many_steps_whichever_were_logged(copy):
    lines = (copy / "metrics.csv").read_text(encoding="utf-8").splitlines()
    (copy / "metrics.csv").write_text(
        "\n".join([lines[0], *(lines[1 + i] for i in (1, 3, 5))]) + "\n", encoding="utf-8"
    )
    text = shown(copy, samples=0, every=4, width=200)
    table = text[text.index(" step ") : text.index("step-0 and")]
    assert [words[0] for line in table.splitlines() if (words := line.split()) and words[0].isdigit()] == ["1", "5"]


@pytest.mark.slow
def test_a_run_that_is_still_going_or_was_killed(copy):
    with open(copy / "metrics.csv", "a", encoding="utf-8") as file:
        file.write("6,0,1.2e-")
    (copy / "results.json").unlink()
    (copy / "manifest.json").write_text('{"commands": [{"command": ["lit-atex"], "began": "now"}], "finished": false}')
    with open(copy / "samples.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 6, "half a li')
    text = shown(copy)
    assert "not finished: it runs, or was killed" in text
    assert "6 optimizer steps; seed None" in text


@pytest.mark.slow
def test_a_run_that_failed_or_was_stopped(copy):
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    for change, told in (({"stopped": "stopped by x"}, "stopped by x"),
                         ({"finished": False, "error": "E: no"}, "failed: E: no")):  # fmt: skip
        (copy / "manifest.json").write_text(json.dumps(manifest | change), encoding="utf-8")
        assert told in shown(copy)


@pytest.mark.slow
def test_an_evaluation_alone(tmp_path, capsys):
    main(["test", *STACK, "--run", str(tmp_path)])
    capsys.readouterr()
    text = shown(tmp_path, width=200)
    for word in ("evaluated; not trained", "no training step has been logged", "test: 2 completions a problem"):
        assert word in text


@pytest.mark.slow
def test_decisions_of_a_controller(copy):
    decisions = [{"step": 2, "ratio": 0.25, "reward": 0.5}, {"step": 4, "ratio": 0.75, "reward": None}]
    text = "".join(json.dumps(d) + "\n" for d in decisions)
    (copy / "decisions.jsonl").write_text(text, encoding="utf-8")
    lines = {line.split("  ")[0].strip(): line.split() for line in shown(copy).splitlines()}
    assert lines["decided"][-4:] == ["0.25", "0.75", "0.25", "0.75"]
    assert lines["earned"][-4:] == ["0.5"] * 4


def test_what_is_no_run(tmp_path):
    assert "is no run folder" in refused(tmp_path)
    assert "is no run folder" in refused(tmp_path / "nosuch")
    assert "is no run folder" in refused(Path(__file__))
    (tmp_path / "manifest.json").write_text("[]")
    assert "is no run folder" in refused(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    assert "manifest.json is no JSON" in refused(tmp_path)


@pytest.mark.slow
def test_what_is_not_in_the_run(run):
    assert "samples of the steps 0, 2, 4 only" in refused(run, "--step", 3)
    assert "--samples must be at least 0" in refused(run, "--samples", -1)
    assert "--every at least 1" in refused(run, "--every", 0)

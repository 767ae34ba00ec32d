"""A file is whole or not there: whatever fails in between, what was there before stays, and nothing else is left."""

import json

import pytest
from fakes import SIX

from lit_atex import whole
from lit_atex.metrics_csv import MetricsCsv
from lit_atex.resume import find_checkpoint, go_on


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced(tmp_path):
    for text in ("one\n", "zwei\n"):
        whole.write(tmp_path / "a.txt", text)
        assert (tmp_path / "a.txt").read_text(encoding="utf-8") == text
    assert names(tmp_path) == ["a.txt"]


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path):
    (tmp_path / "a.txt").write_text("before")
    (tmp_path / "a.txt.aside").mkdir()  # even root cannot open a folder for writing
    with pytest.raises(OSError, match=r"a\.txt"):
        whole.write(tmp_path / "a.txt", "after")
    assert (tmp_path / "a.txt").read_text() == "before"


def test_a_function_writes_into_the_file_aside(tmp_path):
    whole.write(tmp_path / "a.txt", lambda file: file.write(b"one"))
    assert (tmp_path / "a.txt").read_bytes() == b"one"

    def full(file):
        file.write(b"two")
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 3 vs 9")  # as torch.save has it  # noqa: B904

    def broken(file):
        raise KeyError("no such weight")

    with pytest.raises(OSError, match=r"No space left on device.*a\.txt"):
        whole.write(tmp_path / "a.txt", full)
    with pytest.raises(KeyError, match="no such weight"):
        whole.write(tmp_path / "a.txt", broken)
    assert (tmp_path / "a.txt").read_bytes() == b"one"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_is_replaced(tmp_path):
    for name in ("one", "two"):
        with whole.folder(tmp_path / "student") as aside:
            (aside / name).write_text(name)
        assert names(tmp_path / "student") == [name]
    assert names(tmp_path) == ["student"]


def test_a_folder_that_cannot_be_filled_stays_as_it_was(tmp_path):
    with whole.folder(tmp_path / "student") as aside:
        (aside / "one").write_text("1")
    with pytest.raises(FileNotFoundError), whole.folder(tmp_path / "student") as aside:
        (aside / "no" / "such").write_text("2")
    assert names(tmp_path / "student") == ["one"]
    assert names(tmp_path) == ["student"]


def test_what_is_left_aside_is_swept_away(tmp_path):
    for name in ("checkpoints/last.ckpt.aside", "student.aside/weights", "manifest.json.aside", "mine.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    whole.sweep(tmp_path)
    assert names(tmp_path) == ["checkpoints", "mine.txt"]
    assert names(tmp_path / "checkpoints") == []


@pytest.mark.parametrize("end", ["", '{"step": 2, "te', '{"step": 2, "text": "é'.encode()[:-1].decode("latin-1")])
def test_a_half_line_is_left_out(tmp_path, end):
    rows = [{"step": 0, "text": "a\u2028b"}, {"step": 1, "text": SIX[3].question}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "samples.jsonl").write_bytes(text.encode() + end.encode("latin-1"))
    assert [json.loads(line) for line in whole.lines(tmp_path / "samples.jsonl")] == rows
    go_on(tmp_path, 1)
    assert [json.loads(line) for line in whole.lines(tmp_path / "samples.jsonl")] == rows[:1]


@pytest.mark.parametrize("cut", [1, 2, 3, 8])
def test_a_half_row_of_metrics_is_left_out(tmp_path, cut):
    logger, path = MetricsCsv(str(tmp_path)), tmp_path / "metrics.csv"
    for step in (9, 10, 11):
        logger.log_metrics({"loss": step / 8}, step)
    path.write_bytes(path.read_bytes()[:-cut])
    again = MetricsCsv(str(tmp_path))
    again.go_on_from(10)
    again.log_metrics({"loss": 5.0}, 10)
    assert path.read_text(encoding="utf-8").splitlines() == ["step,loss", "9,1.125", "10,5.0"]


def test_later_evaluations_are_dropped(tmp_path):
    (tmp_path / "outcomes").mkdir()
    (tmp_path / "results.json").write_text('{"step-0": [], "step-20": [], "step-21": [], "test": []}')
    for name in ("step-0.a.jsonl", "step-20.a.jsonl", "step-21.a.rank1.jsonl", "test.a.jsonl"):
        (tmp_path / "outcomes" / name).write_text("")
    go_on(tmp_path, 20)
    assert json.loads((tmp_path / "results.json").read_text()).keys() == {"step-0", "step-20", "test"}
    assert names(tmp_path / "outcomes") == ["step-0.a.jsonl", "step-20.a.jsonl", "test.a.jsonl"]


def test_the_first_checkpoint_is_found_before_there_is_a_last_one(tmp_path):
    assert find_checkpoint(tmp_path, "last") is None
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("last.ckpt.aside", "epoch=0-step=1.ckpt"):
        (folder / name).write_text("")
    assert find_checkpoint(tmp_path, "last") == str(folder / "epoch=0-step=1.ckpt")
    (folder / "last.ckpt").write_text("")
    assert find_checkpoint(tmp_path, "last") == str(folder / "last.ckpt")


def test_a_folder_that_is_a_link_is_emptied_and_stays(tmp_path):
    """As checkpoints on a cluster's other disk."""
    (tmp_path / "disk" / "in").mkdir(parents=True)
    (tmp_path / "disk" / "last.ckpt").write_text("")
    (tmp_path / "disk" / "in" / "of another run").write_text("")
    (tmp_path / "run").mkdir()
    for name in ("checkpoints", "left.aside"):
        (tmp_path / "run" / name).symlink_to(tmp_path / "disk")
    whole.sweep(tmp_path / "run")
    assert names(tmp_path / "run") == ["checkpoints"]
    assert names(tmp_path / "disk") == ["in", "last.ckpt"]
    whole.remove(tmp_path / "run" / "checkpoints")
    assert (tmp_path / "run" / "checkpoints").is_symlink()
    assert names(tmp_path / "disk") == ["in"]
    assert names(tmp_path / "disk" / "in") == ["of another run"]

"""The Hub where it cannot be reached: said soon, with what to do; what is in its cache is read. Nothing is fetched."""

import shutil
import socket
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import datasets
import pytest
from huggingface_hub import close_session, constants

from lit_atex.embedded import MODEL_DIR
from lit_atex.hub import _ask, ask_hub
from lit_atex.models import LanguageModel
from lit_atex.sources import Hub, Parquet

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def waited(tmp_path, monkeypatch):
    """An address where nobody answers, and an empty cache; the seconds that would have been waited."""
    seconds: list[float] = []
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", NOWHERE)
    for module in (constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", seconds.append)
    close_session()
    _ask.cache_clear()
    yield seconds
    close_session()
    _ask.cache_clear()


def test_a_model_that_is_not_in_the_cache(waited, caplog):
    with pytest.raises(ValueError, match=r"model\.student\.init_args\.name='x/y'(.|\n)*hf download NAME --local-dir"):
        LanguageModel("x/y").load()
    assert sum(waited) <= 3
    assert f"{NOWHERE} cannot be reached" in caplog.text
    assert "HF_HUB_OFFLINE=1" in caplog.text


def test_a_model_that_is_in_the_cache(waited, tmp_path, caplog):
    of_model, commit = tmp_path / "hub/models--x--y", "a" * 40
    shutil.copytree(MODEL_DIR, of_model / "snapshots" / commit)
    (of_model / "refs").mkdir()
    (of_model / "refs/main").write_text(commit)
    model, _ = LanguageModel("x/y").load()
    wanted, _ = LanguageModel("embedded").load()
    assert {n: p.sum() for n, p in model.named_parameters()} == {n: p.sum() for n, p in wanted.named_parameters()}
    assert sum(waited) <= 3
    assert f"{NOWHERE} cannot be reached" in caplog.text


def test_a_data_set(waited):
    with pytest.raises(RuntimeError, match=rf"'x/y'.*{NOWHERE} cannot be(.|\n)*--local-dir FOLDER(.|\n)*OFFLINE=1"):
        next(iter(Hub("x/y")))
    assert sum(waited) <= 3


def test_a_data_set_where_datasets_alone_is_told_to_ask_nobody(waited, monkeypatch):
    """HF_DATASETS_OFFLINE=1, with which its own cache is read."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match="'x/y'") as raised:
        next(iter(Hub("x/y")))
    assert "cannot be reached" not in str(raised.value)
    assert not waited


@pytest.mark.parametrize("load", [lambda: LanguageModel("x/y").load(), lambda: next(iter(Hub("x/y")))])
def test_nobody_is_asked_where_the_user_says_so(waited, monkeypatch, load, caplog):
    for module in (constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    with pytest.raises((ValueError, RuntimeError), match="x/y"):
        load()
    assert not waited
    assert "cannot be reached" not in caplog.text


@pytest.mark.parametrize("elsewhere", [None, NOWHERE, "/"])
def test_whatever_it_answers_it_is_there_and_is_asked_once(waited, monkeypatch, elsewhere):
    """Also that its first page is elsewhere, as a mirror's that sends browsers to a login, or round in circles."""
    asked: list[str] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(302 if elsewhere else 403)
            if elsewhere:
                self.send_header("Location", elsewhere)
            self.end_headers()

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        for name in ("x/y", "x", "runs/x/y", str(MODEL_DIR), "x/y"):
            ask_hub(name)
        server.shutdown()
    assert (len(asked), waited) == (1, [])


def test_of_a_local_file_that_is_broken_nothing_is_said_of_the_hub(tmp_path):
    (tmp_path / "broken.parquet").touch()
    with pytest.raises(RuntimeError, match=r"Cannot read .*broken.*ArrowInvalid: Parquet file size is 0") as it:
        next(iter(Parquet(str(tmp_path / "broken.parquet"))))
    assert "hf download" not in str(it.value)


def test_an_answer_that_comes_too_late_names_the_setting_that_waits_longer(waited, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
        with pytest.raises(ConnectionError, match=r"timed out within 0\.1 s, which HF_HUB_ETAG_TIMEOUT sets"):
            ask_hub("x/y")
    assert not waited

"""Runs started by Ray: a real cluster of this machine, which is told that it has two cores and one GPU."""

import json
import os
import signal
import sys
import time

import pytest
import yaml

from lit_atex.commands import main
from lit_atex.executor import Local
from lit_atex.jobs import is_finished
from lit_atex.ray_executor import Ray

pytestmark = pytest.mark.slow
SAYS = (
    "import os, sys, time; print(os.getcwd(), sys.argv[1:], os.environ['OMP_NUM_THREADS'], "
    "'GPU', os.environ.get('CUDA_VISIBLE_DEVICES'), time.time(), flush=True); "
    "time.sleep(float(sys.argv[1])); sys.exit(int(sys.argv[2]))"
)


@pytest.fixture(scope="module")
def cluster():
    import ray

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background, where runs must end too
    ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, object_store_memory=100 * 2**20)
    signal.signal(signal.SIGINT, before)
    yield "auto"
    ray.shutdown()


@pytest.fixture
def where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def started(executor, folder, seconds, code=0, threads=1):
    return executor.start([str(seconds), str(code)], folder, threads)


def ended(handle, within=60.0):
    last = time.monotonic() + within
    while handle.poll() is None and time.monotonic() < last:
        time.sleep(0.05)
    return handle.poll()


def until(condition, within=60.0):
    last = time.monotonic() + within
    while not condition():
        assert time.monotonic() < last
        time.sleep(0.05)


def test_a_run_has_its_place_its_threads_its_log_and_its_exit_code(cluster, where):
    executor = Ray(cluster, gpus=0, program=[sys.executable, "-c", SAYS])
    handles = [started(executor, where / str(code), 0, code, threads=2) for code in (0, 3)]
    assert [ended(handle) for handle in handles] == [0, 3]
    for code in "03":
        said = (where / code / "log.txt").read_text()
        assert said.startswith(f"{os.getcwd()} ['0', '{code}'] 2 GPU")


def test_each_run_has_a_gpu_to_itself_where_there_are_any(cluster, where):
    executor = Ray(cluster, program=[sys.executable, "-c", SAYS])
    assert executor.gpus == 1
    assert executor.room(1) == 1 < Ray(cluster, gpus=0).room(1) == 2 == Ray(cluster, gpus=0.5).room(1)
    handles = [started(executor, where / name, 2) for name in "ab"]  # there are cores for both, but one GPU
    assert [ended(handle) for handle in handles] == [0, 0]
    said = [(where / name / "log.txt").read_text() for name in "ab"]
    assert all("GPU 0" in text for text in said)
    began = sorted(float(text.split()[-1]) for text in said)
    assert began[1] - began[0] >= 2


def test_a_run_that_is_ended_ends_its_process(cluster, where):
    executor = Ray(cluster, gpus=0, program=[sys.executable, "-c", SAYS])
    handle = started(executor, where / "a", 60)
    until(lambda: (where / "a/log.txt").is_file() and (where / "a/log.txt").read_text())
    handle.terminate()
    assert ended(handle) == -signal.SIGTERM
    # The lock on its log lasts as long as the process.
    assert Local([sys.executable, "-c", "pass"]).start([], where / "a", 1).wait(60) == 0


def test_one_that_waits_can_be_ended_too(cluster, where):
    executor = Ray(cluster, gpus=1, program=[sys.executable, "-c", SAYS])
    first, second = started(executor, where / "a", 60), started(executor, where / "b", 0)
    second.terminate()
    assert ended(second) == -signal.SIGTERM
    first.terminate()
    assert ended(first) == -signal.SIGTERM
    assert not (where / "b").exists()


def test_a_run_that_goes_on_elsewhere_is_not_started_again(cluster, where):
    process = Local([sys.executable, "-c", "import time; time.sleep(60)"]).start([], where / "a", 1)
    try:
        handle = started(Ray(cluster, gpus=0), where / "a", 0)
        with pytest.raises(OSError, match="is being written by a run that goes on already"):
            ended(handle)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("threads", "gpus"), [(3, 0.0), (1, 2.0)])
def test_a_run_for_which_no_machine_is_large_enough(cluster, where, threads, gpus):
    with pytest.raises(ValueError, match=r"no machine of Ray's has .* \(--threads, --gpus\)"):
        started(Ray(cluster, gpus), where / "a", 0, threads=threads)


@pytest.mark.parametrize("address", ["localhost:1", "nosuch"])
def test_where_there_is_no_cluster(address):
    with pytest.raises(ValueError, match=f"--ray {address}: no cluster of Ray to join there"):
        Ray(address)


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'lit-atex\[ray\]'"):
        Ray()


def test_a_grid_by_ray(cluster, tmp_path, capsys):
    changes = {"trainer.max_steps": 2, "trainer.val_check_interval": 2}
    grid = {"configs": ["base", "tiny", changes], "seeds": [0, 1], "metrics": ["level-4/avg@2"]}
    path, out = tmp_path / "grid.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(grid))
    main(["ablate", str(path), "--out", str(out), "--ray", cluster, "--gpus", "0"])
    assert "[2/2]" in capsys.readouterr().out
    runs = list(out.glob("seed=*"))
    assert len(runs) == 2
    assert all(is_finished(folder) for folder in runs)
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in runs]
    assert max(m["commands"][0]["began"] for m in manifests) <= min(m["ended"] for m in manifests)  # both at once
    assert (out / "report/report.md").is_file()

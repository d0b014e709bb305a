"""Files appear whole or not at all, where they were meant to, whatever happens meanwhile."""

import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import lamella as lm
from lamella.files import writing
from lamella_layers import Dense

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX only")


def model(units=3, value=0.0):
    made = lm.Sequential([Dense(units)], input_shape=4)
    made.parameters["dense_1.bias"] = np.full(units, value)
    return made


def bias(path):
    return lm.load(path).parameters["dense_1.bias"][0]


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".part")]


def test_links_are_followed_and_permissions_kept(tmp_path):
    (tmp_path / "disk").mkdir()
    model().save(tmp_path / "disk" / "m")
    os.chmod(tmp_path / "disk" / "m", 0o600)
    os.symlink(os.path.join("disk", "m"), tmp_path / "latest")
    model(value=7.0).save(tmp_path / "latest")
    assert os.path.islink(tmp_path / "latest")
    assert bias(tmp_path / "disk" / "m") == 7.0
    assert stat.S_IMODE(os.stat(tmp_path / "disk" / "m").st_mode) == 0o600
    os.symlink("nowhere", tmp_path / "dangling")
    model(value=8.0).save(tmp_path / "dangling")
    assert bias(tmp_path / "nowhere") == 8.0
    before = os.umask(0o027)
    try:
        model().save(tmp_path / "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "new").st_mode) == 0o640
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(OSError, match="symbolic links"):
        model().save(tmp_path / "loop")


def test_what_is_no_regular_file_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(lm.DataError, match="pipe: expected the name of a file, got a pipe, which stays as it is"):
        model().save(tmp_path / "pipe")
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    with pytest.raises(lm.DataError, match="got a device"):
        model().save("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(lm.ArgumentError, match="save: path: expected the path of a file.*, got ''"):
        model().save("")


def test_names_of_any_length(tmp_path):
    name = "n" * 255
    model(value=1.0).save(tmp_path / name)
    assert bias(tmp_path / name) == 1.0
    with pytest.raises(OSError, match="File name too long"):
        model().save(tmp_path / (name + "n"))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    model(value=1.0).save(tmp_path / "m")
    for broken in ("fsync", "replace"):

        def fail(*arguments):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(writing.os, broken, fail)
            with pytest.raises(OSError, match="No space left"):
                model(value=2.0).save(tmp_path / "m")
        assert bias(tmp_path / "m") == 1.0
        assert not leftovers(tmp_path)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="limits of Linux")
def test_a_limit_on_the_size_of_files(tmp_path):
    code = f"""
import resource, signal
import lamella as lm
from lamella_layers import Dense
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = lm.Sequential([Dense(3)], input_shape=4)
model.save({str(tmp_path / "m")!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    lm.Sequential([Dense(3000)], input_shape=4).save({str(tmp_path / "m")!r})
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert lm.load(tmp_path / "m").parameters["dense_1.bias"].shape == (3,)
    assert not leftovers(tmp_path)


def test_kills_leave_a_whole_file_and_no_litter(tmp_path):
    """Processes that save all the time are killed at random moments."""
    seed = int(time.time())
    print("seed", seed)
    rng, path = random.Random(seed), tmp_path / "m"
    model(400).save(path)
    for _ in range(25):
        child = os.fork()
        if child == 0:
            try:
                for k in range(10_000):
                    model(400, value=float(k)).save(path)
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        loaded = lm.load(path).parameters["dense_1.bias"]
        assert (loaded == loaded[0]).all()
    model(400).save(path)
    assert [one.name for one in tmp_path.iterdir()] == ["m"]


def test_two_writers_leave_one_whole_file(tmp_path):
    path, failures = tmp_path / "m", []

    def write(value):
        try:
            for _ in range(20):
                model(400, value).save(path)
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(float(value),)) for value in (1, 2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            loaded = lm.load(path).parameters["dense_1.bias"]
            assert loaded[0] in (1.0, 2.0)
            assert (loaded == loaded[0]).all()
    for writer in writers:
        writer.join()
    assert failures == []
    assert [one.name for one in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("call", ["open", "fsync", "replace", "close"])
def test_ctrl_c_leaves_the_old_file_or_the_new(tmp_path, monkeypatch, call):
    model(value=1.0).save(tmp_path / "m")
    real = getattr(os, call)

    def interrupted(*arguments):
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(writing.os, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        model(value=2.0).save(tmp_path / "m")
    monkeypatch.undo()
    assert bias(tmp_path / "m") == (1.0 if call in ("open", "fsync") else 2.0)
    model(value=3.0).save(tmp_path / "m")
    assert bias(tmp_path / "m") == 3.0

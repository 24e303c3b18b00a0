"""Runs: one at a time in each folder, none that is lost to the next, and none that Ctrl-C breaks off in mid-step."""

import itertools
import os
import signal
import threading
from contextlib import contextmanager

from minicnet.checkpoints import CheckpointError

LOCK = []  # the open descriptor of the run folder that this process has locked


def open_run(out, files, resume):
    """Makes the run folder, locks it, and moves an earlier run's files aside unless that run is to be resumed.

    Raises CheckpointError if the folder cannot be used, another run is going on in it, or there is none to resume.
    """
    try:
        if resume and not (out / "base.pt").exists():
            raise CheckpointError(f"there is no run to resume in {out}: leave --resume out to start one")
        out.mkdir(parents=True, exist_ok=True)
        _lock(out)
        if not resume and (earlier := [out / name for name in files if (out / name).exists()]):
            aside = next(folder for i in itertools.count(1) if not (folder := out / f"earlier-{i}").exists())
            aside.mkdir()
            for path in earlier:
                path.rename(aside / path.name)
            print(f"an earlier run was here: it is in {aside} now")
    except OSError as error:
        raise CheckpointError(f"cannot use {out} as the run folder ({error.strerror}): choose another --out") from error


def _lock(folder):
    """Keeps other processes out until this one ends or locks another folder. Raises CheckpointError if one is in."""
    while LOCK:
        os.close(LOCK.pop())
    try:
        import fcntl
        LOCK.append(os.open(folder, os.O_RDONLY))  # the folder itself is locked: no lock file can be left behind
        fcntl.flock(LOCK[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CheckpointError(f"another run is going on in {folder}: let it end, or choose another --out") from None
    except (ImportError, OSError):  # Windows and some network disks have no such locks
        pass


@contextmanager
def deferred_interrupt():
    """Within, a first Ctrl-C only fills the list that this yields, so that the step can end; a second stops at once."""
    requests = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread hears of Ctrl-C
        yield requests
        return

    def remember(number, frame):
        if requests:
            raise KeyboardInterrupt
        requests.append(number)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield requests
    finally:
        signal.signal(signal.SIGINT, before)

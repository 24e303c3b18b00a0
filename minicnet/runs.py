"""Run folders hold one run at a time and keep earlier ones; Ctrl-C waits for the end of a step."""

import itertools
import os
import signal
import threading
from contextlib import ExitStack, contextmanager

from minicnet.checkpoints import check_writable
from minicnet.errors import UserError

LOCK = []  # the open descriptor of the run folder that this process has locked


def open_run(out, files, resume):
    """Make the run folder, lock it, and move an earlier run's files aside unless it is resumed.

    Raises UserError if the folder cannot be used, if another run is going on in it, or if there is
    no run to resume.
    """
    try:
        if resume and not (out / "base.pt").exists():
            raise UserError(f"there is no run to resume in {out}: leave out --resume to start one")
        out.mkdir(parents=True, exist_ok=True)
        _lock(out)
        check_writable(out / files[0])
        for name in files:  # what `write_atomically` leaves behind if it is killed
            for partial in out.glob(f".*{name}.{'[0-9a-f]' * 32}"):
                partial.unlink()
        earlier = [out / name for name in files if (out / name).exists()]
        if earlier and not resume:
            folders = (out / f"earlier-{i}" for i in itertools.count(1))
            aside = next(folder for folder in folders if not folder.exists())
            aside.mkdir()
            for path in earlier:
                path.rename(aside / path.name)
            print(f"an earlier run was in {out}: its files are in {aside} now")
    except OSError as error:
        raise UserError(f"cannot use {str(out):.200} as the run folder ({error.strerror}): choose "
                        "another --out") from error


def _lock(folder):
    """Keep other processes out of a folder until this one ends or locks another folder."""
    while LOCK:
        os.close(LOCK.pop())
    try:
        import fcntl  # not on Windows
        LOCK.append(os.open(folder, os.O_RDONLY))  # the folder itself, so no lock file stays behind
        fcntl.flock(LOCK[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another run is going on in {folder}: wait until it ends, or choose "
                        "another --out") from None
    except (ImportError, OSError):  # Windows and some network disks have no such locks
        pass


@contextmanager
def deferred_interrupt():
    """Defer the first Ctrl-C until the step ends; a second one stops at once.

    Yields a list that is empty until Ctrl-C is pressed.
    """
    requests = []

    def remember(number, frame):
        if requests:
            raise KeyboardInterrupt
        requests.append(number)

    with ExitStack() as at_the_end:
        if threading.current_thread() is threading.main_thread():  # others get no signals
            before = signal.signal(signal.SIGINT, remember)
            at_the_end.callback(signal.signal, signal.SIGINT, before)
        yield requests

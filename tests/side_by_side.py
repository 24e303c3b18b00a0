"""Two processes share the slow tests, which take about half as long then on two cores.

This process runs all fast tests and every other slow one. Meanwhile a second pytest runs the rest
and saves its reports, and at the end this process reports these tests as if it had run them.
"""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

FILE = os.environ.pop("REPORTS_OF_SLOW_TESTS", None)  # only the second process has it
PARENT = os.getppid()
os.environ["OMP_NUM_THREADS"] = "1"  # programs that tests start use one core, too


class First:
    """Start the second process, and report its tests after all others."""

    theirs = ()

    def pytest_runtestloop(self, session):
        shared = [item for item in session.items if item.get_closest_marker("slow")
                  and "alone" not in item.fixturenames]
        option = session.config.option
        # What --pdb, -s and -W ask for must happen here, where somebody sees it.
        if len(shared) > 1 < (os.cpu_count() or 1) and not (
                option.collectonly or option.usepdb or option.pythonwarnings
                or option.capture == "no"):
            self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            self.file = Path(self.folder.name, "reports")
            self.second = subprocess.Popen(  # the cache of failures belongs to this process
                [sys.executable, "-m", "pytest", "-m", "", "-p", "no:cacheprovider",
                 *(item.nodeid for item in shared[1::2])],
                cwd=session.config.rootpath, start_new_session=True, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env={**os.environ, "REPORTS_OF_SLOW_TESTS": str(self.file)})
            self.theirs = shared[1::2]
            session.items.sort(key=self.theirs.__contains__)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item):
        """Report a test of the second process. If that process broke off, run the test here."""
        if item not in self.theirs or self.second.wait() not in (0, 1) or not self.file.exists():
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in pickle.loads(self.file.read_bytes())[item.nodeid]:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    @pytest.fixture
    def alone(self):
        """Let the second process end, because this test measures speed."""
        if self.theirs:
            self.second.wait()

    def pytest_sessionfinish(self):
        if self.theirs:
            self.second.terminate()  # after Ctrl-C it still runs
            self.second.wait()
            self.folder.cleanup()


class Second:
    """Save the reports of the tests. SIGTERM ends it as Ctrl-C does, and so the tests' programs."""

    def pytest_sessionstart(self):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        self.reports = {}

    def pytest_runtest_logreport(self, report):
        self.reports.setdefault(report.nodeid, []).append(report)

    def pytest_runtest_logfinish(self):
        if os.getppid() != PARENT:
            pytest.exit("the first process is gone")

    def pytest_sessionfinish(self):
        Path(FILE).write_bytes(pickle.dumps(self.reports))

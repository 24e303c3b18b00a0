"""Points for tests:  python -m pytest tests/assignments/test_a1.py --points results.json

A test marked @pytest.mark.points(n) is worth n points, and the docstring of its class names the
task. The option prints the points by task and writes them as the JSON that Gradescope reads. On
Linux each scored test runs in a process of its own, so an endless loop or a crash costs the points
of that test alone.
"""

import inspect
import json
import multiprocessing
import signal
import sys
import traceback
from pathlib import Path

import pytest
import torch

TIME_LIMIT = 4  # seconds of computing for a test, which needs a small part of one
PATIENCE = 10  # times as many seconds may pass, because the machine may be busy
PASSED = "passed"
OWN = "own_condition.py"  # the only file to hand in that is not in minicnet/


def pytest_addoption(parser):
    parser.addoption("--points", metavar="JSON",
                     help="print the points by task, and write them to this file")


def pytest_configure(config):
    config.addinivalue_line("markers", "points(n): what passing the test is worth")
    if path := config.getoption("points", default=None):
        config.option.reportchars = "N"  # no list of failures after the points
        config.pluginmanager.register(Scores(path))


class Scores:
    """Keep the score of every test with points. The file is always up to date."""

    def __init__(self, path):
        self.path, self.tests = path, {}

    def pytest_collection_finish(self, session):
        for item in session.items:
            if marker := item.get_closest_marker("points"):
                self.tests[item.nodeid] = {
                    "name": f"{item.cls.__doc__}: {item.name[5:].replace('_', ' ')}",
                    "score": 0, "max_score": marker.args[0], "output": "was not run"}
        self.write()

    def pytest_runtest_logreport(self, report):
        test = self.tests.get(report.nodeid)
        if test and (report.when == "call" or report.failed):
            test.update(score=report.passed * test["max_score"], output=report.longreprtext)
            self.write()

    def write(self):
        with open(self.path, "w") as file:
            json.dump({"tests": list(self.tests.values())}, file, indent=1)

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.section("points")
        tasks = {test["name"].split(": ")[0]: [] for test in self.tests.values()}
        for task in [*tasks, "total"]:
            tests = [test for test in self.tests.values()
                     if task in ("total", test["name"].split(": ")[0])]
            score, most = (sum(test[key] for test in tests) for key in ("score", "max_score"))
            terminalreporter.line(f"{task:<50} {score:>3} / {most}")


def pytest_pyfunc_call(pyfuncitem):
    if not pyfuncitem.get_closest_marker("points"):
        return None
    result = (apart if sys.platform == "linux" else outcome)(pyfuncitem)
    if result != PASSED:
        pytest.fail(result, pytrace=False)
    return True


def apart(item):
    """Run a test in a child process, within its time. Returns what `outcome` returns."""
    def run():
        # These signals end the process, and no `except` can stop it.
        signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE * TIME_LIMIT)
        torch.set_num_threads(1)  # a pool of threads does not survive the fork
        sending.send(outcome(item)[:10_000])  # more would have to be read before the child ends

    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=run)
    child.start()
    child.join()
    if receiving.poll():
        return receiving.recv()
    if -child.exitcode in (signal.SIGPROF, signal.SIGALRM):
        return f"took more than {TIME_LIMIT} seconds: is there a loop that does not end?"
    by = f" by signal {-child.exitcode}" if child.exitcode < 0 else ""
    return f"Python itself was ended{by} while your code ran"


def outcome(item):
    """Run a test. Returns PASSED, or why it failed in a line or two, without the test's code."""
    names = inspect.signature(item.obj).parameters
    try:
        item.obj(**{name: item.funcargs[name] for name in names})
        return PASSED
    except pytest.fail.Exception as hint:
        return str(hint)
    except (Exception, SystemExit) as error:
        place = ""
        for frame in traceback.extract_tb(error.__traceback__):
            path = Path(frame.filename)
            if path.parent.name == "minicnet" or path.name == OWN:
                place = f" ({path.parent.name}/{path.name}, line {frame.lineno}, {frame.name})"
        if isinstance(error, NotImplementedError):
            return f"not written yet{place}"
        return f"your code raised {type(error).__name__}: {error}{place}"

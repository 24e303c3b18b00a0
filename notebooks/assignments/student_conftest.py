"""Tests of the library that reach a function which is still to be written are skipped, and say so."""

import pytest

TO_WRITE = "your code: about"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    scored = item.get_closest_marker("points")
    if report.failed and not scored and (TO_WRITE in str(call.excinfo.value) or TO_WRITE in report.longreprtext):
        skip(report, item)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if report.failed and TO_WRITE in report.longreprtext:
        skip(report, collector)
    return report


def skip(report, node):
    report.outcome, report.longrepr = "skipped", (str(node.path), 1, "Skipped: needs a function that is yours to write")

"""Grade submissions: a folder of them into a table, or one for Gradescope.

    python notebooks/assignments/grade.py a2 submissions/ grades.csv
    python grade.py a2 submission/ results.json --tree student     # what Gradescope runs

From each submission we take only the files named in the assignment, directly in its folder or at
their places. They are put into a fresh student's repository, whose tests run in a process of their
own with a time limit. A file that is missing, or that Python cannot import, is replaced by the
unwritten one, so that it costs its own points and no others. This guards against accidents, not
against malice: submitted code runs with your rights. README.md shows how to use a container.
"""

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from make_student import ASSIGNMENTS, make_tree

TIME_LIMIT = 180  # seconds for the tests of one student
ENVIRONMENT = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
               "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def grade(assignment, submission, fresh, time_limit=TIME_LIMIT):
    """Run the tests on a submission. Returns the tests of `results.json`, and remarks.

    fresh: a student's repository in which nothing is written.
    """
    remarks = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        tree, results = Path(scratch, "student"), Path(scratch, "results.json")
        shutil.copytree(fresh, tree)
        for file in ASSIGNMENTS[assignment]:
            places = [place for place in (submission / file, submission / Path(file).name)
                      if place.is_file()]
            if not places:
                remarks.append(f"no {Path(file).name} was handed in")
                continue
            error = import_error(places[0], file, fresh, time_limit)
            if error is None:
                shutil.copyfile(places[0], tree / file)
            else:
                remarks.append(f"{Path(file).name} cannot be imported ({error}), so it is graded "
                               "as if nothing were written in it")
        tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--points",
                 str(results), f"tests/assignments/test_{assignment}.py"]
        error = run(tests, tree, time_limit)
        if error == "it ran out of time":
            remarks.append(f"stopped after {time_limit} seconds")
        try:
            return json.loads(results.read_text())["tests"], remarks
        except (OSError, ValueError):
            return [], [*remarks, "the tests could not be run"]


def import_error(submitted, file, fresh, time_limit):
    """Return what goes wrong if a submitted file is imported in a copy of `fresh`, or None."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        tree = Path(scratch, "student")
        shutil.copytree(fresh, tree, ignore=shutil.ignore_patterns("*.pt", "*.ipynb"))
        shutil.copyfile(submitted, tree / file)
        folders = [str(tree), str((tree / file).parent)]
        module = Path(file).stem
        if file.startswith("minicnet/"):
            folders, module = folders[:1], f"minicnet.{module}"
        code = f"import sys; sys.path[:0] = {folders}; import {module}"
        return run([sys.executable, "-c", code], tree, time_limit)


def run(command, folder, time_limit):
    """Run a command. Returns None if it succeeds, and otherwise the last line of its errors."""
    process = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               errors="replace", start_new_session=True)
    try:
        errors = process.communicate(timeout=time_limit)[1].strip()
    except subprocess.TimeoutExpired:
        errors = "it ran out of time"
    try:
        os.killpg(process.pid, signal.SIGKILL)  # and whatever it started
    except ProcessLookupError:
        pass
    if process.wait() == 0:
        return None
    return errors.splitlines()[-1] if errors else "Python was ended"


def row(student, tests, remarks):
    """Return a line of the table: the total, the points by task, and the failed tests' hints."""
    points = {"student": student, "total": sum(test["score"] for test in tests)}
    for test in tests:
        task, name = test["name"].split(": ", 1)
        points[task] = points.get(task, 0) + test["score"]
        if test["score"] < test["max_score"]:
            remarks.append(f"{task}, {name}: {test['output']}")
    return {**points, "remarks": "\n".join(remarks)}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assignment", choices=ASSIGNMENTS)
    parser.add_argument("submissions", type=Path, help="a folder with one folder per student; for "
                        "results.json: one student's folder")
    parser.add_argument("results", type=Path, help="a table, or results.json")
    parser.add_argument("--tree", type=Path, help="a student's repository, made before")
    parser.add_argument("--time-limit", type=int, default=TIME_LIMIT, help="seconds per student")
    args = parser.parse_args(argv)
    for folder in filter(None, (args.submissions, args.tree, args.results.absolute().parent)):
        if not folder.is_dir():
            sys.exit(f"error: there is no folder {folder}")
    with tempfile.TemporaryDirectory() as scratch:
        fresh = args.tree
        if not fresh:
            fresh = Path(scratch, "fresh")
            make_tree(args.assignment, fresh)
        if args.results.suffix == ".json":
            tests, remarks = grade(args.assignment, args.submissions, fresh, args.time_limit)
            answer = {"tests": tests, "output": "\n".join(remarks)}
            if not tests:
                answer["score"] = 0  # Gradescope needs a score, or tests that have one
            args.results.write_text(json.dumps(answer, indent=1))
            return
        folders = sorted(path for path in args.submissions.iterdir() if path.is_dir())
        if not folders:
            sys.exit(f"error: {args.submissions} must hold a folder for each student, and has none")
        rows = []
        with ThreadPoolExecutor(os.cpu_count()) as workers:
            graded = workers.map(lambda folder: grade(args.assignment, folder, fresh,
                                                      args.time_limit), folders)
            for folder, (tests, remarks) in zip(folders, graded):
                rows.append(row(folder.name, tests, remarks))
                print(f"{folder.name:<40} {rows[-1]['total']:>3}", flush=True)
                write_table(args.results, rows)  # after each student, in case the run is stopped


def write_table(path, rows):
    columns = {column: None for row in rows for column in row if column != "remarks"}
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [*columns, "remarks"], restval=0)
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()

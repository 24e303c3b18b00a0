"""Grades a folder of submissions, one folder per student, into a table:

    python notebooks/assignments/grade.py a2 submissions/ grades.csv

From a student's folder only the files named in the assignment are taken, directly in it or at their place. They are
put into a fresh student repository, whose tests run in a process of their own with a time limit. That keeps accidents
apart, not malice: the code that students handed in runs with your rights. README.md shows how to use a container.
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

from make_student import ASSIGNMENTS, make_student

TIME_LIMIT = 180  # seconds for one student


def grade(assignment, submission, fresh, time_limit=TIME_LIMIT):
    """Runs the tests on a folder. Returns the entries of `results.json`, and remarks. fresh: a student repository."""
    places = {file: [submission / file, submission / Path(file).name] for file in ASSIGNMENTS[assignment]}
    handed_in = {file: path for file in places for path in places[file] if path.is_file()}
    remarks = [f"no {Path(file).name} was handed in" for file in places if file not in handed_in]
    if not handed_in:
        return [], remarks
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        tree, results = Path(scratch, "student"), Path(scratch, "results.json")
        shutil.copytree(fresh, tree)
        for file, path in handed_in.items():
            shutil.copyfile(path, tree / file)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--points", str(results),
                   f"tests/assignments/test_{assignment}.py"]
        process = subprocess.Popen(command, cwd=tree, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, start_new_session=True,
                                   env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"})
        try:
            process.wait(time_limit)
        except subprocess.TimeoutExpired:
            remarks.append(f"stopped after {time_limit} seconds")
        kill_all_of(process)
        try:
            tests = json.loads(results.read_text())["tests"]
        except (OSError, ValueError):
            tests = []
            remarks.append("the tests could not be run")
    return tests, remarks


def kill_all_of(process):
    """Ends a process, and what it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def row(student, tests, remarks):
    """One line of grades.csv: total, points by task, and what the failed tests say."""
    points = {"student": student, "total": sum(test["score"] for test in tests)}
    for test in tests:
        task, name = test["name"].split(": ", 1)
        points[task] = points.get(task, 0) + test["score"]
        if test["score"] < test["max_score"]:
            remarks.append(f"{task}, {name}: {test['output']}")
    return {**points, "remarks": "\n".join(remarks)}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assignment", choices=ASSIGNMENTS)
    parser.add_argument("submissions", type=Path, help="a folder with one folder per student")
    parser.add_argument("table", type=Path, nargs="?", default=Path("grades.csv"))
    parser.add_argument("--time-limit", type=int, default=TIME_LIMIT, help="seconds for one student")
    args = parser.parse_args(argv)
    if not args.submissions.is_dir():
        sys.exit(f"error: there is no folder {args.submissions}")
    folders, rows = sorted(path for path in args.submissions.iterdir() if path.is_dir()), []
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as workers:
        fresh = Path(scratch, "fresh")
        make_student(args.assignment, fresh)
        graded = workers.map(lambda folder: grade(args.assignment, folder, fresh, args.time_limit), folders)
        for folder, (tests, remarks) in zip(folders, graded):
            rows.append(row(folder.name, tests, remarks))
            print(f"{folder.name:<40} {rows[-1]['total']:>3}", flush=True)
            with open(args.table, "w", newline="") as file:  # after each student: a long run that is stopped has these
                tasks = {column: None for row in rows for column in row if column != "remarks"}
                table = csv.DictWriter(file, [*tasks, "remarks"], restval=0)
                table.writeheader()
                table.writerows(rows)


if __name__ == "__main__":
    main()

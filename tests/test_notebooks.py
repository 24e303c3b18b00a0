"""Every notebook runs from top to bottom and is kept as it ran, and its folded solutions are right.

Running them takes minutes, so all but one are for `pytest -m ""`.
"""

import importlib
import inspect
import pkgutil
import re
import shutil
import textwrap
from operator import attrgetter
from pathlib import Path

import nbformat
import pytest
import torch
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.util import run_sync

import minicnet

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FAST = "04_zero_convolution"  # it has networks, a control and training, so it runs every time
REDUCED = {  # knobs of the parameters cell, turned down for a quick run
    "01_noise": dict(DRAWS=500, DIGITS=200, JUMPS=20),
    "02_sampling": dict(POINTS=1000, FILM=50, STEPS=[2, 5, 20], FLOW_STEPS=100),
    "03_unet": dict(TRAIN_IMAGES=2000, HELD_OUT=20, STEPS=40, BATCH=8, CLASSIFIER_STEPS=60,
                    GUIDANCE=[0, 1, 2], DRAWN=20),
    "04_zero_convolution": dict(BATCH=4, SHOWN=3, STARTS=["zero", 1], TRAIN_STEPS=2, FEW=10,
                                TRAIN_IMAGES=200, EVALUATIONS=1, DRAWN=2, HELD_OUT=4,
                                SAMPLING_STEPS=2),
    "05_controlnet": dict(TRAIN_IMAGES=200, HELD_OUT=8, STEPS=8, BATCH=4, LOG_EVERY=1,
                          SEEDS=[0, 1], ADAMW_STEPS=8, SAMPLING_STEPS=2, TOY_STEPS=20),
    "06_many_conditions": dict(IMAGES=8, SHOWN=3, STEPS=8, STRENGTHS=[0, 1], QUARTERS=[0.25],
                               CLASSIFIER_STEPS=60),
    "07_claims": dict(SEEDS=[0, 1], STEPS=3, BATCH=4, TRAIN_IMAGES=100, IMAGES=12,
                      SAMPLING_STEPS=4, EXPERIMENTS=20),
    "08_clinic": dict(TRAIN_IMAGES=100, HELD_OUT=4, BATCH=4, STEPS=4, EVERY=2, CURED_STEPS=2),
}


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def each(notebooks, slow=()):
    marks = {path: pytest.mark.slow for path in slow}
    return pytest.mark.parametrize("path", [
        pytest.param(path, id=path.stem, marks=marks.get(path, ())) for path in notebooks])


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """A process for notebooks, beside a copy of what they read.

    All notebooks share it, because importing torch takes longest.
    """
    folder = tmp_path_factory.mktemp("copy")
    (folder / "notebooks").mkdir()
    shutil.copytree(ROOT / "minicnet", folder / "minicnet")
    shutil.copytree(ROOT / ".github" / "results", folder / ".github" / "results")
    for helpers in (ROOT / "notebooks").glob("*.py"):
        shutil.copy(helpers, folder / "notebooks")
    manager = AsyncKernelManager(kernel_name="python3")

    def run(notebook):
        reset = nbformat.v4.new_code_cell("%reset -f")  # no name is left of the notebook before
        notebook.cells.insert(0, reset)
        client = NotebookClient(notebook, km=manager, timeout=300)
        client.execute(cwd=str(folder / "notebooks"))  # raises what a cell raises

    yield run
    if manager.has_kernel:
        run_sync(manager.shutdown_kernel)(now=True)


@each(NOTEBOOKS, slow=[path for path in NOTEBOOKS if path.stem != FAST])
def test_a_notebook_runs_from_top_to_bottom(path, kernel):
    notebook = nbformat.read(path, as_version=4)
    parameters = code_cells(notebook)[0]
    for name, value in REDUCED[path.stem].items():
        parameters.source, found = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value!r}",
                                           parameters.source)
        assert found == 1, f"{path.stem} has no parameter {name}"
    solved = fill_in(notebook)
    kernel(notebook)
    printed = "".join(output.get("text", "")
                      for cell in code_cells(notebook) for output in cell.outputs)
    assert [name for name in solved if f"{name}: right" not in printed] == []
    assert "not written yet" not in printed, "a function to write has no solution"


def fill_in(notebook):
    """Write the folded solutions in place of the functions that are left to the student.

    Returns their names.
    """
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    solutions = re.findall(r"<summary>Solution</summary>\n\n```python\n(def (\w+).*?\n)```", text,
                           re.DOTALL)
    for code, name in solutions:
        cell, = (cell for cell in code_cells(notebook)
                 if re.search(rf"\b{name} = (written|tried)\(\s*{name},", cell.source))
        before, rest = cell.source.split(f"def {name}(", 1)
        end = re.search(r"\n\n(?=\S)", rest).start()  # the next line without indentation
        cell.source = before + code + rest[end + 1:]
    return [name for _, name in solutions]


def test_what_a_student_writes_is_compared_with_the_library(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "notebooks")
    written = importlib.import_module("lesson").written
    double, x = (lambda x: 2 * x), torch.arange(3.0)

    def right(x):
        return x + x

    def wrong(x):
        return x * x

    def empty(x):
        ...

    assert written(right, double, x) is right and written(empty, double, x) is double
    said = capsys.readouterr().out
    assert "right: right" in said and "empty: not written yet" in said
    for bad, message in ((wrong, "off by up to 1"), (lambda x: x[:1], "not (3,)"),
                         (lambda x: 1.0, "not a tensor")):
        with pytest.raises(AssertionError, match=re.escape(message)):
            written(bad, double, x)


@each(NOTEBOOKS)
def test_a_notebook_is_kept_with_the_outputs_of_one_run_in_order(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert "parameters" in cells[0].metadata.tags
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs and not any(output.output_type == "error" for output in outputs)
    assert not re.search(r"/(home|root|tmp|work|Users)/", path.read_text()), "an absolute path"
    assert path.stat().st_size < 800_000


@each(NOTEBOOKS)
def test_the_code_that_a_notebook_shows_is_the_code_as_it_is(path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "notebooks")
    for cell in code_cells(nbformat.read(path, as_version=4)):
        shown = "".join(output.get("text", "") + output.get("data", {}).get("text/markdown", "")
                        for output in cell.outputs)
        names = ", ".join(re.findall(r"^ *(?:print\(inspect\.get)?source\(([\w., ]+)\)+$",
                                     cell.source, re.MULTILINE))
        for name in names.split(", ") if names else []:
            code = inspect.getsource(named(name))
            # (In a student's repository the outputs that would show a solution are cleared.)
            assert not shown or code in shown or textwrap.dedent(code) in shown, (
                f"{name} has changed: run {path.name}")


def test_what_a_student_writes_is_tried(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "notebooks")
    tried = importlib.import_module("lesson").tried

    def test(function):
        yield function(1) == 2, "add one"
        yield function(5) == 6, "to every number"

    def right(x):
        return x + 1

    def wrong(x):
        return 2 * x

    def empty(x):
        "Add one."
        ...

    assert tried(right, None, test) is right and tried(empty, right, test) is right
    assert "empty: not written yet" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="wrong: to every number"):
        tried(wrong, right, test)


def named(name):
    """Return what a notebook calls `name`, such as "UNet.forward" or "clinic.PatientA"."""
    first, _, rest = name.partition(".")
    if (ROOT / "notebooks" / f"{first}.py").exists():
        return attrgetter(rest)(importlib.import_module(first))
    for module in pkgutil.iter_modules(minicnet.__path__, "minicnet."):
        if not module.ispkg and hasattr(found := importlib.import_module(module.name), first):
            return attrgetter(name)(found)
    # Students get no experiments, and no notebook 7 either.
    return attrgetter(name)(importlib.import_module("minicnet.experiments.stats"))

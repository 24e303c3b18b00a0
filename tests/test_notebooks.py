"""Every notebook runs from top to bottom and is kept as it ran, and its folded solutions are right.

Running them takes minutes, so all but one are for `pytest -m ""`.
"""

import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "notebooks"))
from lesson import tried, written  # noqa: E402

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
HANDOUTS = sorted((ROOT / "notebooks" / "assignments").glob("*.ipynb"))
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


@pytest.mark.parametrize("path", [
    pytest.param(path, id=path.stem, marks=[] if path.stem == FAST else pytest.mark.slow)
    for path in NOTEBOOKS])
def test_a_notebook_runs_from_top_to_bottom(path):
    notebook = nbformat.read(path, as_version=4)
    parameters = code_cells(notebook)[0]
    assert "parameters" in parameters.metadata.tags
    for name, value in REDUCED[path.stem].items():
        parameters.source, found = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value!r}",
                                           parameters.source)
        assert found == 1, f"{path.stem} has no parameter {name}"
    solved = fill_in(notebook)
    # Each notebook gets a new process, and raises what one of its cells raises.
    NotebookClient(notebook, timeout=300).execute(cwd=str(path.parent))
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
        body_ends = r"\n\n(?=\S)"  # before the next line without indentation
        cell.source = re.sub(rf"def {name}\(.*?{body_ends}", f"{code}\n".replace("\\", r"\\"),
                             cell.source, count=1, flags=re.DOTALL)
    return [name for _, name in solutions]


@pytest.mark.parametrize("path", [*NOTEBOOKS, *HANDOUTS], ids=lambda path: path.stem)
def test_a_notebook_is_kept_with_the_outputs_of_one_run_in_order(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs and not any(output.output_type == "error" for output in outputs)
    assert not any("execution" in cell.metadata for cell in cells), "the times of a run"
    assert not re.search(r"/(home|root|tmp|work|Users)/", path.read_text(encoding="utf-8")), (
        "an absolute path")
    assert path.stat().st_size < 800_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_code_that_a_notebook_shows_is_the_code_as_it_is(path):
    cells = code_cells(nbformat.read(path, as_version=4))
    imports = ast.parse("\n".join(cell.source for cell in cells))
    imports.body = [node for node in imports.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(imports, path.name, "exec"), names := {})
    for cell in cells:
        shown = "".join(output.get("data", {}).get("text/markdown", "") for output in cell.outputs)
        for listed in re.findall(r"^source\((.+)\)$", cell.source, re.MULTILINE):
            for name in listed.split(", "):
                code = textwrap.dedent(inspect.getsource(eval(name, names)))
                assert code in shown, f"{name} has changed: run {path.name}"


def test_what_a_student_writes_is_used_once_it_is_right(capsys):
    def right(x):
        return 0 - x

    def wrong(x):
        return -abs(x)

    def empty(x):
        """Negate."""
        ...

    def tests(function):
        yield function(1) == -1, "the sign changes"
        yield function(-1) == 1, "to plus, too"

    compared, tested = (written, torch.neg, torch.arange(-1.0, 2.0)), (tried, torch.neg, tests)
    for judge, *arguments in (compared, tested):
        assert judge(right, *arguments) is right and judge(empty, *arguments) is torch.neg
        assert re.findall("(.*): (right|not written yet)", capsys.readouterr().out) == [
            ("right", "right"), ("empty", "not written yet")]
    for (judge, *arguments), bad, message in (
            (tested, wrong, "wrong: to plus, too"), (compared, wrong, "wrong is off by up to 2"),
            (compared, lambda x: x[:1], r"shape \(1,\), not \(3,\)"),
            (compared, lambda x: 1.0, "returns float, not a tensor"),
            (compared, lambda x: 1 / 0, "stops with ZeroDivisionError")):
        with pytest.raises(AssertionError, match=message):
            judge(bad, *arguments)

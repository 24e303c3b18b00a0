"""Make an assignment from this repository: what students get, and what the lecturer needs.

    python notebooks/assignments/make_student.py a2 ../a2

writes three things into the new folder ../a2:

    student/         the repository without the functions that students write
    solution/        the same with these functions, and the handout with its model answers
    autograder.zip   for Gradescope: "Configure Autograder", then upload it as it is

The library is the reference solution, and own_condition.py beside this file supplies what it lacks.
In the student's repository, signatures and docstrings stay, because they state the problem. The
solutions of later assignments are taken out as well, and `find_leaks` searches the whole repository
for answers.
"""

import argparse
import ast
import functools
import itertools
import json
import re
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
HERE = "notebooks/assignments"
COPIED = ["LICENSE", "requirements.txt", ".pytest.ini", "minicnet/*.py", "minicnet/data/*.py",
          "tests/assignments/conftest.py", "tests/assignments/checking.py"]
# The order of a course. An assignment comes before the lessons that answer a part of it, and those
# are handed out with its marks. The repository for an assignment holds the lessons before it.
PLAN = ["a1", "01", "02", "a2", "03", "a3", "04", "05", "06", "a4", "07", "08"]


class Blank(NamedTuple):
    """A function to write: its whole body, or the statements from `first` to `last`.

    Both are the text with which a statement begins.
    """

    function: str
    first: str = ""
    last: str = ""


ASSIGNMENTS = {  # name: {file to hand in: its blanks}
    "a1": {
        "minicnet/diffusion.py": [
            Blank("NoiseSchedule.__init__", "alpha_bar =", "alpha_bar ="),
            Blank("NoiseSchedule.add_noise"),
            Blank("NoiseSchedule.predict_x0"),
            Blank("NoiseSchedule.predict_eps"),
            Blank("diffusion_loss"),
            Blank("guided"),
            Blank("sample_ddpm", "x_t = schedule.", "if t > 0"),
            Blank("sample_ddim", "alpha_bar =", "if eta > 0"),
        ],
    },
    "a2": {
        "minicnet/words.py": [Blank("attention_weights"), Blank("attend")],
        "minicnet/unet.py": [
            Blank("timestep_embedding"),
            Blank("ResBlock.forward"),
            Blank("SelfAttention.forward"),
            Blank("CrossAttention.forward"),
            Blank("CrossAttention.weights"),
            Blank("Encoder.rest"),
            Blank("Decoder.forward", "h = middle", "for "),
        ],
    },
    "a3": {
        "minicnet/controlnet.py": [
            Blank("zero_conv"),
            Blank("freeze"),
            Blank("trainable_copy"),
            Blank("ControlledBlock.__init__", "self.", "self.zero_out ="),
            Blank("ControlledBlock.forward"),
            Blank("Control.__add__"),
            Blank("Control.__mul__"),
            Blank("ZeroConvs.forward"),
            Blank("ConditionEncoder.__init__", "super().__init__", "super().__init__"),
            Blank("ControlNet.forward", "skips, middle =", "return "),
        ],
        "minicnet/unet.py": [
            Blank("zeroed"),
            Blank("UNet.forward", "skips = [", "middle ="),
        ],
    },
    "a4": {
        "minicnet/conditions.py": [Blank("depth")],
        "minicnet/evaluation.py": [Blank("depth_error")],
        f"{HERE}/own_condition.py": [
            Blank("condition"), Blank("measure"), Blank("new_control"), Blank("training_model"),
            Blank("with_edges"),
        ],
    },
}
# Functions of a later assignment that stay, because no base can be built or loaded without them.
NEEDED = {"zeroed", "freeze"}
# Passages of the library that answer a question: (file, how they begin, how what follows begins).
CUT = {
    "a1": [("minicnet/diffusion.py", "Where x_t is nearly pure noise", "Arguments and errors"),
           ("minicnet/diffusion.py", "The prediction goes from", "eps_cond, eps_uncond: eps_")],
    "a3": [("minicnet/controlnet.py", " A\nrandom connection", "\n\nWhy do zero weights"),
           ("minicnet/controlnet.py", "Why do zero weights learn", "Paper:")],
}
# Phrases that answer a written question or the investigation, as regular expressions.
ANSWERS = {
    "a1": [r"extrapolat", r"memori[sz]", r"factor [^.]{0,40}(enormous|explode)",
           r"(los|cost|reduc)\w* (of )?(diversity|variety)", r"var(y|ies) less",
           r"ruins? the image", r"cop(y|ies)( of)? the training", r"can only (copy|reproduce)",
           r"without (the )?fresh noise"],
    "a2": [r"fourth power", r"256 times", r"\(HW\)\^2", r"without (the |its )?skips?\b",
           r"skips? (carry|carries|hold)[^.]{0,40}detail"],
    "a3": [r"\bwak(e|es|ing)\b", r"two zero[- ]conv[^.]{0,40}(row|series|after)",
           r"never (learn|wake)s?", r"third step", r"second step",
           r"random connection[^.]{0,40}noise"],
    "a4": [],
}
SMALLEST = 14  # nodes of the syntax tree; statements with fewer prove nothing


def make_tree(name, target, solution=False):
    """Write the repository for assignment `name` into the new folder `target`."""
    target = Path(target)
    copied = [path for pattern in COPIED for path in ROOT.glob(pattern)]
    copied += [ROOT / f"tests/assignments/test_{name}.py", *map(ROOT.joinpath, ASSIGNMENTS[name])]
    notebooks = [ROOT / HERE / f"{name}.ipynb", *lessons_before(name)]
    if notebooks[1:]:
        copied += [*notebooks[1:], ROOT / "notebooks/lesson.py"]
    code = "".join(path.read_text(encoding="utf-8") for path in notebooks)
    copied += [path for path in ROOT.glob("minicnet/weights/*/*.pt")
               if f"{path.parent.name}/{path.name}" in code]  # the trained networks that they load
    for path in copied:
        copy = target / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    handout = json.loads((ROOT / HERE / f"{name}.ipynb").read_text(encoding="utf-8"))
    if not solution:
        for assignment in from_on(name):
            take_out(assignment, target, later=assignment != name)
        handout["cells"] = [cell for cell in handout["cells"]
                            if "lecturer" not in cell["metadata"].get("tags", [])]
        for cell in handout["cells"]:
            if cell["cell_type"] == "code":
                cell.update(outputs=[], execution_count=None)
    (target / HERE).mkdir(parents=True, exist_ok=True)
    (target / HERE / f"{name}.ipynb").write_text(
        json.dumps(handout, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def from_on(name):
    """Return the names of an assignment and of all that come after it."""
    return [*ASSIGNMENTS][[*ASSIGNMENTS].index(name):]


def take_out(assignment, tree, later):
    """Take the solutions of an assignment, and what answers its questions, out of the library.

    later: the assignment has not been handed out yet. Raises ValueError if the library has changed,
    so that a passage is not found.
    """
    for file, blanks in ASSIGNMENTS[assignment].items():
        if later:
            blanks = [wanted for wanted in blanks if wanted.function not in NEEDED]
        if (tree / file).exists():
            text = (tree / file).read_text(encoding="utf-8")
            note = f"comes in assignment {assignment}" if later else "your code: about {}"
            (tree / file).write_text(blank(text, blanks, note)[0], encoding="utf-8")
    for file, first, after in CUT.get(assignment, ()):
        text = (tree / file).read_text(encoding="utf-8")
        start = text.find(first)
        end = text.find(after, start)
        if min(start, end) < 0:
            raise ValueError(f"{file} has no passage from {first!r} to {after!r}: correct CUT")
        (tree / file).write_text(text[:start] + text[end:], encoding="utf-8")


def lessons():
    """Return the paths of all lessons, in order."""
    return sorted(ROOT.glob("notebooks/[0-9][0-9]_*.ipynb"))


def lessons_before(name):
    """Return the lessons that come before an assignment in PLAN, and hold no answer to it."""
    numbers = PLAN[:PLAN.index(name)]
    return [path for path in lessons()
            if path.name[:2] in numbers and not answers_in(path, name)]


def lessons_held_back(name):
    """Return the lessons that come right after an assignment in PLAN, or hold an answer to it."""
    after = itertools.takewhile(lambda other: other not in ASSIGNMENTS,
                                PLAN[PLAN.index(name) + 1:])
    numbers = list(after)
    return [path for path in lessons() if path.name[:2] in numbers or answers_in(path, name)]


def blank(source, blanks, note="your code: about {}"):
    """Replace blanks by `raise NotImplementedError`. Returns the text, and the statements removed.

    note: the error's message, with a place for the number of lines. Raises ValueError if the
    library has changed, so that a blank is not found.
    """
    lines, removed = source.splitlines(), []
    tree = ast.parse(source)
    spans = [find(tree, source, wanted) for wanted in blanks]
    for start, end, statements in sorted(spans, key=lambda span: -span[0]):
        body = [line for line in lines[start:end]
                if line.strip() and not line.strip().startswith("#")]
        indent = body[0][:len(body[0]) - len(body[0].lstrip())]
        size = f"{len(body)} line{'s' * (len(body) > 1)}"
        lines[start:end] = [f'{indent}raise NotImplementedError("{note.format(size)}")']
        removed += statements
    return "\n".join(lines) + "\n", removed


def find(tree, source, wanted):
    """Return the lines [start, end) of a blank with the comments above it, and its statements."""
    scope = tree
    for name in wanted.function.split("."):
        scope = next((node for node in scope.body if getattr(node, "name", None) == name), None)
        if scope is None:
            raise ValueError(f"there is no {wanted.function} to blank: correct ASSIGNMENTS")
    blocks = [scope.body]
    if wanted.first:
        blocks = [node.body for node in ast.walk(scope)
                  if isinstance(getattr(node, "body", None), list)]
    for block in blocks:
        above, start = block[0].lineno - 1, None
        for i, statement in enumerate(block):
            text = ast.get_source_segment(source, statement)
            if start is None and text.startswith(wanted.first) and not is_docstring(i, statement):
                start, first = above, i
            ends = text.startswith(wanted.last) if wanted.last else statement is block[-1]
            if start is not None and ends:
                return start, statement.end_lineno, block[first:i + 1]
            above = statement.end_lineno
    raise ValueError(f"{wanted.function} has no statements from {wanted.first!r} to "
                     f"{wanted.last!r}: correct ASSIGNMENTS")


def is_docstring(i, statement):
    return i == 0 and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


# -- Leaks -------------------------------------------------------------------------------------


def find_leaks(name, tree):
    """Search a student's repository for answers. Returns a list of (file, what was found there).

    Code leaks if a statement of the solution stands in it, whatever its variables are called. Text
    leaks if it holds one of the phrases in ANSWERS. Notebooks are searched with their outputs.
    """
    return [(str(path.relative_to(tree)), answer) for path in sorted(Path(tree).rglob("*"))
            if path.suffix in (".py", ".ipynb", ".md") for answer in answers_in(path, name)]


def answers_in(path, name):
    """Return the answers to an assignment that stand in a file."""
    text, code = text_and_code(path)
    text = " ".join(text.split())  # a phrase may be broken by the end of a line
    solution = solution_shapes(name)
    found = [solution[shape] for piece in code for shape in shapes(piece) if shape in solution]
    if path.name != f"{name}.ipynb":  # the handout holds the questions themselves
        found += [match[0] for phrase in ANSWERS[name]
                  for match in re.finditer(phrase, text, re.IGNORECASE)]
    return found


@functools.cache
def solution_shapes(name):
    """Return the `shapes` of all statements that students write."""
    return {shape: text for file, blanks in ASSIGNMENTS[name].items()
            for statement in blank((ROOT / file).read_text(encoding="utf-8"), blanks)[1]
            for shape, text in shapes(statement).items()}


def text_and_code(path):
    """Return all text of a file, and the syntax trees of the Python in it."""
    text = path.read_text(encoding="utf-8")
    pieces = [text]
    if path.suffix == ".ipynb":
        pieces = []
        for cell in json.loads(text)["cells"]:
            pieces.append("".join(cell["source"]))
            for output in cell.get("outputs", []):
                pieces += ["".join(output.get("text", "")),
                           "".join(output.get("data", {}).get("text/markdown", ""))]
    fenced = [code for piece in pieces
              for code in re.findall(r"```\w*\n(.*?)```", piece, re.DOTALL)]
    trees = []
    for piece in [*pieces, *fenced]:
        try:
            trees.append(ast.parse(re.sub(r"^\s*[%!].*$", "", piece, flags=re.MULTILINE)))
        except SyntaxError:
            pass
    return "\n".join(pieces), trees


def shapes(tree):
    """Return {shape: text} of the statements in a tree, and of what they assign or return.

    The shape is the syntax tree with its variables numbered, so renaming them does not change it.
    """
    found = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt) or hasattr(node, "body"):
            continue
        for part in (node, getattr(node, "value", None)):
            if not isinstance(part, ast.AST):
                continue
            inner = [one for one in ast.walk(part) if not isinstance(one, ast.expr_context)]
            if len(inner) < SMALLEST:
                continue
            names = {"torch": "torch", "F": "F", "nn": "nn", "math": "math"}
            for one in inner:
                if isinstance(one, ast.Name):
                    names.setdefault(one.id, f"v{len(names)}")
            shape = re.sub(r"Name\(id='(\w+)'", lambda match, names=names: names[match[1]],
                           ast.dump(part))
            found[shape] = ast.unparse(node)
    return found


# -- Gradescope --------------------------------------------------------------------------------

SETUP = """#!/usr/bin/env bash
# Gradescope runs this once, when it builds the image. Choose Ubuntu 22.04 or later as base image.
set -euo pipefail
apt-get update
apt-get install -y python3 python3-venv
python3 -m venv /autograder/venv
# The extra index has a torch without CUDA, which pip prefers because its version ends in +cpu.
/autograder/venv/bin/pip install --extra-index-url https://download.pytorch.org/whl/cpu \\
    {torch} numpy tqdm pytest
"""
RUN = """#!/usr/bin/env bash
# Gradescope runs this for every submission. AUTOGRADER names another folder, for a trial at home.
root="${{AUTOGRADER:-/autograder}}"
python="$root/venv/bin/python"
[ -x "$python" ] || python=python3
cd "$root/source"
"$python" grade.py {name} "$root/submission" "$root/results/results.json" --tree student
"""


def make_archive(name, student, archive):
    """Write the archive that Gradescope's "Configure Autograder" takes."""
    torch = next(line for line in (ROOT / "requirements.txt").read_text().splitlines()
                 if line.startswith("torch"))
    scripts = {"setup.sh": SETUP.format(torch=torch), "run_autograder": RUN.format(name=name)}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for script, text in scripts.items():
            entry = zipfile.ZipInfo(script)
            entry.external_attr = 0o100755 << 16  # executable
            file.writestr(entry, text)
        for tool in ("grade.py", "make_student.py"):
            file.write(Path(__file__).with_name(tool), tool)
        for path in sorted(Path(student).rglob("*")):
            if path.suffix not in (".ipynb", ".pt"):
                file.write(path, Path("student", path.relative_to(student)))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assignment", choices=ASSIGNMENTS)
    parser.add_argument("target", type=Path, help="a folder that does not exist yet")
    args = parser.parse_args()
    name, target = args.assignment, args.target
    if target.exists():
        sys.exit(f"error: {target} exists already: name a new folder")
    with tempfile.TemporaryDirectory() as scratch:  # nothing is left behind if an answer leaks
        made = Path(scratch, name)
        make_tree(name, made / "student")
        if leaks := find_leaks(name, made / "student"):
            sys.exit("error: these files answer the assignment; change PLAN, CUT or the files:\n"
                     + "\n".join(f"{file}: {what}" for file, what in leaks))
        make_tree(name, made / "solution", solution=True)
        make_archive(name, made / "student", made / "autograder.zip")
        try:
            shutil.copytree(made, target)
        except OSError as error:  # shutil.Error among them, whose argument is a list
            sys.exit(f"error: cannot write {target} ({error.strerror or 'a full disk?'}): name a "
                     "folder in another place")
    held_back = ", ".join(path.name for path in lessons_held_back(name))
    print(f"{target}/student is for your students, who hand in {', '.join(ASSIGNMENTS[name])}.\n"
          f"Give these lessons out with the marks of {name}, and not before: {held_back}.")


if __name__ == "__main__":
    main()

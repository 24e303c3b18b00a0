"""Makes the repository that students get: this one, without the functions that they are to write.

    python notebooks/assignments/make_student.py a2 ../a2-student

The library is the reference solution, and for what it lacks own_condition.py beside this file. Signatures and
docstrings stay and state the problem. Bodies go. What else would give them away is left out: the tests of the same
file, the experiments, lessons that hold one of the lines or answer a question, outputs that print a line, history, and
what belongs to the lecturer, such as the cells tagged so in handouts: rubrics and investigations.
"""

import argparse
import ast
import json
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
KEPT = ["README.md", "LICENSE", "requirements.txt", ".gitignore", ".pytest.ini", ".ruff.toml", ".github/results",
        "minicnet", "notebooks", "tests", "train_mnist_edges.py"]
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*_c*", "assignments", "test_assignments.py", "experiments",
                                  "test_experiments*", "07_claims.ipynb")


class Blank(NamedTuple):
    """A function to write: all of its body, or only the statements that begin with `first` to `last`."""

    function: str
    first: str = ""
    last: str = ""


ASSIGNMENTS = {  # name: {file to hand in: its blanks}
    "a1": {
        "minicnet/diffusion.py": [
            Blank("NoiseSchedule.__init__", "alpha_bar =", "alpha_bar ="),
            Blank("NoiseSchedule.add_noise"),
            Blank("NoiseSchedule.predict_x0"),
            Blank("diffusion_loss"),
            Blank("guided"),
            Blank("sample_ddpm", "x_t = schedule.", "if t > 0"),
            Blank("sample_ddim", "alpha_bar, alpha_bar_prev =", "if eta > 0"),
        ],
    },
    "a2": {
        "minicnet/words.py": [Blank("attention_weights"), Blank("attend")],
        "minicnet/unet.py": [
            Blank("timestep_embedding"),
            Blank("ResBlock.forward"),
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
            Blank("ConditionEncoder.__init__", "super().__init__", "super().__init__"),
            Blank("ControlNet.forward", "skips, middle =", "return "),
            Blank("Control.__add__"),
            Blank("Control.__mul__"),
        ],
        "minicnet/unet.py": [Blank("UNet.forward", "skips = [", "middle =")],
    },
    "a4": {
        "minicnet/conditions.py": [Blank("depth")],
        "minicnet/evaluation.py": [Blank("depth_error")],
        "notebooks/assignments/own_condition.py": [
            Blank("condition"), Blank("measure"), Blank("new_control"), Blank("training_model"), Blank("with_edges")],
    },
}
ANSWERED_IN = {  # lessons that answer a question of the handout, and tests that compute what students write
    "a1": ["test_sampling"], "a2": ["03_unet"], "a3": ["04_zero_convolution", "05_controlnet"], "a4": ["test_measures"]}


def make_student(name, target):
    """Writes the repository for assignment `name` into the new folder `target`. Returns the files left out of it."""
    target = Path(target)
    for kept in KEPT:
        if (ROOT / kept).is_dir():
            shutil.copytree(ROOT / kept, target / kept, ignore=LEFT_OUT)
        elif (ROOT / kept).exists():
            (target / kept).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / kept, target / kept)
    for own in (f"notebooks/assignments/{name}.ipynb", f"tests/assignments/test_{name}.py",
                "tests/assignments/conftest.py", "tests/assignments/checking.py", *ASSIGNMENTS[name]):
        (target / own).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / own, target / own)
    shutil.copy(ROOT / "notebooks/assignments/student_conftest.py", target / "conftest.py")

    answers, too_much = [], []
    for file, blanks in ASSIGNMENTS[name].items():
        text, removed = blank((target / file).read_text(), blanks)
        (target / file).write_text(text)
        answers += [squeezed(line) for line in removed if len(squeezed(line)) > 20]
        too_much.append(target / "tests" / f"test_{Path(file).name}")
    too_much += [target / "tests" / f"{answered}.py" for answered in ANSWERED_IN[name]]
    for notebook in sorted((target / "notebooks").rglob("*.ipynb")):
        content, handout = json.loads(notebook.read_text()), notebook.stem == name
        for cell in content["cells"]:
            printed = squeezed("".join(map(shown_text, cell.get("outputs", []))))
            if cell["cell_type"] == "code" and (handout or any(answer in printed for answer in answers)):
                cell.update(outputs=[], **{"execution_count": None} if handout else {})
        if handout:
            content["cells"] = [c for c in content["cells"] if "lecturer" not in c["metadata"].get("tags", [])]
        notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        sources = [squeezed("".join(cell["source"])) for cell in content["cells"]]
        answered = notebook.stem in ANSWERED_IN[name]
        if answered or not handout and any(answer in source for source in sources for answer in answers):
            too_much.append(notebook)
    too_much = [path for path in too_much if path.exists()]
    for path in too_much:
        path.unlink()
    for page in target.rglob("*.md"):
        page.write_text(without_dead_links(page.read_text(encoding="utf-8"), page.parent), encoding="utf-8")
    return [str(path.relative_to(target)) for path in too_much]


def blank(source, blanks):
    """The source with its blanks made: the new text, and the lines removed. Raises ValueError if there is no such."""
    lines, removed = source.splitlines(), []
    spans = [find(ast.parse(source), source, b) for b in blanks]
    for start, end in sorted(spans, reverse=True):  # from the end, so that line numbers before it still hold
        body = [line for line in lines[start:end] if line.strip() and not line.strip().startswith("#")]
        indent = body[0][: len(body[0]) - len(body[0].lstrip())]
        size = f"{len(body)} line{'s' * (len(body) > 1)}"
        lines[start:end] = [f'{indent}raise NotImplementedError("your code: about {size}")']
        removed += body
    return "\n".join(lines) + "\n", removed


def find(tree, source, wanted):
    """The lines [start, end) of a blank, comments above its first statement included."""
    scope = tree
    for name in wanted.function.split("."):
        scope = next((node for node in scope.body if getattr(node, "name", None) == name), None)
        if scope is None:
            raise ValueError(f"there is no {wanted.function} to blank: mend ASSIGNMENTS")
    blocks = [scope.body] if not wanted.first else [node.body for node in ast.walk(scope) if hasattr(node, "body")]
    for block in blocks:
        above = block[0].lineno - 1  # where the blank starts: below the docstring, or below the statement before it
        start = None
        for i, statement in enumerate(block):
            text = ast.get_source_segment(source, statement)
            docstring = i == 0 and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if start is None and not docstring and text.startswith(wanted.first):
                start = above
            if start is not None and (text.startswith(wanted.last) if wanted.last else statement is block[-1]):
                return start, statement.end_lineno
            above = statement.end_lineno
    raise ValueError(f"{wanted.function} has no lines from {wanted.first!r} to {wanted.last!r}: mend ASSIGNMENTS")


def without_dead_links(text, folder):
    """A page of Markdown in which links to what was left out are their text alone. Such pictures are gone."""
    def kept(match):
        picture, words, place = match.groups()
        return match[0] if "://" in place or (folder / place).exists() else "" if picture else words

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)#\s]+)[^)]*\)", kept, text)


def shown_text(output):
    """What a cell printed or, as lessons show code of the library, wrote in Markdown."""
    return "".join(output.get("text", "")) + "".join(output.get("data", {}).get("text/markdown", ""))


def squeezed(text):
    return "".join(text.split())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assignment", choices=ASSIGNMENTS)
    parser.add_argument("target", type=Path, help="a folder that does not exist yet")
    args = parser.parse_args()
    if args.target.exists():
        sys.exit(f"error: {args.target} exists already: name a new folder")
    left_out = make_student(args.assignment, args.target)
    print(f"{args.target}: to hand in {', '.join(ASSIGNMENTS[args.assignment])}; left out: {', '.join(left_out)}")


if __name__ == "__main__":
    main()

"""Mutation testing: break files in many small ways, one at a time, and count what the tests notice.

    python tests/mutation.py                        # all files, about an hour on two cores
    python tests/mutation.py minicnet/unet.py       # one file

Operators, numbers, conditions, arguments and statements are changed in turn, and the file's own
tests run on a copy until one fails. A change that none of them notices is printed: either a test is
missing, or the change makes no difference. One process runs on each core: `taskset -c 0` in front
of the command leaves the others free.
"""

import ast
import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch  # loaded here, once: the processes that test a mutant are forks of this one

# Modules that torch imports when they are needed, and each mutant's process would import again.
torch.testing.assert_close(torch.zeros(1), torch.zeros(1, device="cpu"))
torch.zeros(1, device="meta").add(1)

ROOT = Path(__file__).parents[1]
TESTS = {  # the fastest first
    "minicnet/diffusion.py": ["test_diffusion.py"],
    "minicnet/words.py": ["test_words.py", "test_unet.py"],
    "minicnet/unet.py": ["test_unet.py", "test_words.py", "test_controlnet.py"],
    "minicnet/controlnet.py": ["test_controlnet.py", "test_sampling.py"],
    "minicnet/conditions.py": ["test_conditions.py"],
    "minicnet/training.py": ["test_training.py"],
    "minicnet/sampling.py": ["test_sampling.py"],
}
BROKEN = 99  # the exit status of a process that could not begin to test
PATIENCE = 100  # seconds of computing; a mutant that needs more never ends, which is noticed, too
OTHER = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn,
    ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And}
OTHER_VALUE = {bool: lambda value: not value, int: lambda value: value + 1,
               float: lambda value: 2 * value or 1.0}
# `F.silu(x)` becomes `x`, while `x.sqrt()` becomes `x`.
MODULES = {"torch", "F", "nn", "math", "copy", "difflib", "itertools", "re", "super"}


def variants(node):
    """Yield the nodes that may take a node's place, each of them a small mistake."""

    def but(**changes):
        return type(node)(**{**{name: getattr(node, name) for name in node._fields}, **changes})

    if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)) and type(node.op) in OTHER:
        yield but(op=OTHER[type(node.op)]())
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            yield but(values=[other for other in node.values if other is not value])
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            yield but(ops=[*node.ops[:i], OTHER[type(op)](), *node.ops[i + 1:]])
    if isinstance(node, ast.UnaryOp):
        yield node.operand
    if isinstance(node, ast.Constant) and type(node.value) in OTHER_VALUE:
        yield but(value=OTHER_VALUE[type(node.value)](node.value))
    if isinstance(node, (ast.If, ast.IfExp)):
        yield from (but(test=ast.Constant(value)) for value in (True, False))
    call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    if call or isinstance(node, (ast.Raise, ast.AugAssign)):
        yield ast.Pass()
    if isinstance(node, ast.FunctionDef):
        for decorator in node.decorator_list:
            yield but(decorator_list=[
                other for other in node.decorator_list if other is not decorator])
    if isinstance(node, ast.Call):
        for keyword in node.keywords:
            yield but(keywords=[other for other in node.keywords if other is not keyword])
        method = isinstance(node.func, ast.Attribute)
        if method and getattr(node.func.value, "id", "") not in MODULES:
            yield node.func.value
        elif len(node.args) == 1:
            yield node.args[0]


def mutants(source):
    """Yield all (line, before, after, whole source) that differ from `source` in one place."""
    tree = ast.parse(source)
    places = [(node, holder, key, holder[key])
              for node in ast.walk(tree) for name, value in ast.iter_fields(node)
              for holder, keys in [(value, range(len(value))) if isinstance(value, list)
                                   else (vars(node), [name])]
              for key in keys if isinstance(holder[key], ast.AST)]
    raises = [node for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    # What an error says is not tested.
    silent = {id(inner) for node in raises for inner in ast.walk(node)} - set(map(id, raises))

    for node, holder, key, child in places:
        for variant in variants(child) if id(child) not in silent else ():
            holder[key] = variant
            text = ast.unparse(ast.fix_missing_locations(tree))
            holder[key] = child
            line = getattr(child, "lineno", None) or node.lineno
            yield line, first_line(child), first_line(variant), text


def first_line(node):
    return ast.unparse(ast.fix_missing_locations(node)).splitlines()[0]


def start_testing(file, text):
    """Fork a process that tests a copy of the project, in which `file` contains `text`."""
    child = os.fork()
    if child:
        return child
    code = BROKEN
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory() as folder:
        for name in ("minicnet", "tests"):
            shutil.copytree(ROOT / name, Path(folder) / name,
                            ignore=shutil.ignore_patterns("weights", "__pycache__"))
        (Path(folder) / file).write_text(text)
        os.chdir(folder)
        sys.path.insert(0, folder)
        import resource  # not above, because the tests of assignments use this file on Windows, too
        resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE, PATIENCE))
        with open(os.devnull, "w") as nowhere, \
                contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider",
                                *(f"tests/{name}" for name in TESTS[file])])
    os._exit(code)


def main(files):
    for file in files:
        source = (ROOT / file).read_text()
        if os.waitstatus_to_exitcode(os.waitpid(start_testing(file, source), 0)[1]):
            sys.exit(f"error: {file} does not pass its tests as it is")
        waiting, running, survivors = list(mutants(source)), {}, 0
        count = len(waiting)
        while waiting or running:
            while waiting and len(running) < len(os.sched_getaffinity(0)):
                line, before, after, text = waiting.pop(0)
                running[start_testing(file, text)] = line, before, after
            child, status = os.wait()
            mutant = running.pop(child)
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == BROKEN:
                sys.exit("error: the folder for temporary files has no room for a copy")
            if not status:
                survivors += 1
                print("{}:{}: {}   ->   {}".format(file, *mutant), flush=True)
        print(f"{file}: {count - survivors} of {count} noticed, {1 - survivors / count:.1%}",
              flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(TESTS))

"""What the command lines share: values that are refused, and errors that are one sentence."""

import io
import os
import subprocess
import sys
from unittest.mock import Mock

import pytest

from minicnet import cli
from minicnet.errors import UserError


@pytest.mark.parametrize("kind, bounds, good, bad", [
    (cli.whole_number(0, 10), "a whole number from 0 to 10",
     ["0", "7", "10"], ["-1", "11", "1.5", "x", "", "9" * 5000]),
    (cli.number(-100, 100), "a number from -100 to 100",
     ["0", "-1.5", "1e2"], ["nan", "inf", "-inf", "1e39", "x"])])
def test_a_number_beyond_its_bounds_is_refused_with_the_bounds(capsys, kind, bounds, good, bad):
    parser = cli.parser("numbers")
    parser.add_argument("--number", type=kind)
    for text in good:
        assert parser.parse_args([f"--number={text}"]).number == float(text)
    for text in bad:
        with pytest.raises(SystemExit):
            parser.parse_args([f"--number={text}"])
        sentence = f"argument --number: {text:.40} is not {bounds}\n"
        assert capsys.readouterr().err.endswith(sentence)


@pytest.mark.parametrize("error, sentence", [
    (UserError("the disk is full"), "error: the disk is full"),
    (OSError(36, "File name too long", "x"), "error: [Errno 36] File name too long: 'x'"),
    (KeyboardInterrupt(), "\nstopped: --resume goes on")])
def test_what_the_user_can_mend_ends_the_program_with_one_sentence(error, sentence):
    with pytest.raises(SystemExit) as ended:
        cli.run(Mock(side_effect=error), stopped="stopped: --resume goes on")
    assert ended.value.code == sentence  # on stderr, with exit status 1


@pytest.mark.parametrize("error", [RuntimeError, RecursionError, KeyError, ValueError])
def test_a_fault_of_the_program_keeps_its_traceback(error):
    with pytest.raises(error):
        cli.run(Mock(side_effect=error("?")))


def test_a_terminal_that_lacks_a_character_does_not_end_the_program(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    cli.run(print, "0.97 ± 0.01")
    assert terminal.buffer.getvalue().split() == [b"0.97", b"?", b"0.01"]


def test_of_several_processes_only_the_first_prints(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # so that it comes back afterwards
    monkeypatch.setenv("RANK", "1")
    assert cli.run(lambda a, b: print("second") or a + b, 1, 2) == 3
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("count", [1, 1_000_000])
def test_a_reader_who_leaves_ends_the_program_without_a_traceback(count):
    code = f"from minicnet import cli; input(); cli.run(lambda: print('x' * {count}))"
    program = subprocess.Popen([sys.executable, "-c", code], text=True, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={**os.environ, "PYTHONUNBUFFERED": ""})
    program.stdout.close()  # as `| head` does
    _, errors = program.communicate("\n", timeout=120)
    assert program.returncode == 1 and errors == ""


def test_a_program_whose_output_and_errors_are_closed_still_does_its_work(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)  # as in `program >&- 2>&-`
    assert cli.run(lambda: print("lost") or sys.stderr.write("lost")) == 4


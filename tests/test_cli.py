"""What the command lines share: values that are refused, and errors that are one sentence."""

import argparse
import os

import pytest

from minicnet import cli
from minicnet.checkpoints import CheckpointError
from minicnet.data import DataError
from minicnet.devices import TrainingError


@pytest.mark.parametrize("kind, good, bad", [
    (cli.whole_number, ["0", "7", "1000000000"], ["-1", "1000000001", "1.5", "x", ""]),
    (cli.positive, ["1", "7", "1000000000"], ["0", "-1", "1000000001", "ten"]),
    (cli.finite, ["0", "-1.5", "1e3"], ["nan", "inf", "-inf", "x"])])
def test_a_flags_value_makes_sense_or_is_refused(kind, good, bad):
    for text in good:
        assert kind(text) == float(text)
    for text in bad:
        with pytest.raises((argparse.ArgumentTypeError, ValueError)):
            kind(text)


def raising(error):
    def main(*args):
        raise error

    return main


@pytest.mark.parametrize("error", [DataError, CheckpointError, TrainingError, ValueError])
def test_an_error_for_the_user_ends_the_program_with_its_sentence(error):
    with pytest.raises(SystemExit) as ended:
        cli.run(raising(error("the disk is full")))
    assert ended.value.code == "error: the disk is full"  # on stderr, with exit status 1


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, RecursionError, ZeroDivisionError, KeyError])
def test_a_fault_of_the_program_keeps_its_traceback(error):
    with pytest.raises(error):
        cli.run(raising(error("?")))


def test_ctrl_c_ends_with_what_can_be_done():
    with pytest.raises(SystemExit) as ended:
        cli.run(raising(KeyboardInterrupt()), stopped="stopped: --resume goes on")
    assert ended.value.code == "\nstopped: --resume goes on"


def test_arguments_and_results_pass_through_and_only_the_first_process_speaks(monkeypatch, capsys):
    assert cli.run(lambda a, b: print("first") or a + b, 1, 2) == 3
    monkeypatch.setattr("sys.stdout", open(os.devnull, "w"))  # so that it comes back afterwards
    monkeypatch.setenv("RANK", "1")
    cli.run(print, "second")
    assert capsys.readouterr().out == "first\n"

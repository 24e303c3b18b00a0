"""What the command lines share: values of flags that are refused in one sentence, and errors that are one sentence."""

import argparse
import math
import os
import sys


def whole_number(text, least=0):
    """0 .. 10^9, as for --seed."""
    number = int(text)
    if not least <= number <= 10**9:
        raise argparse.ArgumentTypeError(f"{text} does not lie in {least} .. 10^9")
    return number


def positive(text):
    """1 .. 10^9, as for --batch-size."""
    return whole_number(text, least=1)


def finite(text):
    """Any number but infinity and NaN, as for --scale."""
    number = float(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return number


def parser(description, *, device=True):
    """An argparse parser whose help begins with a module's docstring, with the flag that every network needs."""
    new = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if device:
        new.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    return new


def run(main, *args, stopped="stopped"):
    """main(*args), of whose errors only the sentence is shown. They end the program with a non-zero exit.

    Of torchrun's processes only the first speaks. stopped: what to say after Ctrl-C.
    """
    if os.environ.get("RANK", "0") != "0":
        sys.stdout = open(os.devnull, "w")
    try:
        return main(*args)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, RuntimeError) and not type(error).__module__.startswith("minicnet."):
            raise  # none of ours: a fault, and its traceback helps
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # nobody reads on, as after `| head`: no traceback, and no second attempt at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(f"\n{stopped}")

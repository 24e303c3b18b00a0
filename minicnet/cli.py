"""What the command lines share: bounds on numbers, and errors that are one sentence."""

import argparse
import os
import sys

from minicnet.errors import UserError


def whole_number(least, most):
    """Return an argparse type: a whole number from least to most."""

    def parse(text):
        number = int(text)
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")
        return number

    return parse


def number(least, most):
    """Return an argparse type: a number from least to most, which excludes NaN and infinity."""

    def parse(text):
        value = float(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least:g} and {most:g}")
        return value

    return parse


def parser(description, *, device=True):
    """Return an argparse parser whose help begins with a module's docstring.

    device: whether it has the flag --device.
    """
    new = argparse.ArgumentParser(description=description,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    if device:
        new.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"],
                         help="where to compute")
    return new


def run(main, *args, stopped="stopped"):
    """Run main(*args), and print an expected error as one line, with a non-zero exit.

    Of torchrun's processes only rank 0 prints its output. stopped: what to say after Ctrl-C.
    """
    if os.environ.get("RANK", "0") != "0":
        sys.stdout = open(os.devnull, "w")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a character the terminal lacks must not end a run
            stream.reconfigure(errors="replace")
    try:
        result = main(*args)
        sys.stdout.flush()
        return result
    except BrokenPipeError:  # the reader has gone, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (UserError, OSError) as error:  # such as a path that is too long
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"\n{stopped}")

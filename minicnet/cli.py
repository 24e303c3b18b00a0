"""What the command lines share: bounds on numbers, and errors that are one sentence."""

import argparse
import contextlib
import os
import sys

from minicnet.errors import UserError


def number(least, most, kind=float):
    """Return an argparse type: a number from least to most, which excludes NaN and infinity.

    kind: float, or int for whole numbers.
    """

    def parse(text):
        with contextlib.suppress(ValueError):
            if least <= kind(text) <= most:
                return kind(text)
        name = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text:.40} is not {name} from {least} to {most}")

    return parse


def whole_number(least, most):
    """Return an argparse type: a whole number from least to most."""
    return number(least, most, int)


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
        sys.stdout = None
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # None: closed by `program >&-`
        if hasattr(stream, "reconfigure"):  # a character the terminal lacks must not end a run
            stream.reconfigure(errors="replace")
        setattr(sys, name, stream)
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

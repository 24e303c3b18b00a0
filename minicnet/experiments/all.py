"""Measure all claims in turn, and write the page of this folder and the README's chart of claims.

    python -m minicnet.experiments.all            # many hours on two cores; can be resumed
    python -m minicnet.experiments.all --deciding # only on the testbed that decides each claim
    python -m minicnet.experiments.all --readme   # measure nothing, write both pages
    python -m minicnet.experiments.all --quick    # a smoke run of every claim, without a page
"""

from pathlib import Path

from minicnet import cli
from minicnet.experiments import lab
from minicnet.publish import claims

NAMES = (  # the paper's, in its order; the authors' notes; other papers; users; our own
    "backbone", "zero_convolution", "cost", "prompt_dropping", "sudden_convergence", "guidance",
    "many_conditions", "no_prompt", "reconstruction", "quality", "industrial", "data_size",
    "ambiguous_maps", "transfer", "forgetting",
    "batch_size",
    "alternatives", "adapter", "consistency",
    "unlocked_decoder", "fewer_blocks", "control_span", "warm_start",
    "composition", "attention", "control_guidance")


def main(args):
    if not args.readme:
        lab.run(args, *NAMES)
    if not args.quick:
        claims.publish(args.out or Path("runs/experiments"), NAMES)


if __name__ == "__main__":
    parser = lab.parser(__doc__)
    parser.add_argument("--readme", action="store_true", help="measure nothing, write both pages")
    cli.run(main, parser.parse_args(), stopped="stopped: the same command goes on")

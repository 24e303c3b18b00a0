"""All experiments in turn, and the table of their verdicts, for the README:

    python -m minicnet.experiments.all              # about two hours on two CPU cores; can be stopped and run again
    python -m minicnet.experiments.all --quick      # a smoke run: a minute, and no meaning
    python -m minicnet.experiments.all --readme     # also puts the table and the figures into the README
"""

import shutil
from pathlib import Path

from minicnet.checkpoints import write_atomically
from minicnet.experiments.lab import main
from minicnet.report import update_readme

NAMES = ("zero_convolution", "sudden_convergence", "cost", "data_size", "forgetting", "many_conditions", "transfer",
         "guidance")
MARKS = "<!-- claims: made by python -m minicnet.experiments.all -->", "<!-- end of claims -->"


def table(results):
    """The results in Markdown: claim, verdict, evidence, and where, when and how it was measured."""
    lines = ["| experiment | claim of the paper | verdict | evidence |", "|---|---|---|---|"]
    for result in results:
        lines.append(f"| [`{result['name']}`](minicnet/experiments/{result['name']}.py) | {result['claim']} | "
                     f"**{result['verdict']}** | {result['why']} "
                     f"([figure](.github/results/experiments/{result['name']}.png)) |")
    how = "; ".join(f"{result['name']}: {result['dataset']}, seeds {', '.join(map(str, result['seeds']))}, "
                    f"{result['device']}, torch {result['torch']}, {result['date']}, {result['seconds'] / 60:.0f} min"
                    for result in results)
    return "\n".join([*lines, "", f"Mean ± standard deviation over seeds. {how}."])


def publish(results, out, root):
    """Copies the results into .github/results/experiments and writes the table into the README, both of `root`."""
    folder = root / ".github" / "results" / "experiments"
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        shutil.copy(out / result["name"] / "figure.png", folder / f"{result['name']}.png")
        shutil.copy(out / result["name"] / "result.json", folder / f"{result['name']}.json")
    update_readme(root / "README.md", *MARKS, table(results))


if __name__ == "__main__":
    args, results = main(*NAMES, description=__doc__, readme="put table and figures into this checkout's README")
    write_atomically(args.out / "table.md", (table(results) + "\n").encode())
    print(args.out / "table.md")
    if args.readme:
        publish(results, args.out, Path(__file__).parents[2])

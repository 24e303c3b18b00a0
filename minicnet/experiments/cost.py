"""What does a training step with ControlNet cost (the paper's section 3.2)? It says 23% more memory and 34% more time.

A training step of the control is held against one of its base: time, memory, arithmetic, and the parameters trained.
The two take turns in one process, so that other programs slow both alike, and the times are medians. Memory is counted:
what is saved for the backward pass, gradients, the optimizer's moments, and the weights. Three rounds stand for seeds.
On the CPU a batch is as in the other experiments, on a GPU, if there is one, 16 times as large.

The paper's two steps are not ours. There both also pay for a frozen image encoder and a frozen text encoder, and the
base is Stable Diffusion, on an A100. Here nothing but the UNet runs; the control's step includes finding the edges; and
frozen convolutions do not keep their inputs for the backward pass (training.py), which torch by itself would do.
"""

import copy

import torch
from matplotlib.figure import Figure

from minicnet.benchmark import PAPER, training_costs
from minicnet.controlnet import ControlNet, trainable_copy
from minicnet.experiments.lab import across_seeds, main, mean, spread

BASE = "digits"
CLAIM = ("A training step with ControlNet takes about 23% more memory and 34% more time than one that trains the base "
         "without it (section 3.2).")
NEAR = 0.15  # a ratio this far from the paper's is not the paper's
PARTS = ("weights", "gradients", "optimizer", "saved for backward")


def run(lab):
    devices = {"cpu": lab.batch_size}
    if lab.device.type == "cuda":
        devices["cuda"] = 16 * lab.batch_size
    for seed in lab.seeds:
        for device, batch_size in devices.items():
            lab.row(f"{device}-{seed}", lambda key=(device, batch_size, seed): measured(lab, *key))


def measured(lab, device, batch_size, seed):
    torch.manual_seed(seed)
    unet, schedule = trainable_copy(lab.unet).to(device), copy.deepcopy(lab.schedule).to(device)
    control_net = ControlNet(unet).to(device)
    # peak=1: the share of the machine's best speed is not asked for here
    costs = training_costs(unet, control_net, schedule, lab.looks, batch_size, peak=1)
    base, control = costs["base"], costs["control"]
    trained = [sum(parameter.numel() for parameter in net.parameters()) for net in (unet, control_net)]
    row = {"time": control["seconds"] / base["seconds"], "memory": control["bytes"] / base["bytes"],
           "arithmetic": control["flops"] / base["flops"], "trained parameters": trained[1] / trained[0],
           "batch_size": batch_size}
    if "cuda_peak_bytes" in base:
        row["peak"] = control["cuda_peak_bytes"] / base["cuda_peak_bytes"]
    for kind, cost in costs.items():
        row |= {f"{kind} ms": 1e3 * cost["seconds"], f"{kind} GFLOP": cost["flops"] / 1e9,
                **{f"{kind} {part}": cost[part] / 1e6 for part in PARTS}}  # MB
    return row


def verdict(rows):
    # Held against the paper's on a GPU where one was measured, as the paper used one.
    device = devices(rows)[-1]
    off = [mean(rows, device, name) - PAPER[name] for name in PAPER]
    word = "reproduced" if all(abs(by) <= NEAR for by in off) else "not reproduced"
    words = {True: "less than", False: "more than", None: f"within {NEAR} of"}
    how = " and ".join(f"{words[None if abs(by) <= NEAR else by < 0]} the paper's {PAPER[name]} in {name}"
                       for name, by in zip(PAPER, off))
    texts = [f"on {name}: time {spread(rows, name, 'time', 2)}, memory {spread(rows, name, 'memory', 2)}, arithmetic "
             f"{mean(rows, name, 'arithmetic'):.2f}, trained parameters {mean(rows, name, 'trained parameters'):.2f}"
             for name in devices(rows)]
    return word, (f"a control step over a base step, {'; '.join(texts)}. That is {how} (which are of Stable "
                  "Diffusion, whose text and image encoders run in both steps)")


def devices(rows):
    return list(dict.fromkeys(key.rpartition("-")[0] for key in rows))


def figure(rows, lab):
    fig = Figure(figsize=(11, 4), layout="constrained")
    left, right = fig.subplots(1, 2, width_ratios=[1.3, 1])
    names, found = ["time", "memory", "arithmetic", "trained parameters"], devices(rows)
    width = 0.8 / len(found)
    for i, device in enumerate(found):
        places = [place + (i - (len(found) - 1) / 2) * width for place in range(len(names))]
        left.bar(places, [mean(rows, device, name) for name in names], 0.9 * width, alpha=0.6, label=device)
        for place, name in zip(places, names):
            values = across_seeds(rows, device, name)
            left.plot([place] * len(values), values, "k.", markersize=4)
    for place, name in enumerate(PAPER):
        left.hlines(PAPER[name], place - 0.45, place + 0.45, color="tab:red", label=None if place else "paper")
    left.axhline(1, color="tab:gray", linestyle="--", linewidth=1)
    left.set_xticks(range(len(names)), names)
    left.set(ylabel="control over base", title="A training step (points: rounds)")
    left.legend(fontsize=8)
    bottom = [0.0, 0.0]
    for part in PARTS:
        values = [mean(rows, found[-1], f"{kind} {part}") for kind in ("base", "control")]
        right.barh([1, 0], values, left=bottom, label=part)
        bottom = [a + b for a, b in zip(bottom, values)]
    right.set_yticks([1, 0], ["base", "control"])
    batch_size = across_seeds(rows, found[-1], "batch_size")[0]
    right.set(xlabel="MB", title=f"What the memory is for: {found[-1]}, batch of {batch_size}")
    right.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=4)
    for ax, axis in ((left, "y"), (right, "x")):
        ax.grid(alpha=0.3, axis=axis)
        ax.set_axisbelow(True)
    return fig


if __name__ == "__main__":
    main("cost")

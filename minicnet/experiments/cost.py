"""What does a training step with ControlNet cost (the paper's section 3.2)? It says 23% more memory and 34% more time.

A training step of the control is held against one of its base: time, memory, arithmetic, and the parameters trained.
Both are whole steps of `train`: the batch, finding the edges, both passes, the optimizers, the average. They take turns
in one process, so that other programs slow both alike, and the times are medians. Memory is counted, in float32, so
that every machine finds the same. Torch saves the input of a convolution for the backward pass even where its weights
are frozen and nothing reads it: how much that is in the base's decoder is said, and left as it is. Drawing is timed,
too, under 0, 1 and 2 controls. Three rounds stand for seeds. On a GPU a batch is 16 times as large.

The paper's two steps are not ours: both also pay for a frozen image encoder and a frozen text encoder, and the base is
Stable Diffusion, on an A100.
"""

import copy
import statistics
import time

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from minicnet.conditions import canny
from minicnet.controlnet import ControlNet, freeze, trainable_copy
from minicnet.experiments.lab import across_seeds, control_eps, in_figures, main, mean
from minicnet.experiments.plots import grouped_bars
from minicnet.sampling import generate
from minicnet.training import Loss, draw_batch, train

BASE = "digits"
CLAIM = ("A training step with ControlNet takes about 23% more memory and 34% more time than one that trains the base "
         "without it (section 3.2).")
PAPER = {"time": 1.34, "memory": 1.23}  # control over base
NEAR = 0.15  # a ratio this far from the paper's is not the paper's
UNITS = {"time": "ms", "memory": "MB", "arithmetic": "GFLOP", "trained parameters": "millions"}
PARTS = ("weights", "gradients", "optimizers", "saved for backward")  # of the memory
NEEDLESS = "saved for frozen convolutions"  # a part of the last


def run(lab):
    devices = {"cpu": lab.batch_size, **({"cuda": 16 * lab.batch_size} if lab.device.type == "cuda" else {})}
    for seed in lab.seeds:
        for device, batch_size in devices.items():
            lab.row(f"{device}-{seed}", measured, lab, torch.device(device), batch_size, seed)
    print(table(lab.rows))


def measured(lab, device, batch_size, seed):
    torch.manual_seed(seed)
    unet, schedule = trainable_copy(lab.unet).to(device), copy.deepcopy(lab.schedule).to(device)
    locked, net = freeze(copy.deepcopy(unet)), ControlNet(unet).to(device)
    kinds = {"base": (unet, lambda net, x_0, prompt: lambda x_t, t: net(x_t, t, prompt), [unet]),
             "control": (net, control_eps(lambda net: (locked, net), canny), [net, locked])}
    data = dict(images=lab.train_images[:1000].to(device), prompts=lab.train_prompts[:1000].to(device),
                batch_size=batch_size, drop_prompts=lab.drop_prompts, seed=seed)
    steps = {kind: train(net, eps_model, schedule, steps=1000, **data) for kind, (net, eps_model, _) in kinds.items()}
    row = {"batch_size": batch_size}
    for kind, (net, eps_model, modules) in kinds.items():
        with FlopCounterMode(display=False) as counter:
            *_, take_snapshot = next(steps[kind])
        buffers = [x for optimizer in take_snapshot()["parts"][2:] for state in optimizer["state"].values()
                   for x in state.values() if torch.is_tensor(x) and x.ndim]  # Muon's momentum, AdamW's two moments
        batch = draw_batch(0, T=len(schedule), **data)
        saved, needless = saved_bytes(Loss(net, eps_model, schedule), batch, modules)
        parts = [sum(p.nbytes for module in modules for p in module.parameters()),
                 sum(p.nbytes for p in net.parameters()), sum(x.nbytes for x in buffers), saved]
        numbers = {"GFLOP": counter.get_total_flops() / 1e9, "millions": sum(p.numel() for p in net.parameters()) / 1e6,
                   "MB": sum(parts) / 1e6, **{part: size / 1e6 for part, size in zip((*PARTS, NEEDLESS),
                                                                                     (*parts, needless))}}
        row |= {f"{kind} {name}": number for name, number in numbers.items()}
    seconds = medians({kind: lambda kind=kind: next(steps[kind]) for kind in kinds}, lab.looks, device)
    row |= {f"{kind} ms": 1e3 * seconds[kind] for kind in kinds}
    row |= {name: row[f"control {unit}"] / row[f"base {unit}"] for name, unit in UNITS.items()}

    images, prompt = data["images"][: lab.images // 2], data["prompts"][: lab.images // 2, 0]
    controls = [(freeze(net), canny(images), 1)] * 2
    seconds = medians({f"drawing, {n} controls, guidance {w}": lambda n=n, w=w: generate(
        locked, schedule, prompt, images, controls[:n], guidance=w, steps=lab.sampling_steps)
        for w in (1, 2) for n in range(3)}, 3, device)
    return row | {name: 1e3 * value / len(images) for name, value in seconds.items()}  # ms per image


def saved_bytes(loss_of, batch, modules):
    """Bytes that loss_of(*batch) saves for the backward pass, and how many of them for frozen convolutions alone.

    Each storage counts once, the weights of `modules` not at all.
    """
    weights = {parameter.untyped_storage().data_ptr() for module in modules for parameter in module.parameters()}
    storages, times, frozen = {}, {}, set()

    def pack(x):
        storage = x.untyped_storage()
        place = storage.data_ptr()
        if place not in weights:
            storages[place] = storage  # kept, or its place in memory would be used again
            times[place] = times.get(place, 0) + 1
        return x.detach()

    def remember(conv, inputs):
        if inputs[0].requires_grad and not conv.weight.requires_grad:
            frozen.add(inputs[0].untyped_storage().data_ptr())

    handles = [module.register_forward_pre_hook(remember) for part in modules for module in part.modules()
               if isinstance(module, nn.Conv2d)]
    with saved_tensors_hooks(pack, lambda x: x):
        loss_of(*batch)
    for handle in handles:
        handle.remove()
    sizes = {place: storage.nbytes() for place, storage in storages.items()}
    return sum(sizes.values()), sum(size for place, size in sizes.items() if place in frozen and times[place] == 1)


def medians(actions, rounds, device):
    """Calls all functions of the dict in turn, once to warm up, then `rounds` times. -> {name: median seconds}"""
    seconds = {name: [] for name in actions}
    for _ in range(rounds + 1):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            if device.type != "cpu":  # it has only been told what to do
                getattr(torch, device.type).synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def verdict(rows):
    device = devices(rows)[-1]  # a GPU where one was measured, as the paper used one
    off = {name: mean(rows, device, name) - paper for name, paper in PAPER.items()}
    word = "reproduced" if all(abs(by) <= NEAR for by in off.values()) else "not reproduced"
    how = " and ".join(
        f"{f'within {NEAR} of' if abs(by) <= NEAR else 'less than' if by < 0 else 'more than'} the paper's "
        f"{PAPER[name]} in {name}" for name, by in off.items())
    texts = [f"on {name}: time {in_figures(rows, name, 'time', 2)}, memory {in_figures(rows, name, 'memory', 2)}, "
             f"arithmetic {mean(rows, name, 'arithmetic'):.2f}, trained parameters "
             f"{mean(rows, name, 'trained parameters'):.2f}" for name in devices(rows)]
    return word, (f"a control step over a base step, {'; '.join(texts)}. That is {how} (which are of Stable "
                  "Diffusion, whose text and image encoders run in both steps). Of the control's "
                  f"{mean(rows, device, 'control MB'):.0f} MB, {mean(rows, device, f'control {NEEDLESS}'):.0f} are "
                  "inputs that torch saves for frozen convolutions")


def devices(rows):
    return list(dict.fromkeys(key.rpartition("-")[0] for key in rows))


def table(rows):
    """The means over the rounds, as text. Ratios are those over the base alone."""
    lines = []
    for device in devices(rows):
        step = f"a training step of {mean(rows, device, 'batch_size'):.0f} images, {device}"
        lines.append(f"\n{step:42}{'base':>8}{'control':>9}{'ratio':>7}{'paper':>7}")
        for name, unit in {**UNITS, **{f"  {part}": part for part in (*PARTS, NEEDLESS)}}.items():
            base, control = (mean(rows, device, f"{kind} {unit}") for kind in ("base", "control"))
            label = f"{name}, {unit if name in UNITS else 'MB'}"
            lines.append(f"{label:42}{base:8.2f}{control:9.2f}" + (f"{control / base:7.2f}" if base else " " * 7)
                         + f"{PAPER.get(name, ''):>7}")
        lines.append(f"{'drawing, ms per image':42}{'alone':>8}{'1 control':>16}{'2 controls':>16}")
        for w in (1, 2):
            alone, *more = (mean(rows, device, f"drawing, {n} controls, guidance {w}") for n in range(3))
            lines.append(f"{f'guidance {w}':42}{alone:8.2f}" + "".join(f"{ms:9.2f} ({ms / alone:.2f})" for ms in more))
    return "\n".join(lines)


def figure(rows, lab):
    fig = Figure(figsize=(11, 4), layout="constrained")
    left, right = fig.subplots(1, 2, width_ratios=[1.3, 1])
    ratios = {device: [across_seeds(rows, device, name) for name in UNITS] for device in devices(rows)}
    grouped_bars(left, UNITS, ratios, "A training step, control over base (points: rounds)")
    for place, name in enumerate(PAPER):
        left.hlines(PAPER[name], place - 0.45, place + 0.45, color="tab:red", label=None if place else "paper")
    left.axhline(1, color="tab:gray", linestyle="--", linewidth=1)
    left.legend(fontsize=8)
    device, bottom = devices(rows)[-1], [0.0, 0.0]
    for part in PARTS:
        values = [mean(rows, device, f"{kind} {part}") for kind in ("base", "control")]
        right.barh([1, 0], values, left=bottom, label=part)
        bottom = [a + b for a, b in zip(bottom, values)]
    needless = mean(rows, device, f"control {NEEDLESS}")
    right.barh(0, needless, left=bottom[1] - needless, fill=False, hatch="////", label=NEEDLESS)
    right.set_yticks([1, 0], ["base", "control"])
    right.set(xlabel="MB", title=f"What the memory is for: {device}, batch of {mean(rows, device, 'batch_size'):.0f}")
    right.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3)
    return fig


if __name__ == "__main__":
    main("cost")

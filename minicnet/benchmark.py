"""What training and drawing cost on this machine, in time, memory and arithmetic, with a control and without:

    python -m minicnet.benchmark --out runs/benchmark.json
    python -m minicnet.benchmark --readme           # also puts the table into this checkout's README

What is compared is run in turn, in one process, and times are medians: so other programs slow all of it down alike.
"""

import argparse
import copy
import datetime
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from minicnet.checkpoints import CheckpointError, write_json
from minicnet.conditions import canny
from minicnet.controlnet import ControlNet, freeze
from minicnet.diffusion import NoiseSchedule, diffusion_loss
from minicnet.parallel import TrainingError, cores
from minicnet.report import README, update_readme
from minicnet.sample import generate
from minicnet.training import (
    autocast,
    draw_batch,
    frozen_convolutions_forget,
    make_optimizer,
    pick_device,
    positive,
    training_step,
)
from minicnet.unet import UNet

MARKS = "<!-- benchmark: made by python -m minicnet.benchmark --readme -->", "<!-- end of benchmark -->"
IMAGES = 64  # drawn at once
PAPER = {"time": 1.34, "memory": 1.23}  # a control's training step over its base's (section 3.2)


def interleaved_medians(actions, rounds, device):
    """Calls all functions of the dict in turn, once to warm up, then `rounds` times. -> {name: median seconds}"""
    seconds = {name: [] for name in actions}
    for _ in range(rounds + 1):
        for name, action in actions.items():
            seconds[name].append(timed(action, device))
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def timed(action, device):
    """Seconds that a function takes, what it left for a GPU to do included."""
    synchronize(device)
    start = time.perf_counter()
    action()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device):
    """Waits until a GPU has done all that it was given."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def saved_bytes(function, modules):
    """Bytes kept for the backward pass of what `function()` returns: each storage once, parameters of `modules` not.

    Walks over the graph: torch's saved_tensors_hooks would not see what other such hooks make of a tensor.
    """
    weights = {parameter.untyped_storage().data_ptr() for module in modules for parameter in module.parameters()}
    nodes, seen, saved = [function().grad_fn], set(), {}
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        for value in [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]:
            for x in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in weights:
                    saved[x.untyped_storage().data_ptr()] = x.untyped_storage()
    return sum(storage.nbytes() for storage in saved.values())


def step_memory(net, eps_model, schedule, batch, locked=()):
    """Bytes that one training step of `net` needs, as `train` takes it, by what they are for.

    eps_model(net, x_0, label) and batch: as in `training_step`. locked: modules that eps_model uses besides net. The
    running average is left out: it is no part of the step, and may lie anywhere.
    """
    x_0, label, t, eps = batch

    def loss():
        with autocast(x_0.device):
            return diffusion_loss(eps_model(net, x_0, label), schedule, x_0, t, eps)

    trained = sum(p.nbytes for p in net.parameters() if p.requires_grad)
    with frozen_convolutions_forget():
        return {"saved for backward": saved_bytes(loss, [net, *locked]), "gradients": trained,
                "optimizer": 2 * trained,  # AdamW's two moments
                "weights": sum(p.nbytes for module in (net, *locked) for p in module.parameters())}


def flops(function):
    """Floating-point operations of the convolutions and matrix products in `function()`, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def matmul_peak(device, dtype):
    """Operations per second in a product of two square matrices: the best of ten, at a size that keeps it busy."""
    size, seconds = 64, 0.0
    while seconds < 5e-3:
        size *= 2
        a, b = torch.randn(2, size, size, device=device, dtype=dtype)
        seconds = min(timed(lambda a=a, b=b: a @ b, device) for _ in range(10))
    return 2 * size**3 / seconds


def training_costs(unet, control_net, schedule, steps, batch_size, peak):
    """{"base": costs, "control": costs} of a training step. `unet` trains as a base, a locked copy is controlled."""
    device, locked = schedule.beta.device, freeze(copy.deepcopy(unet))
    images, labels = torch.rand(1000, 1, 28, 28, device=device) * 2 - 1, torch.arange(1000, device=device) % 10
    batch = draw_batch(0, 0, images, labels, batch_size=batch_size, null_label=unet.null_label, drop_labels=0.1,
                       T=len(schedule))

    def base_eps(net, x_0, label):
        return lambda x_t, t: net(x_t, t, label)

    def control_eps(net, x_0, label):
        edges = canny(x_0)
        return lambda x_t, t: locked(x_t, t, label, control=net(x_t, t, label, edges))

    def step_of(net, eps_model, *sharing):
        average, optimizer = copy.deepcopy(net).requires_grad_(False), make_optimizer(net, 1e-4)
        return lambda: training_step(0, net, average, optimizer, eps_model, schedule, batch, *sharing)

    kinds = {"base": (unet, base_eps), "control": (control_net, control_eps)}
    with frozen_convolutions_forget(), cores(device, batch_size) as sharing:
        seconds = interleaved_medians({kind: step_of(*kinds[kind], *sharing) for kind in kinds}, steps, device)
        costs = {}
        for kind, (net, eps_model) in kinds.items():
            operations = flops(step_of(net, eps_model))
            memory = step_memory(net, eps_model, schedule, batch, [locked] * (kind == "control"))
            costs[kind] = {"seconds": seconds[kind], "images_per_second": batch_size / seconds[kind],
                           "flops": operations, "share_of_peak": operations / seconds[kind] / peak,
                           "bytes": sum(memory.values()), **memory}
            if device.type == "cuda":  # what the step adds to all that lies there, and the weights that it needs
                net.zero_grad()
                step, before = step_of(net, eps_model), torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                step()
                costs[kind]["cuda_peak_bytes"] = torch.cuda.max_memory_allocated() - before + memory["weights"]
    return costs


def sampling_costs(unet, control_nets, schedule, rounds, count=IMAGES):
    """Seconds per image of `generate`: {"guidance 1": [base, with one control, with two], "guidance 2": ...}."""
    device = schedule.beta.device
    x_T, condition = torch.randn(count, 1, 28, 28, device=device), torch.rand(count, 1, 28, 28, device=device)
    label = torch.arange(count, device=device) % 10
    controls = [(net, condition, 1.0) for net in control_nets]
    medians = interleaved_medians({
        (w, n): lambda w=w, n=n: generate(unet, schedule, label, x_T, controls[:n], guidance=w)
        for w in (1, 2) for n in range(3)}, rounds, device)
    return {f"guidance {w}": [medians[w, n] / count for n in range(3)] for w in (1, 2)}


def measure(device, steps, batch_size):
    """All of it, as a dict of plain values: seconds, bytes, operations, operations per second."""
    torch.manual_seed(0)
    schedule, unet = NoiseSchedule.cosine(1000).to(device), UNet().to(device)
    control_nets = [ControlNet(unet).to(device) for _ in range(2)]
    with autocast(device):
        dtype = "bfloat16" if torch.is_autocast_enabled(device.type) else "float32"
    peak = {name: matmul_peak(device, getattr(torch, name)) for name in ("float32", "bfloat16")}
    training = training_costs(unet, control_nets[0], schedule, steps, batch_size, peak[dtype])
    sampling = sampling_costs(freeze(unet), [freeze(net) for net in control_nets], schedule, max(1, steps // 10))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return {"device": name, "dtype": dtype, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "date": datetime.date.today().isoformat(), "steps": steps, "batch_size": batch_size,
            "peak": peak, "training": training, "seconds_per_image": sampling, "paper": PAPER}


def table(result):
    """What `measure` gave, as text. Ratios are those over the base alone."""
    base, control = result["training"]["base"], result["training"]["control"]
    peaks = ", ".join(f"{value / 1e9:.3g} in {name}" for name, value in result["peak"].items())
    lines = [f"{result['device']}, {result['dtype']}, {result['threads']} threads, torch {result['torch']}, "
             f"{result['date']}", f"peak of the matrix product, GFLOP/s: {peaks}", "",
             f"a training step of {result['batch_size']:<4} images        base  control  ratio  paper"]
    units = {"seconds": ("time, ms", 1e3, PAPER["time"]), "images_per_second": ("images/s", 1, ""),
             "flops": ("GFLOP", 1e-9, ""), "share_of_peak": ("% of the peak", 100, ""),
             "bytes": ("memory, MB", 1e-6, PAPER["memory"]), "cuda_peak_bytes": ("memory of the GPU, MB", 1e-6, "")}
    for key in base:
        name, scale, paper = units.get(key, (f"  {key}, MB", 1e-6, ""))
        lines.append(f"{name:32}{base[key] * scale:9.4g}{control[key] * scale:9.4g}"
                     f"{control[key] / base[key]:7.2f}{paper:>7}")
    lines += ["", f"drawing {IMAGES:2} at once, ms per image     base   with 1 control   with 2 controls"]
    for name, (alone, one, two) in result["seconds_per_image"].items():
        lines.append(f"{name:32}{alone * 1e3:9.1f}" + "".join(f"{s * 1e3:11.1f} ({s / alone:.2f})" for s in (one, two)))
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=positive, default=30, help="training steps to take the median of")
    parser.add_argument("--batch-size", type=positive, default=16)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark.json"))
    parser.add_argument("--readme", action="store_true", help="put the table into this checkout's README")
    args = parser.parse_args(argv)
    try:
        result = measure(pick_device(args.device), args.steps, args.batch_size)
        write_json(args.out, result)
        if args.readme:
            update_readme(README, *MARKS, f"```\n{table(result)}\n```")
    except (TrainingError, CheckpointError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped")
    print(f"{table(result)}\n\nin {args.out}")


if __name__ == "__main__":
    main()

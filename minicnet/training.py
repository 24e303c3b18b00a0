"""One training loop for the base and for the control. What differs is the `eps_model` given to it.

Data order and noise depend on seed and step alone, and a checkpoint holds all that a step depends on, so a run that is
stopped and resumed takes the same steps as one that is not.
"""

import argparse
import copy
import math
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager

import torch
from torch import nn
from tqdm.auto import tqdm

from minicnet.checkpoints import load_checkpoint, save_checkpoint
from minicnet.diffusion import diffusion_loss
from minicnet.parallel import TrainingError, cores, rank_of, sum_over_ranks

EMA_DECAY = 0.995  # the averaged weights, which draw cleaner images, remember about the last 200 steps
WARM_UP = 100  # steps, or a tenth of a short training
READ_EVERY = 10  # steps between two looks at the losses: at each, the processor waits for the GPU


def pick_device(name):
    """The torch.device called "cpu", "cuda" or "mps", or with "auto" the fastest there is. Raises TrainingError.

    Each of the processes that torchrun started gets a GPU of its own.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, present in available.items() if present)
    if not available.get(name):
        raise TrainingError(f"there is no device {name!r} here that torch can use: try --device auto or --device cpu")
    if name == "mps" and "LOCAL_RANK" in os.environ:
        raise TrainingError("processes of torchrun cannot exchange gradients from device mps: try --device cpu")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= gpus:
            raise TrainingError(f"torchrun's --nproc_per_node must not be larger than the number of GPUs, {gpus}")
        return torch.device(name, number)
    return torch.device(name)


def whole_number(text):
    """The value of a command-line flag such as --seed: 0 .. 10^9."""
    number = int(text)
    if not 0 <= number <= 10**9:
        raise argparse.ArgumentTypeError(f"{text} does not lie in 0 .. 10^9")
    return number


def positive(text):
    """The value of a command-line flag such as --batch-size: 1 .. 10^9."""
    number = whole_number(text)
    if number == 0:
        raise argparse.ArgumentTypeError("0 is too few")
    return number


def autocast(device):
    """bf16 autocast where the hardware has instructions for it; without them a CPU is slower at it than at float32."""
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not there in every torch since 2.11
        fast = bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    else:
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def learning_rate_at(step, steps, peak):
    """Linear warm-up to `peak`, and half a cosine down to 0 after the last step."""
    return peak * min(1, (step + 1) / min(WARM_UP, 1 + steps // 10)) * (1 + math.cos(math.pi * step / steps)) / 2


def draw_batch(step, seed, images, labels, *, batch_size, null_label, drop_labels, T):
    """x_0, label, t, eps of one training step: a function of seed and step, on the device of the images.

    A share `drop_labels` of the labels is replaced by the null label. Timesteps run over 0 .. T-1, the later the more
    often (t = T sqrt(u), u uniform): the shape of a digit is decided while there is much noise, where an error in eps,
    small as it is, is a large one in x_0. Each of batch_size equal parts of u gives one t, so batches are alike.
    """
    device = images.device
    generator = torch.Generator(device).manual_seed(seed * 10_000_000 + step)
    index = torch.randint(len(images), (batch_size,), generator=generator, device=device)
    dropped = torch.rand(batch_size, generator=generator, device=device) < drop_labels
    offset = torch.rand(1, generator=generator, device=device)
    u = (torch.arange(batch_size, device=device) + offset) / batch_size
    t = (T * u.sqrt()).long().clamp(max=T - 1)
    x_0 = images[index]
    eps = torch.randn(x_0.shape, generator=generator, device=device)
    return x_0, torch.where(dropped, null_label, labels[index]), t, eps


@contextmanager
def frozen_convolutions_forget():
    """Within, a frozen convolution keeps only the shape of its input for the backward pass: torch keeps all of it, but
    the rest would serve the gradient of its weight alone. So a control's step takes less memory than its base's."""
    forward = nn.Conv2d.forward

    def forgetful(conv, x):
        if conv.weight.requires_grad or not x.requires_grad:
            return forward(conv, x)
        weight = conv.weight.shape
        with torch.autograd.graph.saved_tensors_hooks(
                lambda saved: saved if saved.shape == weight else saved.new_empty(()).expand(saved.shape), lambda x: x):
            return forward(conv, x)

    nn.Conv2d.forward = forgetful
    try:
        yield
    finally:
        nn.Conv2d.forward = forward


def training_step(step, net, average, optimizer, eps_model, schedule, batch, shares=1, map=map):
    """One step on a batch (x_0, label, t, eps): the gradient, clipped to length 1; AdamW; the average. -> loss, ()"""
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    rank, ranks = rank_of()

    def loss_and_gradient(x_0, label, t, eps):  # what one share adds to them, in one long vector
        with autocast(x_0.device):
            loss = diffusion_loss(eps_model(net, x_0, label), schedule, x_0, t, eps) * (len(x_0) / len(batch[0]))
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        return torch.cat([loss.detach().view(1), *(gradient.flatten() for gradient in gradients)])

    mine = [x.tensor_split(ranks * shares)[rank * shares:][:shares] for x in batch]
    vector = sum_over_ranks(sum(map(loss_and_gradient, *mine)))
    loss, gradient = vector[0].clone(), vector[1:]
    gradient *= (1 / gradient.norm()).clamp(max=1)
    for parameter, part in zip(parameters, gradient.split([parameter.numel() for parameter in parameters])):
        parameter.grad = part.view_as(parameter)
    optimizer.step()
    decay = min(EMA_DECAY, (1 + step) / (10 + step))  # short at first, when the weights are still random
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
    return loss


def make_optimizer(net, learning_rate):
    """AdamW, all of it in one pass over the weights."""
    return torch.optim.AdamW(net.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)


@contextmanager
def deferred_interrupt():
    """Within, a first Ctrl-C only fills the list that this yields, so that the step can end; a second stops at once."""
    requests = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread hears of Ctrl-C
        yield requests
        return

    def remember(number, frame):
        if requests:
            raise KeyboardInterrupt
        requests.append(number)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield requests
    finally:
        signal.signal(signal.SIGINT, before)


def not_asked(net):
    """What the other processes have for `evaluate`."""
    return {"heldout_loss": math.nan}


def train(net, eps_model, schedule, images, labels, *, steps, batch_size, learning_rate, drop_labels, null_label, seed,
          path, about, evaluate, evaluate_every, resume=False):
    """Trains `net`, leaves its averaged (EMA) weights in it, and writes them to `path`. Returns (history, seconds).

    eps_model(net, x_0, label): the `eps_model(x_t, t)` to train on a batch, or a share of one, perhaps in a thread; x_0
    is there to make a condition of.
    images: (N, C, H, W) in [-1, 1] and labels: (N,), on the device to train on. evaluate(net): a dict of numbers, asked
    of the averaged weights every `evaluate_every` steps; history is a list of {"step", "loss", and those numbers}.
    about: plain values that say what run this is, "kind" among them. With `resume`, training goes on from `path`, if it
    is there and about the same run, and is over at once if it was finished.

    Raises TrainingError if the loss is no longer a finite number, CheckpointError if a file cannot be read or written,
    and KeyboardInterrupt for Ctrl-C, after the step has ended and was saved. Of several processes (parallel.py) only
    the first evaluates, shows, writes and obeys Ctrl-C.
    """
    rank, ranks = rank_of()
    if rank:
        evaluate = not_asked
    if batch_size < ranks:
        raise TrainingError(f"{ranks} processes cannot share a batch of {batch_size}: use a larger --batch-size")
    about = {**about, "steps": steps, "batch_size": batch_size, "seed": seed}
    average = copy.deepcopy(net).eval().requires_grad_(False)
    optimizer = make_optimizer(net, learning_rate)
    step, seconds, losses, history = 0, 0.0, [], []
    if resume and path.exists():
        checkpoint = load_checkpoint(path, about)
        step = checkpoint["step"]
        # Names as one object each, like those of rows made here: or pickle would write the same history in other bytes.
        history = [{sys.intern(name): value for name, value in row.items()} for row in checkpoint["history"]]
        net.load_state_dict(checkpoint["weights"])
        if step == steps:
            net.eval()
            return history, 0.0
        average.load_state_dict(checkpoint["weights"])
        training = checkpoint["training"]
        net.load_state_dict(training["weights"])
        optimizer.load_state_dict(training["optimizer"])
        losses, seconds = training["losses"], training["seconds"]

    def save():
        if rank:
            return
        if not all(parameter.isfinite().all() for parameter in average.parameters()):
            raise TrainingError(f"the weights are no longer finite after step {step}; {path} keeps the last good ones, "
                                "a lower learning rate or another --seed may help")
        checkpoint = {**about, "step": step, "history": history, "weights": average.state_dict()}
        if step < steps:  # a finished net is its weights, and nothing that differs from one run to the next
            checkpoint["training"] = {"weights": net.state_dict(), "optimizer": optimizer.state_dict(),
                                      "losses": losses, "seconds": seconds + time.perf_counter() - start}
        save_checkpoint(path, checkpoint)

    start = time.perf_counter()
    if not history:
        history.append({"step": 0, **evaluate(average)})
        save()  # a folder that cannot be written to is noticed before an hour of training, not after
    net.train()
    unread = []  # losses still on the device: reading one makes the processor wait for a GPU
    bar = tqdm(total=steps, initial=step, desc=f"{about['kind']:8}", unit=" steps", dynamic_ncols=True,
               disable=rank > 0)
    with bar, deferred_interrupt() as interrupts, frozen_convolutions_forget():
        if rank:
            interrupts = ()
        while step < steps:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, steps, learning_rate)
            batch = draw_batch(step, seed, images, labels, batch_size=batch_size, T=len(schedule),
                               drop_labels=drop_labels, null_label=null_label)
            with cores(images.device, batch_size // ranks) as (shares, spread):
                loss = training_step(step, net, average, optimizer, eps_model, schedule, batch, shares, spread)
            step += 1

            unread.append(loss)
            evaluating = step % evaluate_every == 0 or step == steps
            if step % READ_EVERY == 0 or evaluating or interrupts:
                values, unread = torch.stack(unread).tolist(), []
                for i, value in enumerate(values, start=step - len(values) + 1):
                    if not math.isfinite(value):
                        raise TrainingError(f"the loss became {value} at step {i}; {path} keeps the last good weights, "
                                            "a lower learning rate or another --seed may help")
                losses += values
                bar.set_postfix_str(f"loss {value:.4f}, held-out {history[-1]['heldout_loss']:.4f}, "
                                    f"{batch_size * (bar.format_dict['rate'] or 0):.0f} images/s", refresh=False)
                bar.update(len(values))
            if evaluating:
                history.append({"step": step, "loss": sum(losses) / len(losses), **evaluate(average)})
                losses = []
            if (evaluating or interrupts) and not unread:  # Ctrl-C since the losses were read waits for the next step
                save()
                if interrupts:
                    raise KeyboardInterrupt
    net.load_state_dict(average.state_dict())
    net.eval()
    return history, seconds + time.perf_counter() - start

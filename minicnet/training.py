"""One training loop for the base and for the control. What differs is the `eps_model` given to it.

The data of a step and its noise depend on seed and step alone, and a checkpoint holds all that a step depends on. So a
run that is stopped and resumed takes the same steps as one that is not.

AdamW: Loshchilov, Hutter 2019, arXiv 1711.05101.
"""

import copy
import math
import time

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from minicnet.checkpoints import load_checkpoint, save_checkpoint
from minicnet.devices import TrainingError, autocast, rank_of
from minicnet.diffusion import diffusion_loss
from minicnet.muon import Muon
from minicnet.runs import deferred_interrupt

MUON_RATE, ADAM_RATE = 0.02, 0.01
RIM = {"conv_in", "conv_out", "share", "tokens", "places"}  # the base's layers that touch pixels, x_t or words
WARM_UP = 50  # steps, or a tenth of a short training
EMA_DECAY = 0.995  # the averaged weights remember about the last 200 steps
SAY_LESS = 0.2  # of the prompts are drawn from all ways to say their caption or less
LOUDEST = 5  # the largest weight of an error, before all are divided by their mean
READ_EVERY = 10  # steps between two looks at the losses: at each, the processor waits for the GPU


def make_optimizers(net):
    """Muon for the weight matrices; AdamW for those of RIM, and for norms and biases."""
    inside = {id(parameter) for name, parameter in net.named_parameters()
              if parameter.ndim > 1 and not RIM & set(name.split("."))}
    parameters = list(net.parameters())
    return [Muon([p for p in parameters if id(p) in inside], MUON_RATE),
            torch.optim.AdamW([p for p in parameters if id(p) not in inside], ADAM_RATE, betas=(0.9, 0.99),
                              weight_decay=0.01, fused=True)]


def rate_at(step, steps):
    """The share of the learning rates at a step: a linear warm-up, times a linear fall to 0."""
    return min(1, (step + 1) / min(WARM_UP, 1 + steps // 10)) * (1 - step / steps)


def draw_batch(step, seed, images, prompts, *, batch_size, drop_prompts, T, t_power=0.5):
    """x_0, prompt, t, eps of one training step: a function of seed and step, on the device of the images.

    prompts: (N, V, L), the first of V the whole caption, the others parts of it (`training_prompts`). A share SAY_LESS
    of prompts is drawn from all V, and a share `drop_prompts` is replaced by the null prompt. Timesteps run over
    0 .. T-1: t = T u^t_power, u uniform, so with a power below 1 later ones come more often. Each of batch_size equal
    parts of u gives one t, so batches are alike.
    """
    device = images.device
    generator = torch.Generator(device).manual_seed(seed * 10_000_000 + step)

    def uniform(*shape):
        return torch.rand(shape, generator=generator, device=device)

    index = torch.randint(len(images), (batch_size,), generator=generator, device=device)
    way = torch.where(uniform(batch_size) < SAY_LESS, (uniform(batch_size) * prompts.shape[1]).long(), 0)
    prompt = prompts[index, way].masked_fill(uniform(batch_size, 1) < drop_prompts, 0)
    u = (torch.arange(batch_size, device=device) + uniform(1)) / batch_size
    t = (T * u**t_power).long().clamp(max=T - 1)
    x_0 = images[index]
    return x_0, prompt, t, torch.randn(x_0.shape, generator=generator, device=device)


class Loss(nn.Module):
    """The loss of a batch, as a module, because torch's DistributedDataParallel takes nothing else.

    A squared error in eps weighs 1 / sqrt(alpha_bar), but at most LOUDEST; all over their mean.
    """

    def __init__(self, net, eps_model, schedule):
        super().__init__()
        self.net, self.eps_model, self.schedule = net, eps_model, schedule
        weight = schedule.alpha_bar.rsqrt().clamp(max=LOUDEST)
        self.weight = weight / weight.mean()  # (T,)

    def forward(self, x_0, prompt, t, eps):
        return diffusion_loss(self.eps_model(self.net, x_0, prompt), self.schedule, x_0, t, eps, self.weight)


def train(net, eps_model, schedule, images, prompts, *, steps, batch_size, drop_prompts, seed, t_power=0.5, rate=1,
          snapshot=None):
    """Trains `net`, and after each step yields (step, loss, average, take_snapshot).

    eps_model(net, x_0, prompt): the `eps_model(x_t, t)` to train on a batch; x_0 is there to make a condition of.
    images: (N, C, H, W) in [-1, 1]; prompts: (N, V, L); both on the device to train on. rate: times the usual learning
    rates. average: the net with averaged (EMA) weights. take_snapshot(): all that the next step depends on; given as
    `snapshot`, training goes on from there.
    Under torchrun, each process takes its share of each batch, and torch averages the gradients.
    """
    average = copy.deepcopy(net).eval().requires_grad_(False)
    optimizers = make_optimizers(net)
    start = 0
    if snapshot:
        start = snapshot["step"]
        for part, state in zip((net, average, *optimizers), snapshot["parts"], strict=True):
            part.load_state_dict(state)
    loss_of, (rank, ranks) = Loss(net, eps_model, schedule), rank_of()
    if ranks > 1:
        loss_of = DistributedDataParallel(loss_of)

    def take_snapshot():
        return {"step": step + 1, "parts": [part.state_dict() for part in (net, average, *optimizers)]}

    net.train()
    for step in range(start, steps):
        for optimizer, usual in zip(optimizers, (MUON_RATE, ADAM_RATE)):
            for group in optimizer.param_groups:
                group["lr"] = rate * usual * rate_at(step, steps)
        batch = draw_batch(step, seed, images, prompts, batch_size=batch_size, drop_prompts=drop_prompts,
                           T=len(schedule), t_power=t_power)
        with autocast(images.device):
            loss = loss_of(*(x[rank::ranks] for x in batch))
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))  # short at first, when the weights are still random
        torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in net.parameters()], 1 - decay)
        yield step + 1, loss.detach(), average, take_snapshot


def fit(net, eps_model, schedule, images, prompts, *, path, about, look, looks=13, resume=False, **settings):
    """Trains `net` as `train` does, leaves its averaged weights in it, and in `path`. Returns (history, seconds).

    look(net): a dict of numbers, asked of the averaged weights some `looks` times; history is a list of {"step",
    "loss", and those numbers}. about: plain values that say what run this is, "kind" among them. With `resume`,
    training goes on from `path`, if it is there and of the same run, and is over at once if it was finished.

    Raises TrainingError if the loss is no longer a finite number, CheckpointError if a file cannot be read or written,
    and KeyboardInterrupt for Ctrl-C, after the step has ended and was saved. Under torchrun only the first process
    looks, shows, writes and obeys Ctrl-C.
    """
    steps, batch_size, (rank, ranks) = settings["steps"], settings["batch_size"], rank_of()
    if batch_size % ranks:
        raise TrainingError(f"{ranks} processes cannot share a batch of {batch_size}: --batch-size must be a multiple "
                            f"of {ranks}")
    about = {**about, "steps": steps, "batch_size": batch_size, "seed": settings["seed"]}
    done, history, seconds, losses, snapshot = 0, [], 0.0, [], None
    if resume and path.exists():
        checkpoint = load_checkpoint(path, about)
        done, history, seconds = checkpoint["step"], checkpoint["history"], checkpoint["seconds"]
        if done == steps:
            net.load_state_dict(checkpoint["weights"])
            net.eval()
            return history, seconds
        snapshot = checkpoint["training"]

    def save(average, take_snapshot):
        if not all(parameter.isfinite().all() for parameter in average.parameters()):
            raise TrainingError(f"the weights are no longer finite after step {done}, which is not saved: try another "
                                "--seed")
        checkpoint = {**about, "step": done, "history": history, "weights": average.state_dict(),
                      "seconds": seconds + time.perf_counter() - start}
        save_checkpoint(path, {**checkpoint, "training": take_snapshot()} if done < steps else checkpoint)

    start = time.perf_counter()
    if rank == 0 and not history:
        history.append({"step": 0, **look(net.eval())})
    bar = tqdm(total=steps, initial=done, desc=f"{about['kind']:8}", unit=" steps", dynamic_ncols=True,
               disable=rank > 0)
    with bar, deferred_interrupt() as interrupts:
        stepping = train(net, eps_model, schedule, images, prompts, snapshot=snapshot, **settings)
        for done, loss, average, take_snapshot in stepping:
            if rank > 0:
                continue
            losses.append(loss)
            looking = done % math.ceil(steps / looks) == 0 or done == steps
            if not (looking or interrupts or done % READ_EVERY == 0):
                continue
            mean = torch.stack(losses).mean().item()  # since the last look
            if not math.isfinite(mean):
                raise TrainingError(f"the loss became {mean} before step {done}, which is not saved: try another "
                                    "--seed")
            bar.set_postfix_str(f"loss {mean:.4f}, {batch_size * (bar.format_dict['rate'] or 0):.0f} images/s",
                                refresh=False)
            bar.update(done - bar.n)
            if looking:
                history.append({"step": done, "loss": mean, **look(average)})
                losses = []
            if looking or interrupts:
                save(average, take_snapshot)
            if interrupts:
                raise KeyboardInterrupt
    net.load_state_dict(average.state_dict())
    net.eval()
    return history, seconds + time.perf_counter() - start

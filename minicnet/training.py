"""Training: one loop for the base and for the control.

    recipe = Recipe(steps=2200)
    trainer = Trainer(unet, eps_model_of, images, prompts, recipe, unet.schedule)
    history, seconds = fit(trainer, Path("base.pt"), {"kind": "base"}, evaluate)

The loop is the same for both: `eps_model_of` builds the eps_model to train, of the base alone or of
the base with its control.

With the same data and recipe, the batch and the noise of a step depend on its number alone, and a
checkpoint holds everything else that a step needs. A run that is stopped and resumed on the same
kind of device therefore takes the same steps as one that runs through.

AdamW                                Loshchilov, Hutter 2019   https://arxiv.org/abs/1711.05101
averages over a part of training     Karras et al. 2024        https://arxiv.org/abs/2312.02696
"""

import copy
import math
import time
import zlib
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from minicnet.checkpoints import fingerprint, load_checkpoint, save_checkpoint
from minicnet.devices import autocast, rank_and_world_size, same_everywhere
from minicnet.diffusion import diffusion_loss
from minicnet.errors import UserError
from minicnet.muon import Muon
from minicnet.runs import deferred_interrupt

MUON_RATE = 0.02
ADAMW_RATE = 0.01
WARM_UP = 50  # steps, or a tenth of a short training
P_REDRAW = 0.2  # the probability that a prompt is drawn from the caption and its shorter forms
LOG_EVERY = 10  # steps; reading the loss more often would make the program wait for a GPU


@dataclass
class Recipe:
    """How to train. drop_prompts: the probability that a prompt is replaced by the null prompt, so
    that the network also learns to predict without one, which guidance needs.

    rate: a factor on the usual learning rates. Raises UserError for a batch size that torchrun's
    processes cannot divide equally.
    """

    steps: int
    batch_size: int = 64
    drop_prompts: float = 0.1
    seed: int = 0
    rate: float = 1.0

    def __post_init__(self):
        _, world_size = rank_and_world_size()
        if self.batch_size % world_size:
            raise UserError(f"{world_size} processes cannot share a batch of {self.batch_size}: "
                            f"--batch-size must be a multiple of {world_size}")


class Objective(nn.Module):
    """`diffusion_loss` as a module, because DistributedDataParallel wraps modules.

    eps_model_of(net, x_0, prompt) returns the eps_model(x_t, t) to train. For a ControlNet, it
    brings the locked base, and computes the condition from x_0.
    """

    def __init__(self, net, eps_model_of, schedule):
        super().__init__()
        self.net = net
        self.eps_model_of = eps_model_of
        self.schedule = schedule

    def forward(self, x_0, prompt, t, eps):
        eps_model = self.eps_model_of(self.net, x_0, prompt)
        return diffusion_loss(eps_model, self.schedule, x_0, t, eps)


class Trainer:
    """Train `net`, one `step()` at a time, and keep `average`, a copy with averaged weights.

    eps_model_of: see Objective. images: (N, C, H, W) in [-1, 1]; prompts: (N, V, L), the first of V
    the whole caption and the others parts of it (`training_prompts` in data/prompts.py); both on
    the device to train on. Under torchrun, each process takes its part of each batch, and torch
    averages gradients.
    """

    def __init__(self, net, eps_model_of, images, prompts, recipe, schedule):
        self.net = net.train()
        self.average = copy.deepcopy(net).eval().requires_grad_(False)
        self.images = images
        self.prompts = prompts
        self.recipe = recipe
        self.T = len(schedule)
        self.steps_done = 0
        self.optimizers = make_optimizers(net)
        self.loss = Objective(net, eps_model_of, schedule)
        self.rank, self.world_size = rank_and_world_size()
        if self.world_size > 1:
            self.loss = DistributedDataParallel(self.loss)

    def step(self):
        """Take one training step, and return the loss of its batch, a tensor without gradient."""
        batch = [x[self.rank::self.world_size] for x in self.draw_batch()]
        with autocast(self.images.device):
            loss = self.loss(*batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)

        # The learning rate rises linearly, and then falls linearly towards zero.
        warm_up = min(WARM_UP, 1 + self.recipe.steps // 10)
        rise = min(1, (self.steps_done + 1) / warm_up)
        fall = 1 - self.steps_done / self.recipe.steps
        for optimizer, rate in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = rate * self.recipe.rate * rise * fall
            with autocast(self.images.device):  # Muon's matrix products, too
                optimizer.step()
            optimizer.zero_grad()

        # An average over about the last ninth of the steps so far.
        decay = (self.steps_done + 1) / (self.steps_done + 10)
        weights = [parameter.detach() for parameter in self.net.parameters()]
        torch._foreach_lerp_(list(self.average.parameters()), weights, 1 - decay)
        self.steps_done += 1
        return loss.detach()

    def draw_batch(self):
        """Return x_0, prompt, t and eps of the next step, which depend on seed and step alone."""
        B = self.recipe.batch_size
        N, V, _ = self.prompts.shape
        device = self.images.device
        seed = zlib.crc32(f"{self.recipe.seed} {self.steps_done}".encode())
        generator = torch.Generator(device).manual_seed(seed)

        def uniform(*shape):
            return torch.rand(shape, generator=generator, device=device)

        index = torch.randint(N, (B,), generator=generator, device=device)
        phrasing = torch.randint(V, (B,), generator=generator, device=device)
        phrasing = phrasing.where(uniform(B) < P_REDRAW, 0)  # 0 is the whole caption
        prompt = self.prompts[index, phrasing]
        prompt = prompt.masked_fill(uniform(B, 1) < self.recipe.drop_prompts, 0)
        t = torch.randint(self.T, (B,), generator=generator, device=device)
        x_0 = self.images[index]
        eps = torch.randn(x_0.shape, generator=generator, device=device)
        return x_0, prompt, t, eps

    def state_dict(self):
        """Return all that the next steps depend on, besides the recipe, images and prompts."""
        parts = [self.net, self.average, *self.optimizers]
        return {"step": self.steps_done, "parts": [part.state_dict() for part in parts]}

    def load_state_dict(self, state):
        """Go on from what `state_dict` returned."""
        self.steps_done = state["step"]
        parts = [self.net, self.average, *self.optimizers]
        for part, part_state in zip(parts, state["parts"], strict=True):
            part.load_state_dict(part_state)
        # A run may go on where another memory layout is faster. AdamW's fused step then needs its
        # moments in the layout of the weights.
        for optimizer in self.optimizers:
            for parameter, moments in optimizer.state.items():
                for name, moment in moments.items():
                    if moment.shape == parameter.shape:
                        moments[name] = torch.empty_like(parameter).copy_(moment)


def make_optimizers(net):
    """Return {optimizer: learning rate}: Muon for matrices and kernels, AdamW for the rest.

    AdamW also trains the matrices that touch input, output or tokens. Modules name these layers in
    `outer_layers`. Ours: ControlNet's code uses AdamW alone. Muon reaches the same images in fewer
    steps, but the size of its step does not depend on the gradient's, so zero convolutions grow
    faster.
    """
    outer = {id(parameter) for module in net.modules()
             for name in getattr(module, "outer_layers", ())
             for parameter in module.get_submodule(name).parameters()}
    matrices = [p for p in net.parameters() if p.ndim > 1 and id(p) not in outer]
    others = [p for p in net.parameters() if p.ndim < 2 or id(p) in outer]
    adamw = torch.optim.AdamW(others, ADAMW_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    return {Muon(matrices, MUON_RATE): MUON_RATE, adamw: ADAMW_RATE}


def fit(trainer, path, header, evaluate, evaluations=13, resume=False):
    """Train to the recipe's end, evaluate and save on the way. Returns (history, seconds).

    evaluate(net): metrics of the averaged network, a dict of numbers, computed about `evaluations`
    times. history: a list of {"step", "loss", and those metrics}, without a loss at step 0. header:
    plain values that identify the run, "kind" among them. The averaged weights are left in `path`,
    and in trainer.net, which is in eval mode then. resume: go on from `path` if it exists; a
    finished run returns at once.

    Raises UserError if loss or weights are not finite, a file cannot be read or written, or `path`
    belongs to another run or other data; KeyboardInterrupt after Ctrl-C, once the step is saved.
    Under torchrun, rank 0 alone evaluates, logs, saves and reacts to Ctrl-C.
    """
    net, recipe = trainer.net, trainer.recipe
    data = fingerprint({"images": trainer.images, "prompts": trainer.prompts})
    if not same_everywhere(data):
        raise UserError("torchrun's processes have loaded different images: name a --dataset")
    header = {**header, **asdict(recipe), "data": data}
    history, seconds, losses = [], 0.0, []
    if resume and path.exists():
        checkpoint = load_checkpoint(path, header)
        history, seconds = checkpoint["history"], checkpoint["seconds"]
        if "training" not in checkpoint:
            net.load_state_dict(checkpoint["weights"])
            net.eval()
            return history, seconds
        trainer.load_state_dict(checkpoint["training"])

    def save():
        if not all(weight.isfinite().all() for weight in trainer.average.parameters()):
            raise UserError(f"the weights are not finite after step {trainer.steps_done}, which is "
                            "not saved: try another --seed")
        checkpoint = {**header, "step": trainer.steps_done, "history": history,
                      "weights": trainer.average.state_dict(),
                      "seconds": seconds + time.perf_counter() - start}
        if trainer.steps_done < recipe.steps:
            checkpoint["training"] = trainer.state_dict()
        save_checkpoint(path, checkpoint)

    start = time.perf_counter()
    if trainer.rank == 0 and not history:
        history.append({"step": 0, **evaluate(trainer.average)})
    bar = tqdm(total=recipe.steps, initial=trainer.steps_done, desc=f"{header['kind']:8}",
               unit=" steps", dynamic_ncols=True, disable=trainer.rank > 0)
    with bar, deferred_interrupt() as interrupts:
        while trainer.steps_done < recipe.steps:
            batch_loss = trainer.step()
            if trainer.rank > 0:
                continue
            losses.append(batch_loss)
            done = trainer.steps_done
            evaluating = done % math.ceil(recipe.steps / evaluations) == 0 or done == recipe.steps
            if not (evaluating or interrupts or done % LOG_EVERY == 0):
                continue
            loss = torch.stack(losses).mean().item()  # since the last evaluation
            if not math.isfinite(loss):
                raise UserError(f"the loss became {loss} before step {done}, which is not saved: "
                                "try another --seed")
            bar.update(done - bar.n)
            speed = recipe.batch_size * (bar.format_dict["rate"] or 0)
            bar.set_postfix_str(f"loss {loss:.4f}, {speed:.0f} images/s")
            if evaluating:
                history.append({"step": done, "loss": loss, **evaluate(trainer.average)})
                losses = []
            stopping = bool(interrupts)  # read once, because Ctrl-C may come at any moment
            if evaluating or stopping:
                save()
            if stopping:
                raise KeyboardInterrupt
        if interrupts:  # Ctrl-C came during the last save
            raise KeyboardInterrupt
    net.load_state_dict(trainer.average.state_dict())
    net.eval()
    return history, seconds + time.perf_counter() - start

"""The patients of notebook 8: trainings of a ControlNet, of which seven have a planted bug each.

Do not read on before you have made your diagnosis. The notebook opens each patient in turn.
"""

import copy

import torch
from torch import nn

from minicnet.checkpoints import WEIGHTS, load_base
from minicnet.conditions import canny
from minicnet.controlnet import ControlNet, controlled, freeze
from minicnet.data.digits import describe_digits, draw_digits
from minicnet.data.prompts import training_prompts
from minicnet.diffusion import guided, sample_ddim
from minicnet.evaluation import edge_f1
from minicnet.sampling import seeded_noise
from minicnet.training import Recipe, Trainer
from minicnet.unet import UNet
from minicnet.words import tokenize


class Healthy:
    """A training without a bug. Each method is one decision; a patient gets one of them wrong."""

    rate = 1.0  # a factor on the library's learning rates

    def control_net(self, base):
        """Make the network to train. base: a trained UNet."""
        return ControlNet(base)

    def trained(self, base, net):
        """Lock what must not change, and return the module whose weights the optimizer gets."""
        freeze(base)
        return net

    def condition(self, x_0):
        """Compute the condition of a batch of training images."""
        return canny(x_0)

    def hint(self, net, condition):
        """Encode the condition of images that are drawn."""
        return net.encode(condition)

    def eps_model(self, base, net, x_0, prompt):
        """Return the eps_model(x_t, t) whose loss is minimised."""
        return controlled(base, prompt, [(net, self.condition(x_0))])

    def guided_model(self, cond, uncond, control, w):
        """Combine two predictions. cond, uncond: functions (control or None) -> eps_model."""
        return guided(cond(control), uncond(control), w)


class PatientA(Healthy):
    def condition(self, x_0):
        return canny(x_0[torch.randperm(len(x_0))])


class PatientB(Healthy):
    def control_net(self, base):
        net = ControlNet(base)
        net.condition_encoder.append(nn.Conv2d(net.encoder.channels, net.encoder.channels, 1))
        nn.init.zeros_(net.condition_encoder[-1].weight)
        nn.init.zeros_(net.condition_encoder[-1].bias)
        return net


class PatientC(Healthy):
    def trained(self, base, net):
        base.train().requires_grad_(True)
        return nn.ModuleList([net, base])


class PatientD(Healthy):
    def control_net(self, base):
        unet = UNet(**base.settings)
        net = ControlNet(unet)
        unet.load_state_dict(base.state_dict())
        return net


class PatientE(Healthy):
    rate = 0.1


class PatientF(Healthy):
    def hint(self, net, condition):
        return net.condition_encoder(2 * condition - 1)


class PatientG(Healthy):
    def guided_model(self, cond, uncond, control, w):
        return guided(cond(control), uncond(None), w)


PATIENTS = {name[-1]: kind for name, kind in list(globals().items()) if name.startswith("Patient")}
CAUSES = {"A": 2, "B": 3, "C": 5, "D": 4, "E": 1, "F": 6, "G": 7}  # as notebook 8 numbers them


class Ward:
    """What a clinic has: the base, digits to train on, and digits to examine patients with."""

    def __init__(self, train_images, held_out, batch_size, steps, every, seed=0):
        self.batch_size, self.steps, self.every, self.seed = batch_size, steps, every, seed
        self.base, _ = load_base(WEIGHTS / "digits/base.pt")
        self.images, _ = draw_digits(train_images, seed=seed + 1)
        self.prompts = training_prompts(describe_digits(train_images, seed=seed + 1)[0])
        self.held_out, _ = draw_digits(held_out, seed=seed + 2)
        self.prompt = tokenize(describe_digits(held_out, seed=seed + 2)[0])
        self.edges = canny(self.held_out)
        self.x_T = seeded_noise(self.held_out.shape, seed)

    def treat(self, patient, until=None):
        """Train a patient until a step. Returns its chart, {what: {step: number}}, and samples."""
        torch.manual_seed(self.seed)
        base = copy.deepcopy(self.base)
        net = patient.control_net(base)
        weights = patient.trained(base, net)
        recipe = Recipe(self.steps, self.batch_size, drop_prompts=0.5, seed=self.seed,
                        rate=patient.rate)

        def eps_model_of(_, x_0, prompt):
            return patient.eps_model(base, net, x_0, prompt)

        trainer = Trainer(weights, eps_model_of, self.images, self.prompts, recipe, base.schedule)
        names = ("training loss", "right edges", "wrong edges", "without control", "edge-F1",
                 "condition encoder", "copy", "exits")
        chart, losses = {name: {} for name in names}, []
        gradients = self.watch_gradients(net)
        self.examine(patient, base, net, 0, chart)
        for step in range(1, (until or self.steps) + 1):
            losses.append(trainer.step().item())
            if step % self.every == 0:
                self.examine(patient, base, net, step, chart)
                chart["training loss"][step] = sum(losses[-self.every:]) / self.every
                for part, squares in gradients.items():
                    chart[part][step] = (sum(squares) / self.every) ** 0.5
                    squares.clear()
        chart["drawn"] = {w: self.draw(patient, base, net, w) for w in (1, 4)}
        chart["base"] = self.draw(patient, base, None, 1)
        return chart

    def watch_gradients(self, net):
        """Collect the squared norms of the weights' gradients of three parts, in {part: list}."""
        squares = {"condition encoder": [], "copy": [], "exits": []}
        parts = (net.condition_encoder, net.encoder, net.zero_convs)
        for part, module in zip(squares, parts):
            for parameter in module.parameters():
                if parameter.ndim > 1:  # a bias can move where no weight does
                    parameter.register_hook(
                        lambda g, part=part: squares[part].append(g.square().sum().item()))
        return squares

    @torch.no_grad()
    def examine(self, patient, base, net, step, chart):
        """Measure losses and edge-F1 of the held-out digits."""
        t = torch.linspace(50, len(base.schedule) - 50, len(self.x_T)).long()
        x_t = base.schedule.add_noise(self.held_out, self.x_T, t)
        weight = base.schedule.sqrt_alpha_bar[t][:, None, None, None]
        hints = net.encode(self.edges), net.encode(self.edges.roll(1, 0)), None
        for name, hint in zip(("right edges", "wrong edges", "without control"), hints):
            control = None if hint is None else net(x_t, t, self.prompt, hint=hint)
            error = (base(x_t, t, self.prompt, control=control) - self.x_T) / weight
            chart[name][step] = error.square().mean().item()
        chart["edge-F1"][step] = edge_f1(self.draw(patient, base, net, 1, 5), self.edges)

    @torch.no_grad()
    def draw(self, patient, base, net, w, steps=10):
        """Draw the held-out digits again, from noise, prompts and edges."""
        hint = patient.hint(net, self.edges) if net else None

        def under(prompt):
            return lambda net: lambda x_t, t: base(
                x_t, t, prompt, control=net(x_t, t, prompt, hint=hint) if net else None)

        cond, uncond = under(self.prompt), under(torch.zeros_like(self.prompt))
        model = patient.guided_model(cond, uncond, net, w)
        return sample_ddim(model, base.schedule, self.x_T, steps)

"""The assignments' own tools: what students get, which solutions earn points, and grading whatever comes back."""

import ast
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ROOT / "notebooks" / "assignments"
sys.path.insert(0, str(TOOLS))
import grade  # noqa: E402
from make_student import ASSIGNMENTS, blank, make_student, shown_text, squeezed  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="scored tests run apart on Linux only")
QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

RIGHT = {  # written differently from the library, and right
    "a1": {
        "NoiseSchedule.__init__": "alpha_bar = torch.exp(torch.cumsum(torch.log(alpha), 0))",
        "NoiseSchedule.add_noise": """
            self._check(x_0, eps, t)
            signal = self.alpha_bar[t].reshape([-1] + [1] * (x_0.dim() - 1))
            return torch.sqrt(signal) * x_0 + torch.sqrt(1 - signal) * eps""",
        "NoiseSchedule.predict_x0": """
            self._check(x_t, eps, t)
            while t.ndim < x_t.ndim:
                t = t.unsqueeze(-1)
            return x_t / self.sqrt_alpha_bar[t] - eps * (1 / self.alpha_bar[t] - 1) ** 0.5""",
        "diffusion_loss": """
            w = torch.ones_like(schedule.beta) if weight is None else weight
            squares = (eps - eps_model(schedule.add_noise(x_0, eps, t), t)) ** 2
            return (w[t].view(-1, *[1] * (x_0.ndim - 1)) * squares).mean()""",
        "guided": """
            def both(x_t, t):
                B = len(x_t)
                if w in (0, 1):
                    return eps_model(x_t, t, *(conditional if w else unconditional))
                inputs = [torch.cat([u, c]) for u, c in zip(unconditional, conditional)]
                eps = eps_model(x_t.repeat(2, *[1] * (x_t.ndim - 1)), t.repeat(2), *inputs)
                return (1 - w) * eps[:B] + w * eps[B:]

            return both""",
        "sample_ddpm": """
            beta, alpha, alpha_bar = schedule.beta[t], schedule.alpha[t], schedule.alpha_bar[t]
            eps = (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
            x_t = (x_t - beta * eps / (1 - alpha_bar).sqrt()) / alpha.sqrt()
            noise = _noise_like(x_t, generator) if t else torch.zeros_like(x_t)
            x_t = x_t + schedule.posterior_variance[t] ** 0.5 * noise""",
        "sample_ddim": """
            t_now, t_next = (torch.full((len(x_t),), s, device=x_t.device) for s in (t, t_prev))
            pure = (x_t - schedule.add_noise(x_0, torch.zeros_like(x_0), t_now)) / (1 - schedule.alpha_bar[t]).sqrt()
            a, b = schedule.alpha_bar[t], schedule.alpha_bar[t_prev]
            variance = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
            x_t = b.sqrt() * x_0 + (1 - b - variance).sqrt() * pure
            x_t = x_t + variance.sqrt() * _noise_like(x_t, generator)""",
    },
    "a2": {
        "timestep_embedding": """
            steps = torch.linspace(0, 1, dim // 2 + 1, device=t.device)[:-1]
            angles = torch.outer(t.float(), 10_000.0 ** -steps)
            return torch.hstack([torch.sin(angles), torch.cos(angles)])""",
        "ResBlock.forward": """
            def half(norm, conv, h):
                return conv(nn.functional.silu(norm(h)))

            bias = self.emb(emb).unsqueeze(2).unsqueeze(3)
            return half(self.norm2, self.conv2, half(self.norm1, self.conv1, x) + bias) + self.shortcut(x)""",
        "attention_weights": """
            B, C = len(q), q.shape[2]
            q, k = (x.reshape(B, -1, heads, C // heads) for x in (q, k))
            scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * (C // heads) ** -0.5
            if mask is not None:
                scores = torch.where(mask[:, None, None, :], scores, -1e9)
            weights = (scores - scores.amax(-1, keepdim=True)).exp()
            return weights / weights.sum(-1, keepdim=True)""",
        "attend": """
            parts = v.chunk(weights.shape[1], dim=2)
            return torch.cat([weights[:, i] @ part for i, part in enumerate(parts)], dim=2)""",
        "CrossAttention.forward": """
            B, C, H, W = x.shape
            v = F.linear(words.vectors, self.v.weight, self.v.bias)
            taken = self.proj(attend(self.weights(x, words), v))
            return taken.permute(0, 2, 1).reshape(B, C, H, W) + x""",
        "CrossAttention.weights": """
            places = torch.einsum("bchw->bhwc", self.norm(x)).reshape(len(x), -1, x.shape[1])
            k = torch.einsum('ble,ce->blc', words.vectors, self.k.weight) + self.k.bias
            return attention_weights(self.q(places), k, self.heads, mask=words.mask)""",
        "Encoder.rest": """
            skips = [h]
            while len(skips) <= len(self.stages):
                skips += [self.stages[len(skips) - 1](skips[-1], emb, words)]
            return skips, self.middle(skips[-1], emb, words)""",
        "Decoder.forward": """
            h, left = middle, list(skips)
            for stage in self.stages:
                h = stage(torch.hstack((h, left.pop())), emb, words)""",
    },
    "a3": {
        "zero_conv": """
            conv = nn.Conv2d(in_channels, in_channels if out_channels is None else out_channels, 1)
            for parameter in conv.parameters():
                parameter.data.fill_(0)
            return conv""",
        "freeze": """
            for parameter in module.parameters():
                parameter.requires_grad_(False)
                parameter.grad = None
            module.train(False)
            return module""",
        "trainable_copy": """
            twin = copy.deepcopy(module)
            for parameter in twin.parameters():
                parameter.requires_grad = True
            return twin.train()""",
        "ControlledBlock.__init__": """
            self.locked = freeze(block)
            self.copy = trainable_copy(self.locked)
            self.zero_out = zero_conv(channels, channels)
            self.zero_in = zero_conv(channels if condition_channels is None else condition_channels, channels)""",
        "ControlledBlock.forward": """
            seen = self.zero_in(c) + x
            y = self.locked(x, *args)
            return y + self.zero_out(self.copy(seen, *args))""",
        "ConditionEncoder.__init__": """
            super().__init__(*layers)
            self.append(zero_conv(width, channels))""",
        "ControlNet.forward": """
            told, h = self.encoder.embed(t, prompt), self.encoder.first(x_t) + hint
            residuals = [self.zero_skips[0](h)]
            for stage, zero in zip(self.encoder.stages, list(self.zero_skips)[1:]):
                h = stage(h, *told)
                residuals.append(zero(h))
            return Control(skips=residuals, middle=self.zero_middle(self.encoder.middle(h, *told)))""",
        "Control.__add__": """
            if not isinstance(other, Control):
                return self
            return Control([torch.add(*pair) for pair in zip(self.skips, other.skips)], other.middle + self.middle)""",
        "Control.__mul__": "return Control(list(map(lambda skip: skip * scale, self.skips)), self.middle * scale)",
        "UNet.forward": """
            skips = list(skips)
            for i, residual in enumerate(control.skips):
                skips[i] = skips[i] + residual
            middle = middle + control.middle""",
    },
    "a4": {
        "depth": """
            background = ~mask(images).flatten(2).bool()
            H, W = images.shape[2:]
            y, x = torch.arange(H * W) // W, torch.arange(H * W) % W
            apart = torch.hypot(y[:, None] - y[None].float(), x[:, None] - x[None].float())
            nearest = torch.where(background[..., None, :], apart, math.inf).min(dim=-1).values
            return torch.clamp(nearest.view(-1, 1, H, W) / RELIEF, 0, 1)""",
        "depth_error": """
            found = depth(images)
            given = _checked(depths, found, "depths")
            errors = []
            for one, other in zip(found, given):
                counted = (one + other) > 0
                errors.append((one - other)[counted].abs().sum().item() / max(1, int(counted.sum())))
            return sum(errors) / len(errors)""",
        "condition": """
            H = images.shape[2]
            shown = (torch.arange(H)[:, None] < H // 2).expand(images.shape).float()  # the upper half
            return torch.cat([shown * (images.float() + 1) / 2, shown], dim=1)""",
        "measure": """
            found = condition(images)
            inked = torch.maximum(found[:, 0], maps[:, 0]).sum((1, 2)).clamp(min=1e-6)
            return 1 - ((found - maps).abs().sum((1, 2, 3)) / inked).mean().item()""",
        "new_control": "return ControlNet(unet, len(condition(torch.rand(1, 1, 28, 28) * 2 - 1)[0]))",
        "training_model": """
            def for_batch(net, x_0, prompt):
                maps = condition(x_0)
                return lambda x_t, t: unet(x_t, t, prompt, control=net(x_t, t, prompt, maps))

            return for_batch""",
        "with_edges": """
            parts = [(own, condition), (edges, canny)]
            return generate(unet, schedule, prompt, x_T, [(net, map_of(images), strength)
                                                          for (net, images, strength), map_of in parts])""",
    },
}

WRONG = [  # assignment, class of tests, a part of the library's solution, what it becomes, a word of the hint
    ("a1", "TestAlphaBar", "alpha.cumprod(0)", "1 - beta.cumsum(0)", "combine"),
    ("a1", "TestAlphaBar", "alpha.cumprod(0)", "alpha", "come back"),
    ("a1", "TestDDPM", "if t > 0", "if t > 1", "counts from 0"),
    ("a1", "TestLoss", "weight[t] * error).mean()", "weight[t].mean() * error).mean()", "its own weight"),
    ("a1", "TestDDIM", "sigma * _noise_like(x_t, generator)", "sigma * torch.randn_like(x_t)", "who draws the noise"),
    ("a1", "TestGuidance", "[torch.cat(pair) for pair in zip(conditional, unconditional, strict=True)]",
     "[torch.cat([conditional[0], unconditional[0]])] * len(conditional)", "all of the tuple"),
    ("a1", "TestAddNoise", "x_0) * x_0 + _at", "x_0) ** 2 * x_0 + _at", "variance"),
    ("a1", "TestAddNoise", "_at(self.sqrt_alpha_bar, t, x_0)", "self.sqrt_alpha_bar[t]", "axes"),
    ("a1", "TestAddNoise", "self._check(x_0, eps, t)", "pass", "promises"),
    ("a1", "TestPredictX0", " / _at(self.sqrt_alpha_bar, t, x_t)", "", "contrast"),
    ("a1", "TestPredictX0",
     "(x_t - _at(self.sqrt_one_minus_alpha_bar, t, x_t) * eps) / _at(self.sqrt_alpha_bar, t, x_t)",
     "x_t / _at(self.sqrt_alpha_bar, t, x_t) - _at(self.sqrt_one_minus_alpha_bar, t, x_t) * eps", "solve"),
    ("a1", "TestLoss", "error = (guess - eps)", "error = (guess - x_0)", "compare"),
    ("a1", "TestLoss", "flatten(1).mean(1)", "flatten(1).sum(1)", "sum or mean"),
    ("a1", "TestLoss", "weight[t] * error", "error", "how much"),
    ("a1", "TestLoss", "eps_model(schedule.add_noise(x_0, eps, t), t)", "eps_model(x_0, t)", "clean"),
    ("a1", "TestDDPM", "    if t > 0:\n            x_t = x_t + schedule.posterior_variance[t]",
     "    if True:\n            x_t = x_t + schedule.beta[t]", "t = 0"),
    ("a1", "TestDDPM", "variance[t].sqrt() *", "variance[t] *", "posterior variance"),
    ("a1", "TestDDPM", "posterior_mean_x_0[t] * x_0 + schedule.posterior_mean_x_t[t] * x_t",
     "posterior_mean_x_0[t] * x_t + schedule.posterior_mean_x_t[t] * x_0", "which one belongs"),
    ("a1", "TestDDIM", "schedule.alpha_bar[t], schedule.alpha_bar[t_prev]",
     "schedule.alpha_bar[t], schedule.alpha_bar[t - 1]", "jumps"),
    ("a1", "TestDDIM", "(1 - alpha_bar_prev - sigma**2)", "(1 - alpha_bar_prev)", "takes the place"),
    ("a1", "TestDDIM", "eps = (x_t - schedule.sqrt_alpha_bar[t] * x_0) / schedule.sqrt_one_minus_alpha_bar[t]",
     "eps = eps_model(x_t, torch.full((len(x_t),), t))", "clipped"),
    ("a1", "TestGuidance", "eps_uncond + w * (eps_cond - eps_uncond)", "eps_cond + w * (eps_uncond - eps_cond)",
     "start"),
    ("a1", "TestGuidance", "return eps_uncond + w *", "return eps_cond + w *", "w is one less"),

    ("a2", "TestTimestepEmbedding", "[angles.sin(), angles.cos()]", "[angles.cos(), angles.sin()]", "all sines"),
    ("a2", "TestTimestepEmbedding", "t.device) / (dim // 2))", "t.device) / dim)", "exponent"),
    ("a2", "TestResBlock", "return self.shortcut(x) + h", "return h", "what must be left"),
    ("a2", "TestResBlock", "h = h + self.emb(emb)[:, :, None, None]", "h = h", "own embedding"),
    ("a2", "TestResBlock", "self.conv2(F.silu(self.norm2(h)))", "F.silu(self.norm2(self.conv2(h)))", "From the inside"),
    ("a2", "TestAttention", "math.sqrt(q.shape[-1])", "math.sqrt(heads * q.shape[-1])", "width of one head"),
    ("a2", "TestAttention", "scores.softmax(-1)", "scores.softmax(-2)", "which axis"),
    ("a2", "TestAttention", "    scores = scores.masked_fill(~mask[:, None, None], -math.inf)",
     "    return scores.softmax(-1).masked_fill(~mask[:, None, None], 0)", "before or after"),
    ("a2", "TestAttention", "-math.inf)", "0)", "make 0 of it"),
    ("a2", "TestAttention", "(weights @ v).transpose(1, 2).flatten(2)", "(weights @ v).reshape(len(v), -1, 8)",
     "mixed up"),
    ("a2", "TestCrossAttention", "self.heads, words.mask", "self.heads", "padding"),
    ("a2", "TestCrossAttention", "attention_weights(self.q(places)", "attention_weights(self.q(x.flatten(2).mT)",
     "normed"),
    ("a2", "TestCrossAttention", "return x + self.proj(attend(self.weights", "return self.proj(attend(self.weights",
     "x itself"),
    ("a2", "TestCrossAttention", "self.v(words.vectors)", "self.k(words.vectors)", "What is taken is v"),
    ("a2", "TestRest", "skips = [h]", "skips = []", "h itself"),
    ("a2", "TestRest", "skips.append(h)", "skips.insert(0, h)", "came in"),
    ("a2", "TestDecoder", "reversed(skips)", "skips", "resolution"),
    ("a2", "TestDecoder", "reversed(skips)", "(skips.reverse() or skips)", "belongs to the caller"),
    ("a2", "TestDecoder", "torch.cat([h, skip], dim=1)", "torch.cat([skip, h], dim=1)", "h is first"),
    ("a2", "TestDecoder", "torch.cat([h, skip], dim=1)", "h + skip", "side by side"),

    ("a3", "TestZeroConv", "nn.init.zeros_(conv.bias)", "pass", "bias"),
    ("a3", "TestZeroConv", "return conv", "return conv.requires_grad_(False)", "must not stay"),
    ("a3", "TestFreeze", "module.eval().requires_grad_(False)", "module.eval()", "asks for a gradient"),
    ("a3", "TestFreeze", "module.eval().requires_grad_(False)", "module.requires_grad_(False)", "modes"),
    ("a3", "TestFreeze", "module.zero_grad(set_to_none=True)", "module.forward = torch.no_grad()(module.forward)",
     "no no_grad"),
    ("a3", "TestFreeze", "set_to_none=True", "set_to_none=False", "not even one of zeros"),
    ("a3", "TestTrainableCopy", "copy.deepcopy(module).train()", "module.train()", "module itself"),
    ("a3", "TestTrainableCopy", "copy.deepcopy(module).train()", "copy.copy(module).train()", "share memory"),
    ("a3", "TestTrainableCopy", "copy.deepcopy(module).train().requires_grad_(True)", "copy.deepcopy(module)",
     "frozen"),
    ("a3", "TestControlledBlock", "self.copy(x + self.zero_in(c), *args)", "self.copy(self.zero_in(c), *args)",
     "copy see"),
    ("a3", "TestControlledBlock", "+ self.zero_out(self.copy(", "+ (self.copy(", "to the last bit"),
    ("a3", "TestControlledBlock", "self.locked = freeze(block)", "self.locked = block", "locked half"),
    ("a3", "TestControlledBlock", "self.copy = trainable_copy(block)", "self.copy = block", "must be trainable"),
    ("a3", "TestControlledBlock", "self.locked(x, *args) +", "self.locked(x, *args).detach() +",
     "what comes before it"),
    ("a3", "TestConditionEncoder", "*layers, zero_conv(channels)",
     "*layers, (conv := nn.Conv2d(channels, channels, 3, padding=1), [*map(nn.init.zeros_, conv.parameters())])[0]",
     "how large is its kernel"),
    ("a3", "TestConditionEncoder", "*layers, zero_conv(channels)", "*layers, nn.Conv2d(channels, channels, 1)",
     "exactly x"),
    ("a3", "TestConditionEncoder", "*layers, zero_conv(channels)", "*layers, zero_conv(channels), nn.SiLU()",
     "nothing follows"),
    ("a3", "TestConditionEncoder", "*layers, zero_conv(channels)",
     "*layers[:-2], zero_conv(channels // 2, channels), nn.SiLU(), zero_conv(channels)", "in series"),
    ("a3", "TestControlNet", "rest(first + hint,", "rest(first,", "no difference to the middle"),
    ("a3", "TestControlNet", "[zero(skip) for zero", "[skip for zero", "residuals are zero"),
    ("a3", "TestControlNet", "zip(self.zero_skips, skips)", "zip(self.zero_skips[::-1], skips)", "zero convolution i"),
    ("a3", "TestControlNet", "self.encoder.embed(t, prompt)", "self.encoder.embed(t, 0 * prompt)", "x_t, t and prompt"),
    ("a3", "TestResiduals", "zip(skips, control.skips", "zip(skips, control.skips[::-1]", "which one is first"),
    ("a3", "TestResiduals", "middle + control.middle", "middle", "middle is added"),
    ("a3", "TestResiduals", "middle + control.middle", "middle + control.middle.detach()", "detached"),
    ("a3", "TestResiduals", "skips = [skip + residual",
     "skips, _ = self.encoder.rest(skips[0] + control.skips[0], emb, words)\n            skips = [skip + residual",
     "running encoder"),
    ("a3", "TestSum", "[a + b for a, b", "[(a + b) / 2 for a, b", "one by one"),
    ("a3", "TestSum", "other == 0", "False", "int"),
    ("a3", "TestSum", "Control([scale * skip for skip", "Control([(scale or 1) * skip for skip", "strength 0"),
    ("a3", "TestSum", "Control([scale * skip for skip in self.skips], scale * self.middle)",
     "[*map(lambda x: x.mul_(scale), [*self.skips, self.middle])] and self", "the control that it is given"),
    ("a3", "TestSum", "self.skips], scale * self.middle", "self.skips], self.middle", "every skip and to the middle"),

    ("a4", "TestDepth", "squared.sqrt() / RELIEF", "squared / RELIEF", "two and three"),
    ("a4", "TestDepth", "(place[:, None] - place).square()", "(place[:, None] - place).abs()", "two and three"),
    ("a4", "TestDepth", "where(mask(images).bool(), math.inf", "where(images > 0, math.inf", "`mask` finds it"),
    ("a4", "TestDepth", "(squared.sqrt() /", "(squared.nan_to_num(posinf=0.0).sqrt() /", "no background is near"),
    ("a4", "TestDepthError", "((found > 0) | (given > 0))", "(found >= 0)", "only pixels"),
    ("a4", "TestDepthError", "flatten(1).sum(1) / either.clamp(min=1)", "sum() / either.sum().clamp(min=1)",
     "counts alike"),
    ("a4", "TestDepthError", "    given = _checked(depths, found, \"depths\")", "    given = depths", "ValueError"),
    ("a4", "TestCondition", "return maps * grid", "return maps", "this is mask"),
    ("a4", "TestCondition", "return maps * grid", "return 2 * maps * grid - 1", "maps lie in [0, 1]"),
    ("a4", "TestCondition", "return maps * grid", "return maps * grid * maps.mean()", "run over all images"),
    ("a4", "TestCondition", "return maps * grid", "return maps * torch.rand_like(maps)", "random"),
    ("a4", "TestCondition", "return maps * grid", "return maps.amax((2, 3), keepdim=True) * grid", "different maps"),
    ("a4", "TestCondition", "return maps * grid", "return maps.mean((2, 3))", "(B, K, H, W)"),
    ("a4", "TestCondition", "return maps * grid",
     "return __import__('minicnet.conditions', fromlist=['depth']).depth(images)", "this is depth"),
    ("a4", "TestMeasure", "(2 * both / all_dots.clamp(min=1)).where(all_dots > 0",
     "(both / maps.sum((1, 2, 3)).clamp(min=1)).where(maps.sum((1, 2, 3)) > 0", "too much must count"),
    ("a4", "TestMeasure", "all_dots > 0, 1.0)", "all_dots > 0, 0.0)", "their own maps perfectly"),
    ("a4", "TestMeasure", "(2 * both / all_dots.clamp(min=1))", "(both / all_dots.clamp(min=1))", "instead of 1"),
    ("a4", "TestMeasure", "(found * maps).sum((1, 2, 3)), (found + maps)",
     "(found == maps).sum((1, 2, 3)) / 2, torch.ones_like(found)", "hide the rest"),
    ("a4", "TestMeasure", "(found * maps).sum((1, 2, 3)), (found + maps).sum((1, 2, 3))",
     "(found * maps).sum()[None], (found + maps).sum()[None]", "first compare each image"),
    ("a4", "TestMeasure", "all_dots.clamp(min=1)).where(all_dots > 0, 1.0)", "all_dots)", "divided by zero"),
    ("a4", "TestTraining", "condition_channels=K", "condition_channels=2", "any number of channels"),
    ("a4", "TestTraining", "(net, condition(x_0), 1)", "(net, condition(x_0), 0.5)", "at strength 1"),
    ("a4", "TestTraining", "        under_net = controlled(unet, [(net, condition(x_0), 1)])\n"
     "        return lambda x_t, t: under_net(x_t, t, prompt)", "        return lambda x_t, t: controlled(unet, "
     "[(net, condition(x_t.clamp(-1, 1)), 1)])(x_t, t, prompt)", "the noisy one"),
    ("a4", "TestTraining", "under_net(x_t, t, prompt)",
     "unet(x_t, t, prompt, control=net(x_t, 0 * t, prompt, condition(x_0)))", "told of t and prompt"),
    ("a4", "TestTraining", "under_net(x_t, t, prompt)",
     "unet(x_t, t, prompt, control=net(x_t, t, 0 * prompt, condition(x_0)))", "told of t and prompt"),
    ("a4", "TestTraining", "under_net(x_t, t, prompt)",
     "unet(x_t, t, prompt, control=net(x_t, t, prompt, hint=net.encode(condition(x_0)).detach()))", "cut off"),
    ("a4", "TestWithEdges", "x_T, controls)", "x_T, controls, steps=50)", "number of steps"),
    ("a4", "TestWithEdges", "canny(edge_images)", "canny(own_images)", "given for *them*"),
    ("a4", "TestWithEdges", "condition(own_images), own_strength)", "condition(own_images), own_strength or 1)",
     "a number like any other"),
    ("a4", "TestWithEdges", "controls = [(own_net, condition(own_images), own_strength), (", "controls = [(",
     "left alone"),
]

# Python starts and imports torch once, and the tests of an assignment are collected once. Then the process forks for
# each solution, and the children run the tests: in a folder where minicnet/ holds that solution.
FORKS = """
import gc, json, os, sys
import pytest, torch, tqdm.auto

def in_child():
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return child == 0

class Forks:
    def __init__(self, solutions):
        self.solutions = solutions

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session):
        everything = list(session.items)
        gc.freeze()  # children need not look through all that torch brought
        session.items.clear()
        for folder, tests in self.solutions:
            if in_child():
                os.chdir(folder)
                sys.path.insert(0, folder)
                sys.platform = "fork"  # this process is for one solution only: no need of one more for each test
                session.items += [item for item in everything if tests in item.nodeid]
                break

for tree, test_file, solutions in json.load(sys.stdin):
    if in_child():
        os.chdir(tree)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        arguments = ["-q", "--tb=native", "-p", "no:cacheprovider", "--points", "results.json", test_file]
        pytest.main(arguments, plugins=[Forks(solutions)])
        os._exit(0)
"""


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """A student repository of each assignment."""
    folder = tmp_path_factory.mktemp("students")
    for name in ASSIGNMENTS:
        make_student(name, folder / name)
    return folder


def write(tree, assignment, bodies):
    """The files to hand in, as {file: text}, with these functions written, and all others still blank."""
    files = {}
    for file, blanks in ASSIGNMENTS[assignment].items():
        text = (tree / file).read_text()
        for function in (b.function for b in blanks if b.function in bodies):
            scope = ast.parse(text)
            for name in function.split("."):
                scope = next(node for node in scope.body if getattr(node, "name", None) == name)
            lines = text.splitlines()
            at = next(i for i in range(scope.lineno, scope.end_lineno) if "your code: about" in lines[i])
            indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
            lines[at] = textwrap.indent(textwrap.dedent(bodies[function]).strip(), indent)
            text = "\n".join(lines) + "\n"
        files[file] = text
    return files


def spoilt(assignment, old, new):
    """The library's files of an assignment, as {file: text}, with a part of a solution replaced."""
    texts = {file: (ROOT / file).read_text() for file in ASSIGNMENTS[assignment]}
    file = next((file for file, text in texts.items() if text.count(old) == 1), None)
    assert file, f"{old} stands nowhere, or twice: mend WRONG"
    return {**texts, file: texts[file].replace(old, new)}


def run_tests(trees, folder, solutions):
    """Runs tests on solutions: [(assignment, a part of the tests' names, {file: text})] -> the results of each."""
    jobs = {name: [str(trees / name), f"tests/assignments/test_{name}.py", []] for name in ASSIGNMENTS}
    for number, (assignment, tests, files) in enumerate(solutions):
        shutil.copytree(trees / assignment / "minicnet", folder / str(number) / "minicnet",
                        ignore=shutil.ignore_patterns("weights", "playground"))
        for file, text in files.items():
            (folder / str(number) / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / str(number) / file).write_text(text)
        jobs[assignment][2].append((str(folder / str(number)), tests))
    subprocess.run([sys.executable, "-c", FORKS], input=json.dumps([*jobs.values()]), text=True, env=QUIET, check=True,
                   timeout=1200)
    return [json.loads((folder / str(number) / "results.json").read_text())["tests"]
            for number in range(len(solutions))]


def points(results):
    return sum(test["score"] for test in results), sum(test["max_score"] for test in results)


@pytest.fixture(scope="module")
def results(trees, tmp_path_factory):
    """Of all solutions, run at once: (assignment, "blank" or "right") or one of WRONG -> its tests."""
    solutions = {(name, kind): (name, "", write(trees / name, name, bodies))
                 for name in ASSIGNMENTS for kind, bodies in (("blank", {}), ("right", RIGHT[name]))}
    solutions |= {wrong: (*wrong[:2], spoilt(wrong[0], *wrong[2:4])) for wrong in WRONG}
    return dict(zip(solutions, run_tests(trees, tmp_path_factory.mktemp("solutions"), solutions.values())))


@pytest.mark.slow
def test_students_begin_with_nothing_and_a_right_solution_earns_everything(results):
    for name, most in zip(ASSIGNMENTS, (30, 30, 40, 30), strict=True):
        blank, right = results[name, "blank"], results[name, "right"]
        assert points(blank) == (0, most)
        assert all(test["output"].startswith("not written yet (") for test in blank)
        assert points(right) == (most, most), [test for test in right if test["output"]]


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: f"{wrong[1]} {wrong[4]}")
def test_a_wrong_solution_loses_points_and_gets_a_hint(results, wrong):
    failed = [test["output"] for test in results[wrong] if not test["score"]]
    assert any(wrong[4] in output for output in failed), failed


def test_every_task_has_two_wrong_solutions():
    tasks = [wrong[:2] for wrong in WRONG]
    assert len(set(tasks)) == 7 + 6 + 8 + 6
    assert all(tasks.count(task) >= 2 for task in tasks)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_a_student_repository_holds_no_answer(trees, assignment):
    tree = trees / assignment
    names = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    tools = {"make_student.py", "grade.py", "README.md"}
    assert not {f"notebooks/assignments/{tool}" for tool in tools} & names and "tests/test_assignments.py" not in names
    assert [name for name in names if "assignments/" in name and name.endswith(".ipynb")] == [
        f"notebooks/assignments/{assignment}.ipynb"]
    assert not (tree / ".git").exists()
    for file, blanks in ASSIGNMENTS[assignment].items():
        text, original = (tree / file).read_text(), (ROOT / file).read_text()
        assert text.count("your code: about") == len(blanks)
        assert f"tests/test_{Path(file).name}" not in names
        gone = {line.strip() for line in original.splitlines()} - {line.strip() for line in text.splitlines()}
        for name in names:
            if name.endswith((".py", ".ipynb")):
                other = (tree / name).read_text()
                assert not [line for line in gone if len(line) > 30 and line in other], name


def test_no_link_in_a_student_repository_leads_nowhere(trees):
    for path in (file for name in ASSIGNMENTS for file in (trees / name).rglob("*.md")):
        for place in re.findall(r"\]\(([^)#\s]+)", path.read_text("utf-8")):
            assert "://" in place or (path.parent / place).exists(), f"{path}: {place}"


def test_a_student_s_handout_has_its_written_questions_and_no_rubric(trees):
    for name in ASSIGNMENTS:
        handout = f"notebooks/assignments/{name}.ipynb"
        cells = json.loads((ROOT / handout).read_text())["cells"]
        assert any("*Rubric.*" in "".join(cell["source"]) for cell in cells)
        text = (trees / name / handout).read_text()
        assert "*Rubric" not in text and "lecturer" not in text and "## Investigation" in text
        assert "## Written questions" in text or name == "a4"


def test_handouts_are_kept_with_the_outputs_of_one_run():
    for name in ASSIGNMENTS:
        path = TOOLS / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), name
        assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
        assert not re.search(r"/(home|root|tmp|work|Users)/", path.read_text()), "an absolute path inside"
        assert path.stat().st_size < 600_000, name


@pytest.mark.parametrize("assignment, lessons", [("a2", ["03"]), ("a3", ["04", "05"])])
def test_lessons_that_answer_a_written_question_are_left_out(trees, assignment, lessons):
    kept = {path.name[:2] for path in (trees / assignment / "notebooks").glob("*.ipynb")}
    assert "01" in kept and not kept & {*lessons, "07"}


def test_no_lesson_that_is_kept_shows_a_removed_line(trees):
    for name, files in ASSIGNMENTS.items():
        removed = [squeezed(line) for file, blanks in files.items()
                   for line in blank((ROOT / file).read_text(), blanks)[1]]
        for path in (trees / name / "notebooks").glob("*.ipynb"):
            cells = json.loads(path.read_text())["cells"]
            text = squeezed("".join(
                "".join(cell["source"]) + "".join(map(shown_text, cell.get("outputs", [])))
                for cell in cells))
            assert [line for line in removed if len(line) > 20 and line in text] == [], f"{name}: {path.name}"


@pytest.mark.slow
def test_other_tests_run_in_a_student_repository_or_say_what_they_need(trees):
    use = "import torch\nfrom minicnet.unet import timestep_embedding\n{}timestep_embedding(torch.zeros(1), 4)\n"
    (trees / "a2" / "tests" / "test_one.py").write_text("def test_one(): pass\n")
    (trees / "a2" / "tests" / "test_two.py").write_text(use.format("def test_two(): "))
    (trees / "a2" / "tests" / "test_three.py").write_text(use.format(""))
    files = [f"tests/test_{name}.py" for name in ("one", "two", "three")]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", *files],
                          cwd=trees / "a2", env=QUIET, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "1 passed, 2 skipped" in done.stdout, done.stdout
    assert "needs a function that is yours to write" in done.stdout


def test_a_folder_that_exists_is_not_touched(tmp_path):
    done = subprocess.run([sys.executable, TOOLS / "make_student.py", "a1", tmp_path], capture_output=True, text=True)
    assert done.returncode == 1 and "exists already" in done.stderr and not list(tmp_path.iterdir())


ENDLESS = """
while True:
    try:
        pass
    except BaseException:
        pass"""
DELETES = """
import shutil
from pathlib import Path
for path in (".", "..", *Path(__file__).parents[:2]):
    shutil.rmtree(path, ignore_errors=True)
"""


@pytest.mark.slow
def test_submissions_are_graded_whatever_they_do(trees, tmp_path):
    def handed_in(**bodies):
        return write(trees / "a2", "a2", bodies)

    right, blank = handed_in(**RIGHT["a2"]), handed_in()
    faults = handed_in(**{**RIGHT["a2"], "Encoder.rest": ENDLESS, "timestep_embedding": "import os\nos._exit(0)",
                          "Decoder.forward": "raise SystemExit('bye')"})
    submissions = {  # what is handed in, its points, and parts of the remarks
        "1-right": ({Path(file).name: text for file, text in right.items()}, 30, []),
        "2-nothing": ({}, 0, ["no unet.py was handed in"]),
        "3-faults": (faults, 18, ["does not end", "Python itself was ended", "SystemExit"]),
        "4-syntax": ({**right, "minicnet/unet.py": "def broken(:\n"}, 8, ["SyntaxError"]),
        "5-deletes": ({**right, "minicnet/unet.py": DELETES + right["minicnet/unet.py"]}, None, []),
        "6-one-file": ({"words.py": right["minicnet/words.py"]}, 8, ["no unet.py was handed in"]),
        "7-cheats": ({**blank, "tests/assignments/test_a2.py": "def test_all(): pass\n",
                      "conftest.py": "raise SystemExit\n"}, 0, ["not written yet"])}
    for student, (files, _, _) in submissions.items():
        (tmp_path / "submissions" / student).mkdir(parents=True)
        for name, text in files.items():
            (tmp_path / "submissions" / student / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "submissions" / student / name).write_text(text)
    (tmp_path / "submissions" / "a loose file.txt").touch()

    grade.main(["a2", str(tmp_path / "submissions"), str(tmp_path / "grades.csv")])

    with open(tmp_path / "grades.csv", newline="") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(submissions)
    for student, (files, expected, remarks) in submissions.items():
        total = int(rows[student]["total"])
        assert total == expected or expected is None and 0 <= total <= 30, rows[student]
        assert all(remark in rows[student]["remarks"] for remark in remarks)
        assert all((tmp_path / "submissions" / student / name).read_text() == text for name, text in files.items())
    assert rows["1-right"]["remarks"] == "" and rows["1-right"]["3. attention_weights and attend"] == "8"

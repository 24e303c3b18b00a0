"""The assignments' own tools: what students get, which solutions earn points, and grading whatever comes back."""

import ast
import csv
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ROOT / "notebooks" / "assignments"
sys.path.insert(0, str(TOOLS))
import grade  # noqa: E402
from make_student import ASSIGNMENTS, make_student  # noqa: E402

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
        "diffusion_loss": "return (eps - eps_model(schedule.add_noise(x_0, eps, t), t)).pow(2).mean()",
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
        "SelfAttention.forward": """
            q, k, v = (part.unflatten(1, (self.heads, -1)).flatten(3).mT for part in self.qkv(self.norm(x)).chunk(3, 1))
            out = F.scaled_dot_product_attention(q, k, v).mT
            return self.proj(out.reshape(x.shape)) + x""",
        "Encoder.rest": """
            skips = [h]
            while len(skips) <= len(self.stages):
                skips += [self.stages[len(skips) - 1](skips[-1], emb)]
            return skips, self.middle(skips[-1], emb)""",
        "Decoder.forward": """
            h, left = middle, list(skips)
            for stage in self.stages:
                h = stage(torch.hstack((h, left.pop())), emb)""",
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
            emb, h = self.encoder.embed(t, label), self.encoder.first(x_t) + hint
            residuals = [self.zero_skips[0](h)]
            for stage, zero in zip(self.encoder.stages, list(self.zero_skips)[1:]):
                h = stage(h, emb)
                residuals.append(zero(h))
            return Control(skips=residuals, middle=self.zero_middle(self.encoder.middle(h, emb)))""",
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
}

# assignment, class of tests, what is wrong, {function: body} besides RIGHT's for the same class, a word of the hint
WRONG = [
    ("a1", "TestAlphaBar", "sum instead of product", {"NoiseSchedule.__init__": "alpha_bar = 1 - beta.cumsum(0)"},
     "combine"),
    ("a1", "TestAlphaBar", "alpha itself", {"NoiseSchedule.__init__": "alpha_bar = alpha"}, "come back"),
    ("a1", "TestAlphaBar", "product of beta", {"NoiseSchedule.__init__": "alpha_bar = beta.cumprod(0)"}, "shares"),
    ("a1", "TestAddNoise", "square root forgotten", {"NoiseSchedule.add_noise": """
        a = self.alpha_bar[t].view(-1, *[1] * (x_0.ndim - 1))
        return a * x_0 + (1 - a) * eps"""}, "variance"),
    ("a1", "TestAddNoise", "shares swapped", {"NoiseSchedule.add_noise": """
        self._check(x_0, eps, t)
        return _at(self.sqrt_alpha_bar, t, x_0) * eps + _at(self.sqrt_one_minus_alpha_bar, t, x_0) * x_0"""}, "whose"),
    ("a1", "TestAddNoise", "broadcast over the wrong axis", {"NoiseSchedule.add_noise": """
        self._check(x_0, eps, t)
        return self.sqrt_alpha_bar[t] * x_0 + self.sqrt_one_minus_alpha_bar[t] * eps"""}, "axes"),
    ("a1", "TestPredictX0", "not divided", {"NoiseSchedule.predict_x0": """
        self._check(x_t, eps, t)
        return x_t - _at(self.sqrt_one_minus_alpha_bar, t, x_t) * eps"""}, "contrast"),
    ("a1", "TestPredictX0", "divided first", {"NoiseSchedule.predict_x0": """
        self._check(x_t, eps, t)
        return x_t / _at(self.sqrt_alpha_bar, t, x_t) - _at(self.sqrt_one_minus_alpha_bar, t, x_t) * eps"""}, "solve"),
    ("a1", "TestLoss", "compared with the image", {"diffusion_loss": """
        return F.mse_loss(eps_model(schedule.add_noise(x_0, eps, t), t), x_0)"""}, "compare"),
    ("a1", "TestLoss", "sum over pixels", {"diffusion_loss": """
        return F.mse_loss(eps_model(schedule.add_noise(x_0, eps, t), t), eps, reduction="sum")"""}, "sum or mean"),
    ("a1", "TestLoss", "clean images shown", {"diffusion_loss": "return F.mse_loss(eps_model(x_0, t), eps)"}, "clean"),
    ("a1", "TestLoss", "noise drawn anew", {"diffusion_loss": """
        return F.mse_loss(eps_model(schedule.add_noise(x_0, torch.randn_like(eps), t), t), eps)"""}, "no other noise"),
    ("a1", "TestDDPM", "noise at t = 0", {"sample_ddpm": """
        x_t = schedule.posterior_mean_x_0[t] * x_0 + schedule.posterior_mean_x_t[t] * x_t
        x_t = x_t + schedule.beta[t].sqrt() * _noise_like(x_t, generator)"""}, "t = 0"),
    ("a1", "TestDDPM", "square root forgotten", {"sample_ddpm": """
        x_t = schedule.posterior_mean_x_0[t] * x_0 + schedule.posterior_mean_x_t[t] * x_t
        x_t = x_t + schedule.posterior_variance[t] * _noise_like(x_t, generator)"""}, "posterior variance"),
    ("a1", "TestDDPM", "x_0 unclipped", {"sample_ddpm": """
        t_all = torch.full((len(x_t),), t)
        x_0 = schedule.predict_x0(x_t, eps_model(x_t, t_all), t_all)
        x_t = schedule.posterior_mean_x_0[t] * x_0 + schedule.posterior_mean_x_t[t] * x_t
        if t > 0:
            x_t = x_t + schedule.posterior_variance[t].sqrt() * _noise_like(x_t, generator)"""}, "clipped"),
    ("a1", "TestDDPM", "mean's tables swapped", {"sample_ddpm": """
        x_t = schedule.posterior_mean_x_0[t] * x_t + schedule.posterior_mean_x_t[t] * x_0
        if t > 0:
            x_t = x_t + schedule.posterior_variance[t].sqrt() * _noise_like(x_t, generator)"""}, "which one belongs"),
    ("a1", "TestDDPM", "generator not used", {"sample_ddpm": """
        x_t = schedule.posterior_mean_x_0[t] * x_0 + schedule.posterior_mean_x_t[t] * x_t
        if t > 0:
            x_t = x_t + schedule.posterior_variance[t].sqrt() * torch.randn_like(x_t)"""}, "generator"),
    ("a1", "TestDDIM", "t - 1 instead of t_prev", {"sample_ddim": """
        a, b = schedule.alpha_bar[t], schedule.alpha_bar[t - 1]
        eps = (x_t - a.sqrt() * x_0) / (1 - a).sqrt()
        sigma = eta * ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
        x_t = b.sqrt() * x_0 + (1 - b - sigma**2).sqrt() * eps + sigma * _noise_like(x_t, generator)"""}, "jumps"),
    ("a1", "TestDDIM", "noise of the unclipped x_0", {"sample_ddim": """
        a, b = schedule.alpha_bar[t], schedule.alpha_bar[t_prev]
        eps = eps_model(x_t, torch.full((len(x_t),), t))
        sigma = eta * ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
        x_t = b.sqrt() * x_0 + (1 - b - sigma**2).sqrt() * eps + sigma * _noise_like(x_t, generator)"""}, "clipped"),
    ("a1", "TestDDIM", "variance grows", {"sample_ddim": """
        a, b = schedule.alpha_bar[t], schedule.alpha_bar[t_prev]
        eps = (x_t - a.sqrt() * x_0) / (1 - a).sqrt()
        sigma = eta * ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
        x_t = b.sqrt() * x_0 + (1 - b).sqrt() * eps + sigma * _noise_like(x_t, generator)"""}, "takes the place"),
    ("a1", "TestGuidance", "answers swapped", {"guided": """
        def eps_guided(x_t, t):
            eps_cond, eps_uncond = eps_model(x_t, t, *conditional), eps_model(x_t, t, *unconditional)
            return eps_cond + w * (eps_uncond - eps_cond)
        return eps_guided"""}, "start"),
    ("a1", "TestGuidance", "another w", {"guided": """
        def eps_guided(x_t, t):
            inputs = [torch.cat(pair) for pair in zip(conditional, unconditional)]
            eps_cond, eps_uncond = eps_model(torch.cat([x_t, x_t]), torch.cat([t, t]), *inputs).chunk(2)
            return (1 + w) * eps_cond - w * eps_uncond
        return eps_guided"""}, "w is one less"),
    ("a1", "TestGuidance", "two calls", {"guided": """
        def eps_guided(x_t, t):
            eps_cond, eps_uncond = eps_model(x_t, t, *conditional), eps_model(x_t, t, *unconditional)
            return eps_uncond + w * (eps_cond - eps_uncond)
        return eps_guided"""}, "one call"),

    ("a2", "TestTimestepEmbedding", "sines and cosines swapped", {"timestep_embedding": """
        angles = t[:, None] * 10_000.0 ** (-torch.arange(dim // 2) / (dim // 2))
        return torch.cat([angles.cos(), angles.sin()], dim=1)"""}, "all sines come first"),
    ("a2", "TestTimestepEmbedding", "interleaved", {"timestep_embedding": """
        angles = t[:, None] * 10_000.0 ** (-torch.arange(dim // 2) / (dim // 2))
        return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)"""}, "all sines come first"),
    ("a2", "TestTimestepEmbedding", "wrong frequencies", {"timestep_embedding": """
        angles = t[:, None] * 10_000.0 ** (-torch.arange(dim // 2) / dim)
        return torch.cat([angles.sin(), angles.cos()], dim=1)"""}, "exponent"),
    ("a2", "TestTimestepEmbedding", "linear frequencies", {"timestep_embedding": """
        angles = t[:, None] * torch.linspace(1, 1e-4, dim // 2)
        return torch.cat([angles.sin(), angles.cos()], dim=1)"""}, "exponent"),
    ("a2", "TestResBlock", "no shortcut", {"ResBlock.forward": """
        h = self.conv1(F.silu(self.norm1(x))) + self.emb(emb)[:, :, None, None]
        return self.conv2(F.silu(self.norm2(h)))"""}, "what must be left"),
    ("a2", "TestResBlock", "embedding forgotten", {"ResBlock.forward": """
        h = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))"""}, "own embedding"),
    ("a2", "TestResBlock", "embedding after the norm", {"ResBlock.forward": """
        h = self.norm2(self.conv1(F.silu(self.norm1(x)))) + self.emb(emb)[:, :, None, None]
        return self.shortcut(x) + self.conv2(F.silu(h))"""}, "From the inside"),
    ("a2", "TestResBlock", "convolution before norm", {"ResBlock.forward": """
        h = F.silu(self.norm2(self.conv1(x)))
        h = h + self.emb(emb)[:, :, None, None]
        return self.shortcut(x) + self.conv2(h)"""}, "From the inside"),
    ("a2", "TestSelfAttention", "no shortcut", {"SelfAttention.forward": """
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).view(B, 3, self.heads, C // self.heads, H * W)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        out = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(B, C, H, W)
        return self.proj(out)"""}, "x itself"),
    ("a2", "TestSelfAttention", "scaled by all channels", {"SelfAttention.forward": """
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).view(B, 3, self.heads, C // self.heads, H * W)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        out = (q @ k.transpose(-1, -2) / math.sqrt(C)).softmax(-1) @ v
        return x + self.proj(out.transpose(-1, -2).reshape(B, C, H, W))"""}, "width of one head"),
    ("a2", "TestSelfAttention", "softmax over the wrong axis", {"SelfAttention.forward": """
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).view(B, 3, self.heads, C // self.heads, H * W)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        out = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-2) @ v
        return x + self.proj(out.transpose(-1, -2).reshape(B, C, H, W))"""}, "axis"),
    ("a2", "TestSelfAttention", "not transposed back", {"SelfAttention.forward": """
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).view(B, 3, self.heads, C // self.heads, H * W)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        return x + self.proj(F.scaled_dot_product_attention(q, k, v).reshape(B, C, H, W))"""}, "mixed up"),
    ("a2", "TestRest", "h is no skip", {"Encoder.rest": """
        skips = []
        for stage in self.stages:
            h = stage(h, emb)
            skips.append(h)
        return skips, self.middle(h, emb)"""}, "h itself"),
    ("a2", "TestRest", "stages side by side", {"Encoder.rest": """
        skips = [h] + [stage(h, emb) for stage in self.stages]
        return skips, self.middle(skips[-1], emb)"""}, "goes on from"),
    ("a2", "TestRest", "last skip first", {"Encoder.rest": """
        skips = [h]
        for stage in self.stages:
            h = stage(h, emb)
            skips.insert(0, h)
        return skips, self.middle(h, emb)"""}, "came in"),
    ("a2", "TestDecoder", "skips in the wrong order", {"Decoder.forward": """
        h = middle
        for stage, skip in zip(self.stages, skips):
            h = stage(torch.cat([h, skip], dim=1), emb)"""}, "resolution"),
    ("a2", "TestDecoder", "skip before h", {"Decoder.forward": """
        h = middle
        for stage, skip in zip(self.stages, reversed(skips)):
            h = stage(torch.cat([skip, h], dim=1), emb)"""}, "h is first"),
    ("a2", "TestDecoder", "skips added", {"Decoder.forward": """
        h = middle
        for stage, skip in zip(self.stages, reversed(skips)):
            h = stage(h + skip, emb)"""}, "side by side"),

    ("a3", "TestZeroConv", "bias not zero", {"zero_conv": """
        conv = nn.Conv2d(in_channels, out_channels or in_channels, 1)
        nn.init.zeros_(conv.weight)
        return conv"""}, "bias"),
    ("a3", "TestZeroConv", "a 3x3 kernel", {"zero_conv": """
        conv = nn.Conv2d(in_channels, out_channels or in_channels, 3, padding=1)
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
        return conv"""}, "kernel"),
    ("a3", "TestZeroConv", "locked", {"zero_conv": """
        conv = nn.Conv2d(in_channels, out_channels or in_channels, 1).requires_grad_(False)
        conv.weight.zero_(), conv.bias.zero_()
        return conv"""}, "must not stay"),
    ("a3", "TestFreeze", "left trainable", {"freeze": "return module.eval()"}, "asks for a gradient"),
    ("a3", "TestFreeze", "left in training mode", {"freeze": """
        module.zero_grad()
        return module.requires_grad_(False)"""}, "modes"),
    ("a3", "TestFreeze", "old gradients kept", {"freeze": "return module.requires_grad_(False).eval()"}, "stored"),
    ("a3", "TestFreeze", "the whole base under no_grad", {"freeze": """
        module.zero_grad()
        module.forward = torch.no_grad()(module.forward)
        return module.requires_grad_(False).eval()"""}, "no no_grad"),
    ("a3", "TestTrainableCopy", "the base itself", {"trainable_copy": "return module.train().requires_grad_(True)"},
     "module itself"),
    ("a3", "TestTrainableCopy", "a shallow copy", {"trainable_copy": """
        return copy.copy(module).train().requires_grad_(True)"""}, "share memory"),
    ("a3", "TestTrainableCopy", "a copy of the frozen stays frozen", {"trainable_copy": "return copy.deepcopy(module)"},
     "frozen"),
    ("a3", "TestTrainableCopy", "new weights", {"trainable_copy": """
        twin = copy.deepcopy(module)
        for parameter in twin.parameters():
            nn.init.normal_(parameter)
        return twin.train().requires_grad_(True)"""}, "new ones"),
    ("a3", "TestControlledBlock", "the copy sees c alone", {"ControlledBlock.forward": """
        return self.locked(x, *args) + self.zero_out(self.copy(self.zero_in(c), *args))"""}, "copy see"),
    ("a3", "TestControlledBlock", "copy not behind a zero convolution", {"ControlledBlock.forward": """
        return self.locked(x, *args) + self.copy(x + self.zero_in(c), *args)"""}, "to the last bit"),
    ("a3", "TestControlledBlock", "base left trainable", {"ControlledBlock.__init__": """
        self.locked, self.copy = block, trainable_copy(block)
        self.zero_in, self.zero_out = zero_conv(condition_channels or channels, channels), zero_conv(channels)"""},
     "locked half"),
    ("a3", "TestControlledBlock", "copy aliased to the base", {"ControlledBlock.__init__": """
        self.locked = freeze(block)
        self.copy = block
        self.zero_in, self.zero_out = zero_conv(condition_channels or channels, channels), zero_conv(channels)"""},
     "reach the copy"),
    ("a3", "TestControlledBlock", "copy under no_grad", {"ControlledBlock.forward": """
        with torch.no_grad():
            h = self.copy(x + self.zero_in(c), *args)
        return self.locked(x, *args) + self.zero_out(h)"""}, "cut the graph"),
    ("a3", "TestConditionEncoder", "no zero convolution", {"ConditionEncoder.__init__": """
        super().__init__(*layers, nn.Conv2d(channels, channels, 1))"""}, "exactly x"),
    ("a3", "TestConditionEncoder", "two in series", {"ConditionEncoder.__init__": """
        super().__init__(*layers[:-2], zero_conv(32, channels), nn.SiLU(), zero_conv(channels))"""}, "in series"),
    ("a3", "TestConditionEncoder", "SiLU at the end", {"ConditionEncoder.__init__": """
        super().__init__(*layers, zero_conv(channels), nn.SiLU())"""}, "nothing follows"),
    ("a3", "TestControlNet", "hint added before the first convolution", {"ControlNet.forward": """
        skips, middle, _ = self.encoder(x_t + hint.mean(1, keepdim=True), t, label)
        return Control([zero(skip) for zero, skip in zip(self.zero_skips, skips)], self.zero_middle(middle))"""},
     "first convolution gives"),
    ("a3", "TestControlNet", "hint added at the skips", {"ControlNet.forward": """
        skips, middle, _ = self.encoder(x_t, t, label)
        return Control([zero(skip + hint) for zero, skip in zip(self.zero_skips, skips)], self.zero_middle(middle))"""},
     "no difference to the middle"),
    ("a3", "TestControlNet", "no zero convolutions", {"ControlNet.forward": """
        skips, middle = self.encoder.rest(self.encoder.first(x_t) + hint, self.encoder.embed(t, label))
        return Control(skips, middle)"""}, "residuals are zero"),
    ("a3", "TestControlNet", "zero convolutions in the wrong order", {"ControlNet.forward": """
        skips, middle = self.encoder.rest(self.encoder.first(x_t) + hint, self.encoder.embed(t, label))
        return Control([zero(skip) for zero, skip in zip(self.zero_skips[::-1], skips)], self.zero_middle(middle))"""},
     "zero convolution i"),
    ("a3", "TestControlNet", "label forgotten", {"ControlNet.forward": """
        emb = self.encoder.embed(t, torch.full_like(label, 1))
        skips, middle = self.encoder.rest(self.encoder.first(x_t) + hint, emb)
        return Control([zero(skip) for zero, skip in zip(self.zero_skips, skips)], self.zero_middle(middle))"""},
     "x_t, t and label"),
    ("a3", "TestResiduals", "reversed", {"UNet.forward": """
        skips = [skip + residual for skip, residual in zip(skips, reversed(control.skips))]
        middle = middle + control.middle"""}, "which one is first"),
    ("a3", "TestResiduals", "averaged with the skips", {"UNet.forward": """
        skips = [(skip + residual) / 2 for skip, residual in zip(skips, control.skips)]
        middle = (middle + control.middle) / 2"""}, "unweighted"),
    ("a3", "TestResiduals", "middle forgotten", {"UNet.forward": """
        skips = [skip + residual for skip, residual in zip(skips, control.skips)]"""}, "middle is added"),
    ("a3", "TestResiduals", "whole base under no_grad", {"UNet.forward": """
        with torch.no_grad():
            skips = [skip + residual for skip, residual in zip(skips, control.skips)]
            middle = middle + control.middle"""}, "no gradient"),
    ("a3", "TestResiduals", "into the running encoder", {"UNet.forward": """
        skips, middle = self.encoder.rest(skips[0] + control.skips[0], emb)
        skips = [skips[0]] + [skip + residual for skip, residual in zip(skips[1:], control.skips[1:])]
        middle = middle + control.middle"""}, "running encoder"),
    ("a3", "TestSum", "averaged", {"Control.__add__": """
        return Control([(a + b) / 2 for a, b in zip(self.skips, other.skips)], (self.middle + other.middle) / 2)"""},
     "not averaged"),
    ("a3", "TestSum", "lists joined", {"Control.__add__": """
        return Control(self.skips + other.skips, self.middle + other.middle)"""}, "two lists"),
    ("a3", "TestSum", "added in place", {"Control.__add__": """
        if other == 0:
            return self
        for a, b in zip(self.skips, other.skips):
            a += b
        self.middle += other.middle
        return self"""}, "neither a nor b"),
    ("a3", "TestSum", "sum(list) forgotten", {"Control.__add__": """
        return Control([a + b for a, b in zip(self.skips, other.skips)], self.middle + other.middle)"""}, "int"),
    ("a3", "TestSum", "scale or 1", {"Control.__mul__": """
        scale = scale or 1.0
        return Control([scale * skip for skip in self.skips], scale * self.middle)"""}, "strength 0"),
    ("a3", "TestSum", "middle not scaled", {"Control.__mul__": """
        return Control([scale * skip for skip in self.skips], self.middle)"""}, "every skip and to the middle"),
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


def points(results):
    return sum(test["score"] for test in results), sum(test["max_score"] for test in results)


@pytest.fixture(scope="module")
def results(trees, tmp_path_factory):
    """Test results of every solution, by assignment and what is wrong with it; and of what students begin with."""
    jobs = {name: [str(trees / name), f"tests/assignments/test_{name}.py", []] for name in ASSIGNMENTS}
    folders = {}

    def job(assignment, tests, about, bodies):
        folders[assignment, about] = folder = tmp_path_factory.mktemp("solution")
        shutil.copytree(trees / assignment / "minicnet", folder / "minicnet")
        for file, text in write(trees / assignment, assignment, bodies).items():
            (folder / file).write_text(text)
        jobs[assignment][2].append((str(folder), tests))

    for assignment in ASSIGNMENTS:
        job(assignment, "", "blank", {})
        job(assignment, "", "right", RIGHT[assignment])
    for assignment, tests, about, bodies, _ in WRONG:
        class_name = {"TestControlledBlock": "ControlledBlock", "TestSum": "Control"}.get(tests)
        rest = {name: body for name, body in RIGHT[assignment].items() if name.split(".")[0] == class_name}
        job(assignment, tests, about + tests, {**rest, **bodies})
    subprocess.run([sys.executable, "-c", FORKS], input=json.dumps([*jobs.values()]), text=True, env=QUIET, check=True,
                   timeout=120)
    return {key: json.loads((folder / "results.json").read_text())["tests"] for key, folder in folders.items()}


@pytest.mark.parametrize("assignment, most", {"a1": 30, "a2": 30, "a3": 40}.items())
def test_students_begin_with_nothing_and_a_right_solution_earns_everything(results, assignment, most):
    assert points(results[assignment, "blank"]) == (0, most)
    assert all(test["output"].startswith("not written yet (minicnet/") for test in results[assignment, "blank"])
    failed = [test for test in results[assignment, "right"] if test["output"]]
    assert points(results[assignment, "right"]) == (most, most), failed


@pytest.mark.parametrize("assignment, tests, about, bodies, hint", WRONG, ids=[f"{w[0]} {w[2]}" for w in WRONG])
def test_a_wrong_solution_loses_points_and_gets_a_hint(results, assignment, tests, about, bodies, hint):
    failed = [test for test in results[assignment, about + tests] if not test["score"]]
    assert failed
    assert any(hint in test["output"] for test in failed), [test["output"] for test in failed]


def test_every_task_has_two_wrong_solutions():
    tasks = {(w[0], w[1]) for w in WRONG}
    assert len(tasks) == 7 + 5 + 8
    assert all(sum((w[0], w[1]) == task for w in WRONG) >= 2 for task in tasks)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_a_student_repository_holds_no_answer(trees, assignment):
    tree = trees / assignment
    names = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    assert not {"notebooks/assignments/make_student.py", "notebooks/assignments/grade.py",
                "notebooks/assignments/README.md", "tests/test_assignments.py"} & names
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


DELETES = """
import shutil
from pathlib import Path
for path in (".", "..", *Path(__file__).parents[:2]):
    shutil.rmtree(path, ignore_errors=True)
"""


def test_ten_submissions_are_graded_whatever_they_do(trees, tmp_path):
    right = write(trees / "a2", "a2", RIGHT["a2"])["minicnet/unet.py"]
    blank = write(trees / "a2", "a2", {})["minicnet/unet.py"]
    endless = {**RIGHT["a2"], "Encoder.rest": """
        while True:
            try:
                pass
            except BaseException:
                pass"""}
    dies = {**RIGHT["a2"], "timestep_embedding": "import os\nos._exit(0)"}
    leaves = {**RIGHT["a2"], "Decoder.forward": "raise SystemExit('bye')"}
    submissions = {
        "01-right": ({"unet.py": right}, 30), "02-blank": ({"unet.py": blank}, 0), "03-nothing": ({}, 0),
        "04-endless": ({"unet.py": write(trees / "a2", "a2", endless)["minicnet/unet.py"]}, 26),
        "05-syntax": ({"unet.py": right + "def broken(:\n"}, 0),
        "06-deletes": ({"unet.py": DELETES + right}, None),
        "07-dies": ({"unet.py": write(trees / "a2", "a2", dies)["minicnet/unet.py"]}, 24),
        "08-leaves": ({"unet.py": write(trees / "a2", "a2", leaves)["minicnet/unet.py"]}, 25),
        "09-elsewhere": ({"minicnet/unet.py": right}, 30),
        "10-cheats": ({"unet.py": blank, "tests/assignments/test_a2.py": "def test_all(): pass\n",
                       "conftest.py": "raise SystemExit\n"}, 0)}
    for student, (files, _) in submissions.items():
        (tmp_path / "submissions" / student).mkdir(parents=True)
        for name, text in files.items():
            (tmp_path / "submissions" / student / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "submissions" / student / name).write_text(text)
    (tmp_path / "submissions" / "a loose file.txt").touch()

    grade.main(["a2", str(tmp_path / "submissions"), str(tmp_path / "grades.csv")])

    with open(tmp_path / "grades.csv", newline="") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(submissions)
    for student, (files, expected) in submissions.items():
        if expected is not None:
            assert int(rows[student]["total"]) == expected, rows[student]
        assert all((tmp_path / "submissions" / student / name).read_text() == text for name, text in files.items())
    assert 0 <= int(rows["06-deletes"]["total"]) <= 30  # what is in memory already may still be right
    assert rows["01-right"]["remarks"] == "" and rows["01-right"]["3. SelfAttention.forward"] == "8"
    remarks = {"02-blank": "not written yet", "03-nothing": "no unet.py was handed in", "04-endless": "does not end",
               "05-syntax": "SyntaxError", "07-dies": "Python itself was ended", "08-leaves": "SystemExit"}
    for student, remark in remarks.items():
        assert remark in rows[student]["remarks"]

"""The assignments: what students get, what solutions earn, and how submissions are graded."""

import ast
import csv
import json
import os
import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ROOT / "notebooks" / "assignments"
sys.path.insert(0, str(TOOLS))
import grade  # noqa: E402
import make_student  # noqa: E402
from make_student import ASSIGNMENTS, PLAN, find, find_leaks, make_tree  # noqa: E402
from mutation import mutants  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="scored tests run apart on Linux")
QUIET = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

RIGHT = {  # right solutions that are written differently from the library
    "a1": {
        "NoiseSchedule.__init__": "alpha_bar = torch.exp(torch.cumsum(torch.log(alpha), 0))",
        "NoiseSchedule.add_noise": """
            self._weights(x_0, eps, t)  # checks
            left = self.alpha_bar[t].reshape([-1] + [1] * (x_0.dim() - 1))
            return torch.sqrt(left) * x_0 + torch.sqrt(1 - left) * eps""",
        "NoiseSchedule.predict_x0": """
            while t.ndim < x_t.ndim:
                t = t.unsqueeze(-1)
            return x_t / self.sqrt_alpha_bar[t] - eps * (1 / self.alpha_bar[t] - 1) ** 0.5""",
        "NoiseSchedule.predict_eps": """
            a = self.alpha_bar[t].view(-1, *[1] * (v.ndim - 1))
            return torch.lerp(x_t * 0, x_t, (1 - a) ** 0.5) + v * a**0.5""",
        "diffusion_loss": """
            found = eps_model(schedule.add_noise(x_0, eps, t), t)
            if found.shape != x_0.shape:
                raise ValueError("the shape is wrong")
            return (((found - eps) ** 2).flatten(1).mean(1) / schedule.alpha_bar[t]).mean()""",
        "guided": """
            def both(x_t, t):
                if w in (0, 1):
                    return (eps_cond if w else eps_uncond)(x_t, t)
                return (1 - w) * eps_uncond(x_t, t) + w * eps_cond(x_t, t)

            return both""",
        "sample_ddpm": """
            beta, alpha, alpha_bar = schedule.beta[t], schedule.alpha[t], schedule.alpha_bar[t]
            eps = (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
            x_t = (x_t - beta * eps / (1 - alpha_bar).sqrt()) / alpha.sqrt()
            noise = _noise_like(x_t, generator) if t else torch.zeros_like(x_t)
            x_t = x_t + schedule.posterior_variance[t] ** 0.5 * noise""",
        "sample_ddim": """
            a, b = schedule.alpha_bar[t], schedule.alpha_bar[t_prev]
            pure = (x_t - a.sqrt() * x_0) / (1 - a).sqrt()
            variance = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
            x_t = b.sqrt() * x_0 + (1 - b - variance).sqrt() * pure
            if eta:
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
            h = half(self.norm1, self.conv1, x) + bias
            return half(self.norm2, self.conv2, h) + self.shortcut(x)""",
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
        "SelfAttention.forward": """
            B, C, H, W = x.shape
            rows = self.norm(x).permute(0, 2, 3, 1).reshape(B, H * W, C)
            q, k, v = self.qkv(rows).split(C, dim=2)
            taken = self.proj(attend(attention_weights(q, k, heads=self.heads), v))
            return taken.permute(0, 2, 1).reshape(x.shape) + x""",
        "CrossAttention.forward": """
            B, C, H, W = x.shape
            v = F.linear(words.vectors, self.v.weight, self.v.bias)
            taken = self.proj(attend(self.weights(x, words), v))
            return taken.permute(0, 2, 1).reshape(B, C, H, W) + x""",
        "CrossAttention.weights": """
            rows = torch.einsum("bchw->bhwc", self.norm(x)).reshape(len(x), -1, x.shape[1])
            k = torch.einsum('ble,ce->blc', words.vectors, self.k.weight) + self.k.bias
            return attention_weights(self.q(rows), k, self.heads, mask=words.mask)""",
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
        "zeroed": """
            for parameter in layer.parameters():
                parameter.data.zero_()
            return layer""",
        "zero_conv": """
            out = in_channels if out_channels is None else out_channels
            conv = nn.Conv2d(in_channels, out, 1)
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
            given = channels if condition_channels is None else condition_channels
            self.zero_in = zero_conv(given, channels)""",
        "ControlledBlock.forward": """
            seen = self.zero_in(c) + x
            y = self.locked(x, *args)
            return y + self.zero_out(self.copy(seen, *args))""",
        "ZeroConvs.forward": """
            found = []
            for i, conv in enumerate(self.skips):
                found.append(conv(skips[i]))
            return Control(skips=found, middle=self.middle(middle))""",
        "ConditionEncoder.__init__": """
            super().__init__()
            self.append(nn.PixelUnshuffle(patch))
            half = channels // 2
            for a, b in ((condition_channels * patch**2, half), (half, half), (half, channels)):
                self.append(nn.Conv2d(a, b, 3, padding="same"))
                self.append(nn.SiLU())
            self.append(zero_conv(channels, channels))""",
        "ControlNet.forward": """
            emb, words = self.encoder.embed(t, prompt)
            h = first + hint
            found = [h]
            for stage in self.encoder.stages:
                h = stage(h, emb, words)
                found.append(h)
            return self.zero_convs(found, self.encoder.middle(h, emb, words))""",
        "Control.__add__": """
            if not isinstance(other, Control):
                return self
            if len(self.skips) != len(other.skips):
                raise ValueError("they differ in length")
            skips = [torch.add(*pair) for pair in zip(self.skips, other.skips)]
            return Control(skips, other.middle + self.middle)""",
        "Control.__mul__": """
            return Control([skip * scale for skip in self.skips], self.middle * scale)""",
        "UNet.forward": """
            assert len(skips) == len(control.skips)
            skips = list(skips)
            for i, residual in enumerate(control.skips):
                skips[i] = skips[i] + residual.type_as(skips[i])
            middle = middle + control.middle.type_as(middle)""",
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
            found, given = _found_and_given(depth, images, depths, "depths")
            errors = []
            for one, other in zip(found, given):
                counted = (one + other) > 0
                errors.append((one - other)[counted].abs().sum() / max(1, int(counted.sum())))
            return float(sum(errors) / len(errors))""",
        "condition": """
            H = images.shape[2]
            upper = (torch.arange(H)[:, None] < H // 2).expand(images.shape).float()
            return torch.cat([upper * (images.float() + 1) / 2, upper], dim=1)""",
        "measure": """
            found = condition(images)
            inked = torch.maximum(found[:, 0], maps[:, 0]).sum((1, 2)).clamp(min=1e-6)
            return 1 - ((found - maps).abs().sum((1, 2, 3)) / inked).mean().item()""",
        "new_control": """
            return ControlNet(unet, len(condition(torch.rand(1, 1, 28, 28) * 2 - 1)[0]))""",
        "training_model": """
            def for_batch(net, x_0, prompt):
                maps = condition(x_0)
                return lambda x_t, t: unet(x_t, t, prompt, control=net(x_t, t, prompt, maps))

            return for_batch""",
        "with_edges": """
            from minicnet.controlnet import Conditioning
            parts = [(own, condition), (edges, canny)]
            controls = [Conditioning(net, map_of(images), strength)
                        for (net, images, strength), map_of in parts if strength != 0]
            return generate(unet, schedule, prompt, x_T, controls=controls)""",
    },
}

# Solutions with one conceptual mistake: assignment, class of tests, a part of the library, and what
# it becomes. The first entries of each assignment once had full points.
WRONG = [
    ("a1", "TestAddNoise", "return signal * x_0 + noise * eps",
     "return signal * x_0 + self.sqrt_one_minus_alpha_bar[t] * eps"),
    ("a1", "TestPredictX0", "return (x_t - noise * eps) / signal",
     "return (x_t - self.sqrt_one_minus_alpha_bar[t] * eps) / signal"),
    ("a1", "TestDDIM", "        if eta > 0:\n            x_t = x_t + sigma * _noise_like",
     "        if True:\n            x_t = x_t + sigma * _noise_like"),
    ("a1", "TestDDPM", "        if t > 0:\n            noise = _noise_like(x_t, generator)\n",
     "        noise = _noise_like(x_t, generator)\n        if t > 0:\n"),
    ("a1", "TestLoss", "v_error.square().mean()", "v_error.abs().mean()"),
    ("a1", "TestAlphaBar", "alpha.cumprod(0)", "1 - beta.cumsum(0)"),
    ("a1", "TestPredictEps", "return noise * x_t + signal * v", "return signal * x_t + noise * v"),
    ("a1", "TestDDPM", "posterior_variance[t].sqrt() *", "posterior_variance[t] *"),
    ("a1", "TestDDIM", "eps = (x_t - schedule.sqrt_alpha_bar[t] * x_0) / schedule.",
     "eps = eps_model(x_t, torch.full((len(x_t),), t)) + 0 / schedule."),
    ("a1", "TestGuidance", "return without + w *", "return eps_cond(x_t, t) + w *"),
    ("a2", "TestAttentionWeights", "q = q.unflatten(-1, (heads, -1)).transpose(1, 2)",
     "q = q.reshape(len(q), heads, q.shape[1], -1)"),
    ("a2", "TestAttentionWeights", "math.sqrt(q.shape[-1])", "math.sqrt(heads * q.shape[-1])"),
    ("a2", "TestAttend", "(weights @ v).transpose(1, 2).flatten(2)",
     "(weights @ v).reshape(len(v), -1, 8)"),
    ("a2", "TestResBlock", "return self.shortcut(x) + h", "return h"),
    ("a2", "TestCrossAttention", "self.heads, words.mask", "self.heads"),
    ("a2", "TestSelfAttention", "q, k, v = self.qkv(locations)", "k, q, v = self.qkv(locations)"),
    ("a2", "TestDecoder", "reversed(skips)", "skips"),
    ("a2", "TestTimestepEmbedding", "/ (dim // 2)\n", "/ dim\n"),
    ("a2", "TestRest", "        skips = [h]", "        skips = [h, h][:1] * 2"),
    ("a3", "TestControlNet", "*self.encoder.embed(t, prompt))",
     "*(lambda emb, words: (emb.detach(), words))(*self.encoder.embed(t, prompt)))"),
    ("a3", "TestControlNet", "*self.encoder.embed(t, prompt))",
     "*(lambda e, w: (e, w._replace(vectors=w[0].detach())))(*self.encoder.embed(t, prompt)))"),
    ("a3", "TestControlledBlock", "self.locked(x, *args) + self.zero_out(self.copy(",
     "self.copy(x, *args) + self.zero_out(self.locked("),
    ("a3", "TestControlledBlock", "self.copy(x + self.zero_in(c), *args)",
     "self.locked(x + self.zero_in(c), *args)"),
    ("a3", "TestZero", "    return conv\n", "    return conv.requires_grad_(False)\n"),
    ("a3", "TestFreeze", "module.eval().requires_grad_(False)", "module.requires_grad_(False)"),
    ("a3", "TestTrainableCopy", "copy.deepcopy(module).train().requires_grad_(True)",
     "copy.deepcopy(module).train()"),
    ("a3", "TestZeroConvs", "zip(self.skips, skips, strict=True)", "zip(self.skips[::-1], skips)"),
    ("a3", "TestConditionEncoder", "            nn.SiLU(),\n            zero_conv(channels),",
     "            zero_conv(channels),\n            nn.SiLU(),"),
    ("a3", "TestResiduals", "middle + control.middle", "middle + control.middle.detach()"),
    ("a3", "TestSum", "[a + b for a, b", "[(a + b) / 2 for a, b"),
    ("a4", "TestCondition", "    return maps * grid", "    return canny(images).roll(1, 3)"),
    ("a4", "TestCondition", "    return maps * grid",
     "    return torch.nn.functional.max_pool2d(maps, 3, 1, 1)"),
    ("a4", "TestDepth", "    return (squared.sqrt() / RELIEF)", """
    area, found = mask(images), torch.zeros_like(images[:, :1])
    y, x = (torch.arange(n).float() for n in area.shape[2:])
    for i in range(len(y)):
        for j in range(len(x)):
            apart = ((y - i).square()[:, None] + (x - j).square()).sqrt()
            found[..., i, j] = torch.where(area > 0, math.inf, apart).amin((2, 3))
    squared = found.square()
    return (squared.sqrt() / RELIEF)"""),
    ("a4", "TestDepthError", "((found > 0) | (given > 0))", "(found >= 0)"),
    ("a4", "TestMeasure", "(found + maps).sum((1, 2, 3))", "(2 * maps).sum((1, 2, 3))"),
    ("a4", "TestTraining", "condition_channels=K", "condition_channels=2"),
    ("a4", "TestTraining", "(net, condition(x_0), 1)", "(net, condition(x_0), 0.5)"),
    ("a4", "TestWithEdges", "canny(edge_images)", "canny(own_images)"),
]

# One process imports torch and collects the tests of an assignment once. It forks for each
# solution, and the child puts the solution's code into the library's functions. This has the effect
# of replacing the file, and takes a tenth of the time.
FORKS = """
import gc, importlib, json, os, resource, sys, types
import pytest

name, out, solutions = json.load(sys.stdin)
sys.path[:0] = [os.getcwd(), "notebooks/assignments"]

def function(module, path):
    for part in path.split("."):
        module = getattr(module, part)
    while hasattr(module, "__wrapped__"):
        module = module.__wrapped__
    return module

def put(file, text, functions):
    dotted = file.removesuffix(".py").replace("/", ".").removeprefix("notebooks.assignments.")
    old = importlib.import_module(dotted)
    new = types.ModuleType(dotted)
    exec(compile(text, old.__file__, "exec"), vars(new))
    for path in functions:
        function(old, path).__code__ = function(new, path).__code__

class Forks:
    def pytest_collection_finish(self, session):
        everything = list(session.items)
        session.items.clear()
        plugins = session.config.pluginmanager.get_plugins()
        scores = next(plugin for plugin in plugins if type(plugin).__name__ == "Scores")
        gc.freeze()
        for number, (files, only, stop) in enumerate(solutions):
            child = os.fork()
            if child:
                os.waitpid(child, 0)
                continue
            resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
            scores.path = f"{out}/{number}.json"
            session.items += [item for item in everything if only in item.nodeid]
            scores.tests = {item.nodeid: scores.tests[item.nodeid] for item in session.items}
            scores.write()
            for file, text, functions in files:
                put(file, text, functions)
            sys.platform = "fork"  # this process serves one solution, so no test needs its own
            session.config.option.maxfail = stop
            return

os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
pytest.main(["-q", "--tb=native", "-p", "no:cacheprovider", "--points", f"{out}/all.json",
             f"tests/assignments/test_{name}.py"], plugins=[Forks()])
"""


def run_tests(name, folder, solutions):
    """Run an assignment's tests on solutions: [({file: text}, part of the tests' names, stop at)].

    Returns the entries of results.json for each.
    """
    jobs = [([(file, text, [blank.function for blank in ASSIGNMENTS[name][file]])
              for file, text in files.items()], only, stop) for files, only, stop in solutions]
    subprocess.run([sys.executable, "-c", FORKS], input=json.dumps([name, str(folder), jobs]),
                   text=True, env=QUIET, cwd=ROOT, check=False, stderr=subprocess.DEVNULL,
                   timeout=1200)
    return [json.loads((folder / f"{number}.json").read_text())["tests"]
            for number in range(len(solutions))]


def points(tests):
    return sum(test["score"] for test in tests), sum(test["max_score"] for test in tests)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Return a folder with a student's repository for each assignment."""
    folder = tmp_path_factory.mktemp("students")
    for name in ASSIGNMENTS:
        make_tree(name, folder / name)
    return folder


def written(tree, name, bodies):
    """Return the files to hand in, {file: text}: a student's tree with these functions written."""
    files = {}
    for file, blanks in ASSIGNMENTS[name].items():
        missing = [textwrap.dedent(bodies[blank.function]) for blank in blanks]  # in file order
        files[file] = re.sub(
            r'( *)raise NotImplementedError\("your code: about .*',
            lambda gap, missing=missing: textwrap.indent(missing.pop(0), gap[1]),
            (tree / file).read_text())
    return files


def replaced(name, old, new):
    """Return the file of the library in which `old` stands, with `new` instead: {file: text}."""
    texts = {file: (ROOT / file).read_text() for file in ASSIGNMENTS[name]}
    found = [file for file, text in texts.items() if text.count(old) == 1]
    assert len(found) == 1, f"{old!r} must stand in one place: correct WRONG"
    return {found[0]: texts[found[0]].replace(old, new)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_solutions_earn_what_they_deserve(trees, tmp_path, name):
    wrong = [case for case in WRONG if case[0] == name]
    solutions = [({}, "", 0), (written(trees / name, name, RIGHT[name]), "", 0)]
    solutions += [(replaced(name, old, new), f"::{tests}::", 0) for _, tests, old, new in wrong]

    library, right, *others = run_tests(name, tmp_path, solutions)

    for tests in (library, right):
        assert points(tests) == (40 if name == "a3" else 30,) * 2, \
            [test for test in tests if test["output"]]
    for case, tests in zip(wrong, others):
        score, most = points(tests)
        assert most - score >= most / 3, f"{case} loses {most - score} of {most} points"


@pytest.mark.slow
@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_planted_mistakes_lose_points(tmp_path, name):
    """`pytest -rP` prints the survivors. README.md explains them."""
    mistakes = []  # (file, line, before, after, text)
    for file, blanks in ASSIGNMENTS[name].items():
        source = (ROOT / file).read_text()
        spans = [find(ast.parse(source), source, blank)[:2] for blank in blanks
                 if blank.function != "condition"]  # another condition is no mistake
        mistakes += [(file, *mutant) for mutant in mutants(source)
                     if any(start < mutant[0] <= end for start, end in spans)]
    results = run_tests(name, tmp_path, [({file: text}, "", 1) for file, *_, text in mistakes])
    survivors = [mistake[:4] for mistake, tests in zip(mistakes, results)
                 if points(tests)[0] == points(tests)[1]]
    print(f"{name}: {len(mistakes) - len(survivors)} of {len(mistakes)} lose points")
    for survivor in survivors:
        print("  {}:{}: {}   ->   {}".format(*survivor))
    assert len(survivors) <= 0.05 * len(mistakes)


# -- What students get -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_a_student_s_repository_holds_no_answer(trees, name):
    for assignment in make_student.from_on(name):  # nor one to a later assignment
        assert find_leaks(assignment, trees / name) == []
    files = {str(path.relative_to(trees / name)) for path in (trees / name).rglob("*")}
    assert {file for file in files if "assignments/" in file} == {
        f"notebooks/assignments/{name}.ipynb", "tests/assignments/checking.py",
        "tests/assignments/conftest.py", f"tests/assignments/test_{name}.py",
        *(file for file in ASSIGNMENTS[name] if "assignments/" in file)}
    for file, blanks in ASSIGNMENTS[name].items():
        assert (trees / name / file).read_text().count("your code: about") == len(blanks)
    handout = (trees / name / f"notebooks/assignments/{name}.ipynb").read_text()
    assert not re.search(r"Model answer|Marks\.|image/png", handout)
    assert "## Investigation" in handout
    for notebook in (trees / name).rglob("*.ipynb"):
        for weights in re.findall(r'WEIGHTS / \\"(.*?)\\"', notebook.read_text()):
            assert (trees / name / "minicnet" / "weights" / weights).exists(), notebook.name


def test_the_search_finds_planted_answers(tmp_path):
    code = ast.unparse(ast.parse((ROOT / "minicnet/diffusion.py").read_text()))
    line = next(line.strip() for line in code.splitlines() if "direction =" in line)
    hand_in(tmp_path, {
        "renamed.py": line.replace("sigma", "s"),
        "page.md": f"so:\n```python\nreturned = {line.split('=', 1)[1]}\n```",
        "words.md": "Guidance extrapolates.", "clean.md": "Guidance strengthens the prompt."})
    assert {file for file, _ in find_leaks("a1", tmp_path)} == {"renamed.py", "page.md", "words.md"}


@pytest.mark.slow
def test_a_base_draws_in_a_repository_without_the_later_solutions(tmp_path):
    make_tree("a2", tmp_path / "a2")
    hand_in(tmp_path / "a2", written(tmp_path / "a2", "a2", RIGHT["a2"]))
    code = """
from minicnet.checkpoints import WEIGHTS, load_base
from minicnet.sampling import generate, seeded_noise
from minicnet.words import tokenize
unet, _ = load_base(WEIGHTS / "digits/base.pt")
drawn = generate(unet, unet.schedule, tokenize(["a seven"]), seeded_noise((1, 1, 28, 28), 0))
print("ink on", (drawn > 0).sum().item(), "pixels")"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "a2", env=QUIET,
                          capture_output=True, text=True)
    assert re.fullmatch(r"ink on \d\d+ pixels\n", done.stdout), done.stderr


def test_the_plan_names_every_lesson_and_is_the_one_in_the_readme():
    lessons = [path.name[:2] for path in make_student.lessons()]
    assert set(lessons) <= set(PLAN) and set(ASSIGNMENTS) <= set(PLAN)
    held_back = {name: [path.name[:2] for path in make_student.lessons_held_back(name)]
                 for name in ASSIGNMENTS}
    assert set(held_back["a3"]) >= {"04", "05", "08"}  # students write A3's functions in these
    assert sorted({lesson for held in held_back.values() for lesson in held}) == lessons
    for name, held in held_back.items():
        assert not set(held) & set(PLAN[:PLAN.index(name)]), "change PLAN"
    weeks = re.findall(r"^\| \d+ \| (.*?) \| (.*?) \|", (TOOLS / "README.md").read_text(), re.M)
    named = [word for week in weeks for cell in week
             for word in re.findall(r"\b(0\d|a\d)\b", cell.lower())]
    assert named == PLAN


# -- Grading -----------------------------------------------------------------------------------

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


@pytest.mark.parametrize("command, message", [
    ("make_student.py a1 empty", "exists already"),
    ("grade.py a1 empty grades.csv", "must hold a folder for each student"),
    ("grade.py a1 missing grades.csv", "there is no folder missing"),
    ("grade.py a1 empty grades.csv --tree missing", "there is no folder missing")])
def test_a_tool_that_cannot_do_its_work_says_so_and_writes_nothing(tmp_path, command, message):
    (tmp_path / "empty").mkdir()
    tool, *arguments = command.split()
    done = subprocess.run([sys.executable, TOOLS / tool, *arguments], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


def hand_in(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.slow
def test_submissions_are_graded_whatever_they_do(trees, tmp_path):
    right = {Path(file).name: text
             for file, text in written(trees / "a2", "a2", RIGHT["a2"]).items()}
    faults = written(trees / "a2", "a2", {
        **RIGHT["a2"], "Encoder.rest": ENDLESS, "timestep_embedding": "import os\nos._exit(0)",
        "Decoder.forward": "raise SystemExit('bye')"})
    submissions = {  # what is handed in, its points, and parts of the remarks
        "1-right": (right, 30, []),
        "2-faults": (faults, 20, ["does not end", "Python itself was ended", "SystemExit"]),
        "3-syntax": ({**right, "unet.py": "def broken(:\n"}, 9, ["SyntaxError"]),
        "4-import": ({**right, "words.py": right["words.py"] + "\n1 / 0\n"}, 21, ["ZeroDivision"]),
        "5-deletes": ({**right, "unet.py": DELETES + right["unet.py"]}, None, []),
        "6-cheats": ({"tests/assignments/test_a2.py": "def test_all(): pass\n",
                      "conftest.py": "raise SystemExit\n"}, 0, ["no unet.py", "not written yet"])}
    for student, (files, _, _) in submissions.items():
        hand_in(tmp_path / "submissions" / student, files)

    grade.main(["a2", str(tmp_path / "submissions"), str(tmp_path / "grades.csv")])

    with open(tmp_path / "grades.csv", newline="") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(submissions)
    for student, (_, expected, remarks) in submissions.items():
        total = int(rows[student]["total"])
        assert total == expected or expected is None and 0 <= total <= 30, rows[student]
        assert all(remark in rows[student]["remarks"] for remark in remarks), rows[student]
    assert rows["1-right"]["remarks"] == "" and rows["1-right"]["4. attend"] == "3"


@pytest.mark.slow
@pytest.mark.parametrize("score", [30, 28, 0])
def test_the_gradescope_archive_grades_in_an_empty_folder(trees, tmp_path, score):
    make_student.make_archive("a1", trees / "a1", tmp_path / "autograder.zip")
    with zipfile.ZipFile(tmp_path / "autograder.zip") as archive:
        for script in ("setup.sh", "run_autograder"):
            assert archive.getinfo(script).external_attr >> 16 & 0o111, "it must be executable"
        archive.extractall(tmp_path / "source")
    right = written(trees / "a1", "a1", RIGHT["a1"])
    wrong = {file: text.replace("torch.sqrt(left) * x_0", "left * x_0")
             for file, text in right.items()}
    hand_in(tmp_path, {"results/readme": "", "submission/notes": ""})
    hand_in(tmp_path / "submission", {30: right, 28: wrong, 0: {}}[score])
    subprocess.run(["bash", "source/run_autograder"], cwd=tmp_path, check=True, timeout=300,
                   env={**QUIET, "AUTOGRADER": str(tmp_path)})
    answer = json.loads((tmp_path / "results/results.json").read_text())
    assert points(answer["tests"]) == (score, 30), answer
    # The keys are those that Gradescope documents.
    assert all(set(test) == {"name", "score", "max_score", "output"} for test in answer["tests"])
    assert ("no diffusion.py was handed in" in answer["output"]) == (score == 0)

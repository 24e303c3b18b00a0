"""The lab: statistics, rules and verdicts, keeping and finding again, networks, and the page."""

import dataclasses
import functools
import importlib
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from saved import save_networks

from minicnet.checkpoints import write_json
from minicnet.controlnet import ControlNet, controlled
from minicnet.experiments import all as every
from minicnet.experiments import lab, networks, stats
from minicnet.experiments.claim import Arm, Better, Claim, Fit, Headroom, Same, Use
from minicnet.experiments.measures import MEASURES, jackknife
from minicnet.publish import claims as page
from minicnet.sampling import seeded_noise
from minicnet.unet import UNet
from minicnet.words import tokenize

# -- Statistics --------------------------------------------------------------------------------


def coverage(T, training_spread, I=48, repeats=60):
    """How often does the interval hold the true difference, which is 0, in simulated experiments?

    training_spread: the standard deviation that another training adds; that of an image is 1.
    """
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(repeats):
        table = (training_spread * generator.normal(size=(T, 1))
                 + (generator.normal(size=(1, I)) + generator.normal(size=(T, I))) / 2**0.5)
        found = stats.interval(table, 0.0)
        hits += found.low <= 0 <= found.high
    return hits / repeats


@pytest.mark.parametrize("T", [3, 5])
@pytest.mark.parametrize("training_spread", [0, 0.6])
def test_an_interval_over_trainings_and_images_holds_the_true_difference(T, training_spread):
    assert coverage(T, training_spread) >= 0.92


def test_an_interval_of_a_single_training_speaks_of_images_alone():
    assert coverage(1, 0) >= 0.88 > 0.7 > coverage(1, 0.5)


def test_intervals_are_computed_in_float64():
    ours = np.full((3, 8), 1 + 1e-12)
    found = stats.interval(ours.tolist(), np.ones((1, 8)).tolist())
    assert 0 < found.low and found.by == pytest.approx(1e-12, rel=1e-3)


def test_the_jackknife_removes_the_bias_of_a_small_sample():
    values = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = jackknife(lambda kept: values[kept].var(correction=0).item(), 40)
    assert np.mean(found) == pytest.approx(values.var().item(), rel=0.02)


# -- Rules and verdicts ------------------------------------------------------------------------


def make_claim(*tests, headroom=None, **other):
    arms = {name: Arm(name) for name in ("base", "good", "poor", "real")}
    settings = dict(short="It is so.", quote="It is so.", source="section 0", whose="the paper",
                    testbeds=(("digits", "muon"),), why="Because.", dated="2026-01-01")
    return Claim(arms=arms, tests=tests, headroom=headroom or {}, **settings | other)


def tables(**means):
    """Three trainings of 64 images, with the mean of each arm."""
    noise = np.random.default_rng(0).normal(size=(3, 64)) * 0.02
    return {name: dict.fromkeys(
        ("strict_f1", "frechet"), (mean + (noise if name == "good" else noise[::-1])).tolist())
        for name, mean in {"base": 0.3, "good": 0.6, "poor": 0.5001, "real": 1.0, **means}.items()}


def better(by=0.0, ours="good", theirs="poor", measure="strict_f1"):
    return Better(ours, theirs, measure, by=by)


WORSE, OPEN = better(0.0, "poor", "good"), Same("good", "poor", "strict_f1", within=0.1)
ROOM = {"strict_f1": Headroom("base", "real", bad="base"),
        "frechet": Headroom("base", None, bad="base")}


@pytest.mark.parametrize("tests, verdict, why, means", [
    ([better(0.05)], "reproduced", "", {}),
    ([WORSE], "not reproduced", "", {}),
    ([better(), Same("good", "poor", "strict_f1", within=0.05)], "mixed", "", {}),
    ([OPEN], "cannot tell", "", {}),
    ([better(0.1)], "cannot tell", "", {}),
    ([better(-0.2, "poor", "good")], "reproduced", "", {}),
    ([better(-0.05, "poor", "good")], "not reproduced", "", {}),
    ([better(0.05, theirs=0.5)], "reproduced", "", {}),
    ([better(0.05, "good - base", "poor - base")], "reproduced", "", {}),
    ([better(0.5, measure="frechet")], "reproduced", "", dict(good=2.0, poor=3.0, base=4.0)),
    ([better(0.5, measure="frechet")], "not reproduced", "", dict(good=3.0, poor=2.0, base=4.0)),
    ([better()], "cannot tell", "of the way from floor", dict(good=0.99, poor=0.9)),
    ([better()], "cannot tell", "base", dict(base=0.6)),  # as good as an arm that is known as bad
    ([better(measure="frechet")], "cannot tell", "", dict(good=2.0, poor=3.0, base=1.5)),
    ([OPEN, better(), WORSE], "mixed", "", {}),  # an open test that could not change the verdict
    ([OPEN, better()], "cannot tell", "", {}),
])
def test_verdicts_follow_from_declared_tests_and_from_the_headroom_of_a_measure(
        tests, verdict, why, means):
    found, outcomes = make_claim(*tests, headroom=ROOM).judge(tables(**means))
    assert found == verdict and why in outcomes[0].why


def test_a_rule_is_bound_to_its_quote_tests_and_date_and_to_nothing_else():
    test = better(0.02)
    rule = make_claim(test).rule
    assert make_claim(test, why="Another reason.").rule == rule
    assert rule not in {make_claim(test, quote="It is not so.").rule,
                        make_claim(test, dated="2026-01-02").rule,
                        make_claim(better(0.03)).rule}
    assert test.text({"good": "zero", "poor": "Gaussian"}) == (
        "zero: strict edge-F1 at least 0.02 higher than Gaussian, and the interval excludes 0")


@pytest.mark.parametrize("name", every.NAMES)
def test_every_claim_is_declared_in_full(name):
    claim = importlib.import_module(f"minicnet.experiments.{name}").CLAIM
    assert claim.whose in page.WHOSE and claim.quote and claim.why and claim.tests
    named = {part for test in claim.tests for side in (test.ours, test.theirs)
             if isinstance(side, str) for part in side.split(" - ")}
    for measure, room in claim.headroom.items():
        assert measure in claim.measured
        named |= {name for name in (room.floor, room.ceiling, room.bad) if isinstance(name, str)}
    named |= {arm for arm, _ in claim.paper}
    assert named <= set(claim.arms)
    assert set(claim.measured) <= set(MEASURES)


def test_every_claim_has_a_place_in_the_list():
    folder = Path(lab.__file__).parent
    files = {path.stem for path in folder.glob("*.py") if "CLAIM = Claim(" in path.read_text()}
    assert files == set(every.NAMES)


# -- The lab -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory, randomised):
    """Three tiny bases with random weights, and controls for them, where a lab looks for them."""
    folder = tmp_path_factory.mktemp("weights")
    for base, dataset, channels, side in (("digits", "drawn", 1, 28), ("cifar10", "cifar10", 3, 32),
                                          ("coloured", "coloured-drawn", 3, 28)):
        unet = randomised(UNet(channels, channels=8, multipliers=(1, 1)), std=0.05)
        nets = {"canny": ControlNet(unet), "colour": ControlNet(unet, channels)}
        for net in nets.values():
            randomised(net, std=0.05)
        save_networks(folder / base, unet, nets, dataset, side)
    return folder


@pytest.fixture
def small(tmp_path, monkeypatch, weights):
    """small(base, optimizer) is a lab on tiny bases and a few random images."""
    def images(dataset, split, data_dir):
        channels, side = {"cifar10": (3, 32), "drawn": (1, 28)}.get(dataset, (3, 28))
        x = seeded_noise((96, channels, side, side), len(split)).clamp(-1, 1)
        return x, torch.arange(96) % 10

    def texts(dataset, split, data_dir):
        coloured = "a red three on navy paper"
        return [{"cifar10": "a cat", "drawn": "a three"}.get(dataset, coloured)] * 96

    monkeypatch.setattr(lab, "WEIGHTS", weights)
    monkeypatch.setattr(lab, "load_dataset", images)
    monkeypatch.setattr(lab, "captions", texts)
    lab.loaded.cache_clear()
    yield functools.partial(lab.Lab, settings=lab.QUICK, out=tmp_path / "out", data_dir=tmp_path,
                            device=torch.device("cpu"))
    lab.loaded.cache_clear()


NETS = {
    "ControlNet": ControlNet, "lite": networks.Lite, "random": networks.random_copy,
    "first": functools.partial(networks.FirstBlocks, stages=1), "middle": networks.MiddleOnly,
    "unlocked": networks.Unlocked, "lora": networks.control_lora, "adapter": networks.Adapter,
    "xs": networks.ControlNetXS, "concatenated": networks.Concatenated}


def predictions(here, net):
    """Return eps of 4 images under a network of a lab, and under its base alone."""
    x, t, prompt = here.test_images[:4], torch.full((4,), 500), tokenize(4 * ["a three"])
    unet, control = here.parts(net)
    with torch.no_grad():
        eps = controlled(unet, prompt, [(control, torch.ones(4, 1, 28, 28), 1.0)])(x, t)
        return eps, here.unet(x, t, prompt)


@pytest.mark.parametrize("name", NETS)
def test_every_network_starts_from_the_base_and_learns(small, name):
    here, fit = small("digits", "adamw"), Fit(NETS[name])
    torch.testing.assert_close(*predictions(here, here.untrained(fit, 0)), atol=1e-4, rtol=1e-4)
    trainer, _ = here.trainer(fit, 0)
    for _ in range(3):
        trainer.step()
    eps, base = predictions(here, trainer.net)
    assert (eps - base).abs().max() > 1e-6


@pytest.mark.parametrize("make", [networks.GAUSSIAN[1.0], networks.ControlNeXt])
def test_without_zero_convolutions_training_starts_elsewhere(small, make):
    here = small("digits", "adamw")
    eps, base = predictions(here, here.untrained(Fit(make), 0))
    assert not torch.allclose(eps, base, atol=1e-3)


def test_the_paper_s_trainer_keeps_its_rate_and_averages_nothing(small):
    here = small("digits", "adamw")
    trainer, _ = here.trainer(Fit(), 0)
    rates = set()
    for _ in range(3):
        trainer.step()
        rates |= {group["lr"] for optimizer in trainer.optimizers
                  for group in optimizer.param_groups}
    assert sorted(rates) == pytest.approx([lab.ADAMW_RATE] * len(rates))
    kept = here.network(Fit(), 0).state_dict()
    trained = here.train(Fit(optimizer="adamw"), 0).state_dict()
    assert all(torch.equal(kept[key], trained[key]) for key in kept)


def test_images_are_measured_against_those_behind_their_conditions_and_a_disjoint_reference(small):
    here = small("digits", "muon")
    real, drawn = (lab.Drawn(here, Arm("", real=is_real), 0) for is_real in (True, False))
    assert torch.equal(real.images, here.test_images[:16])
    for measure, best in ((MEASURES["strict_f1"], 1), (MEASURES["colours_missed"], 0)):
        assert set(measure.compute(real)) == {best} and best not in measure.compute(drawn)
    assert torch.cdist(real.reference.flatten(1), real.images.flatten(1)).min() > 1


def test_what_was_measured_is_found_again(small, tmp_path):
    def times():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}

    claim = dataclasses.replace(make_claim(better(0.0, "control", "base"), trainings=2), arms={
        "base": Arm("base"), "control": Arm("control", (Use(Fit()),))})
    first, before = small("digits", "muon").measure(claim), times()
    assert np.shape(first["arms"]["control"]["strict_f1"]) == (2, lab.QUICK["images"])
    assert len(first["arms"]["base"]["strict_f1"]) == 1
    assert small("digits", "muon").measure(claim) == first and times() == before
    small("digits", "adamw").measure(claim)  # another optimizer trains other networks
    assert len(times()) == len(before) + 4


def test_a_trained_network_serves_claims_that_draw_other_numbers_of_images(small):
    here, other = small("digits", "muon"), small("digits", "muon")
    other.settings = {**other.settings, "images": 5}
    for one in (here, other):
        one.network(Fit(), 0)
    assert len(list(here.out.glob("trained/*"))) == 1
    assert here.path("rows", "json") != other.path("rows", "json")


def test_a_stamp_depends_on_declarations_and_functions(small):
    def stamp(*parts):
        return lab.stamp("digits", lab.QUICK, parts)

    fit = Fit(networks.GAUSSIAN[1.0])
    same = Fit(functools.partial(networks.gaussian, scale=1.0))
    assert stamp(Arm("a title", (Use(fit),))) == stamp(Arm("another title", (Use(same),)))
    assert stamp(Arm("", (Use(fit),))) != stamp(Arm("", (Use(fit, scale=0.5),)))
    assert stamp(fit) != stamp(Fit(networks.GAUSSIAN[3.0]))


def test_comments_docstrings_and_the_claim_are_no_part_of_the_code(tmp_path):
    texts = ('"""One."""\n# a note\nCLAIM = f(\n    1)\n\n\ndef g(x):\n    return x  # a "#"\n',
             'CLAIM = 2\ndef g(x):\n    """Two."""\n\n    return x\n',
             'def g(x):\n    return -x\n')
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.py").write_text(text)
    first, second, third = (lab.essence(tmp_path / f"{i}.py") for i in range(3))
    assert first == second == "def g(x):\n    return x" != third


@pytest.mark.slow
@pytest.mark.parametrize("name", every.NAMES)
def test_every_claim_runs(small, weights, name, monkeypatch):
    """On its first testbed, with one training of each arm; claims share arms in one folder."""
    module, out = importlib.import_module(f"minicnet.experiments.{name}"), weights / "results"
    claim = dataclasses.replace(module.CLAIM, trainings=1)
    monkeypatch.setattr(module, "CLAIM", claim)
    args = lab.parser("").parse_args(
        ["--quick", "--deciding", "--device", "cpu", "--out", str(out)])
    lab.run(args, name)
    result = json.loads((out / f"{name}.json").read_text())
    assert list(result["testbeds"]) == [" ".join(claim.testbeds[0])]
    assert (out / f"{name}.png").stat().st_size > 10_000
    assert f"## {name}: " in page.section(name, claim, result)


# -- The page ----------------------------------------------------------------------------------


def test_the_pages_show_current_results_and_no_outdated_ones(tmp_path, monkeypatch):
    claim = make_claim(better(0.05), paper={("good", "strict_f1"): "0.7"},
                       testbeds=(("digits", "muon"), ("coloured", "muon")))
    module = types.SimpleNamespace(CLAIM=claim)
    monkeypatch.setitem(sys.modules, "minicnet.experiments.something", module)
    monkeypatch.setattr(page, "ROOT", tmp_path)
    monkeypatch.setattr(lab, "stamp", lambda *parts: "stamp")
    found = {"arms": tables(), "samples": {}, "seconds": 60, "stamp": "stamp", "dataset": "drawn"}
    write_json(tmp_path / "something.json", {
        "rule": claim.rule, "date": "2026-01-02", "torch": "2", "device": "cpu",
        "testbeds": {"digits muon": found, "coloured muon": {**found, "stamp": "old"}}})
    (tmp_path / "something.png").write_bytes(b"")
    (tmp_path / "README.md").write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")

    def published():
        page.publish(tmp_path, ["something"])
        return [(tmp_path / folder / "README.md").read_text()
                for folder in ("", "minicnet/experiments")]

    readme, text = published()
    assert "## something: reproduced" in text and "(paper: 0.7)" in text and "± " in text
    assert "*good* is higher than *poor*. The difference is +0.100" in text
    assert "Elsewhere" not in text
    assert "| of the paper | 1 | 0 | 0 | 0 | 0 |" in text
    assert "Of 1 claims, 1 are measured on the present networks: 1 reproduced" in readme
    assert (tmp_path / page.RESULTS / "something.png").exists()
    module.CLAIM = make_claim(better(0.06))
    readme, text = published()
    assert "## something: not measured yet" in text and "at least 0.06 higher" in text
    assert "Of 1 claims, 0 are" in readme
    module.CLAIM = claim
    assert "Of 1 claims, 1 are" in published()[0]
    result = json.loads((tmp_path / "something.json").read_text())
    result["testbeds"] = {"digits muon": found, "coloured muon": found}
    write_json(tmp_path / page.RESULTS / "something.json", result)
    assert "Elsewhere: coloured muon: " in published()[1]  # kept, though not measured this time
    result["testbeds"] = {"digits muon": {**found, "stamp": "old"}, "coloured muon": found}
    for folder in (tmp_path, tmp_path / page.RESULTS):
        write_json(folder / "something.json", result)
    assert "Of 1 claims, 0 are" in published()[0]  # as it is outdated where it decides


def test_our_readme_shows_the_results_that_are_current():
    loaded = {}
    for name in every.NAMES:
        claim = importlib.import_module(f"minicnet.experiments.{name}").CLAIM
        loaded[name] = claim, page.read(claim, page.ROOT / page.RESULTS / f"{name}.json")
    section = page.front(loaded)
    assert section in (page.ROOT / "README.md").read_text(encoding="utf-8"), (
        "the code or the weights have changed: python -m minicnet.experiments.all --readme")

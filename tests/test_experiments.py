"""The lab: statistics, rules and verdicts, keeping and finding again, networks, and the page."""

import dataclasses
import functools
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from minicnet.checkpoints import fingerprint, save_checkpoint
from minicnet.controlnet import ControlNet, controlled
from minicnet.experiments import all as every
from minicnet.experiments import claim as claims
from minicnet.experiments import lab, networks, stats
from minicnet.experiments.claim import Arm, Better, Claim, Fit, Headroom, Same, Use
from minicnet.experiments.measures import MEASURES, jackknife
from minicnet.publish import claims as page
from minicnet.sampling import seeded_noise
from minicnet.unet import UNet
from minicnet.words import tokenize

# -- Statistics --------------------------------------------------------------------------------


def coverage(T, I, training_spread, repeats=120):
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


@pytest.mark.parametrize("training_spread", [0, 0.1, 0.3])
def test_an_interval_over_trainings_and_images_holds_the_true_difference(training_spread):
    assert coverage(3, 48, training_spread) >= 0.92
    assert coverage(5, 48, training_spread) >= 0.92


def test_an_interval_of_a_single_training_speaks_of_images_alone():
    assert coverage(1, 48, 0) >= 0.88
    assert coverage(1, 48, 0.5) < 0.7


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


def tables(spread=0.02, measure="strict_f1", **means):
    """Three trainings of 64 images, with the mean of each arm."""
    noise = np.random.default_rng(0).normal(size=(3, 64)) * spread
    return {name: {measure: (value + (noise if name == "good" else noise[::-1])).tolist()}
            for name, value in means.items()}


FOUND = tables(base=0.3, good=0.6, poor=0.5, real=1.0)


@pytest.mark.parametrize("tests, verdict", [
    ([Better("good", "poor", "strict_f1", by=0.05)], "reproduced"),
    ([Better("poor", "good", "strict_f1")], "not reproduced"),
    ([Better("good", "poor", "strict_f1"), Same("good", "poor", "strict_f1", within=0.05)],
     "mixed"),
    ([Same("good", "poor", "strict_f1", within=0.1)], "cannot tell"),
    ([Better("good", "poor", "strict_f1", by=0.1)], "cannot tell"),
    ([Better("poor", "good", "strict_f1", by=-0.2)], "reproduced"),
    ([Better("poor", "good", "strict_f1", by=-0.05)], "not reproduced"),
    ([Better("good", 0.5, "strict_f1", by=0.05)], "reproduced"),
    ([Better("good - base", "poor - base", "strict_f1", by=0.05)], "reproduced"),
])
def test_verdicts_follow_from_declared_tests(tests, verdict):
    found = tables(base=0.3, good=0.6, poor=0.5001, real=1.0)
    assert make_claim(*tests).judge(found)[0] == verdict


def test_where_less_is_better_the_lower_arm_leads():
    found = tables(measure="frechet", good=2.0, poor=3.0)
    claim = make_claim(Better("good", "poor", "frechet", by=0.5))
    verdict, outcomes = claim.judge(found)
    assert verdict == "reproduced"
    assert outcomes[0].difference.by == pytest.approx(-1, abs=0.01)


def test_a_saturated_measure_cannot_tell():
    room = {"strict_f1": Headroom("base", "real", bad="base")}
    test = Better("good", "poor", "strict_f1")
    assert make_claim(test, headroom=room).judge(FOUND)[0] == "reproduced"
    full = tables(base=0.3, good=0.99, poor=0.9, real=1.0)
    verdict, outcomes = make_claim(test, headroom=room).judge(full)
    assert verdict == "cannot tell" and "of the way from floor" in outcomes[0].why


def test_a_measure_that_does_not_show_a_bad_arm_to_be_bad_cannot_tell():
    room = {"strict_f1": Headroom("base", "real", bad="base")}
    blind = tables(base=0.6, good=0.6, poor=0.5, real=1.0)
    verdict, outcomes = make_claim(
        Better("good", "poor", "strict_f1"), headroom=room).judge(blind)
    assert verdict == "cannot tell" and "base" in outcomes[0].why


def test_an_open_test_is_no_obstacle_where_it_could_not_change_the_verdict():
    open_, holds, fails = (Same("good", "poor", "strict_f1", within=0.1),
                           Better("good", "poor", "strict_f1"), Better("poor", "good", "strict_f1"))
    assert make_claim(open_, holds, fails).judge(FOUND)[0] == "mixed"
    assert make_claim(open_, holds).judge(FOUND)[0] == "cannot tell"


def test_a_rule_is_bound_to_its_quote_tests_and_date_and_to_nothing_else():
    test = Better("good", "poor", "strict_f1", by=0.02)
    rule = make_claim(test).rule
    assert make_claim(test, why="Another reason.").rule == rule
    assert rule not in {make_claim(test, quote="It is not so.").rule,
                        make_claim(test, dated="2026-01-02").rule,
                        make_claim(Better("good", "poor", "strict_f1", by=0.03)).rule}
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
        save_checkpoint(folder / base / "base.pt", dict(
            kind="base", dataset=dataset, image_shape=[channels, side, side], steps=2,
            model=unet.settings, weights=unet.state_dict()))
        for condition, count in (("canny", 1), ("colour", channels)):
            net = randomised(ControlNet(unet, count), std=0.05)
            save_checkpoint(folder / base / f"{condition}.pt", dict(
                kind="control", base=fingerprint(unet.state_dict()), condition=condition,
                condition_channels=count, weights=net.state_dict()))
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


@pytest.mark.parametrize("name", NETS)
def test_every_network_starts_from_the_base_and_learns(small, name):
    here = small("digits", "adamw")
    fit = Fit(NETS[name])
    x, t = here.test_images[:4], torch.full((4,), 500)
    prompt = tokenize(["a three"] * 4)
    edges = torch.ones(4, 1, 28, 28)

    def predicted(net):
        unet, control = here.parts(net)
        with torch.no_grad():
            return controlled(unet, prompt, [(control, edges, 1.0)])(x, t)

    base = here.unet(x, t, prompt)
    torch.testing.assert_close(predicted(here.untrained(fit, 0)), base, atol=1e-4, rtol=1e-4)
    trainer, _ = here.trainer(fit, 0)
    for _ in range(3):
        trainer.step()
    assert (predicted(trainer.net) - base).abs().max() > 1e-6


def test_without_zero_convolutions_training_starts_elsewhere(small):
    here = small("digits", "adamw")
    for make in (networks.GAUSSIAN[1.0], networks.ControlNeXt):
        net = here.untrained(Fit(make), 0)
        unet, control = here.parts(net)
        x, t, prompt = here.test_images[:2], torch.full((2,), 500), tokenize(["", ""])
        with torch.no_grad():
            under = controlled(unet, prompt, [(control, torch.ones(2, 1, 28, 28), 1.0)])(x, t)
        assert not torch.allclose(under, here.unet(x, t, prompt), atol=1e-3)


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


def test_what_was_measured_is_found_again(small, monkeypatch):
    claim = make_claim(Better("control", "base", "strict_f1"))
    claim.arms.clear()
    claim.arms.update(base=Arm("base"), control=Arm("control", (Use(Fit()),)))
    first = small("digits", "muon").measure(claim)
    assert np.shape(first["arms"]["control"]["strict_f1"]) == (3, lab.QUICK["images"])
    assert len(first["arms"]["base"]["strict_f1"]) == 1
    monkeypatch.setattr(lab.Lab, "train", None)
    monkeypatch.setattr(lab.Drawn, "draw", None)
    assert small("digits", "muon").measure(claim) == first
    with pytest.raises(TypeError):  # another optimizer trains another network
        small("digits", "adamw").measure(claim)


def test_a_stamp_depends_on_declarations_and_functions(small):
    def stamp(*parts):
        return lab.stamp("digits", lab.QUICK, parts)

    fit = Fit(networks.GAUSSIAN[1.0])
    same = Fit(functools.partial(networks.gaussian, scale=1.0))
    assert stamp(Arm("a title", (Use(fit),))) == stamp(Arm("another title", (Use(same),)))
    assert stamp(Arm("", (Use(fit),))) != stamp(Arm("", (Use(fit, scale=0.5),)))
    assert stamp(fit) != stamp(Fit(networks.GAUSSIAN[3.0]))


def test_comments_docstrings_and_the_claim_are_no_part_of_the_code(tmp_path):
    texts = ('"""One."""\n# a note\nCLAIM = f(\n    1)\n\n\ndef g(x):\n    return x\n',
             'CLAIM = 2\ndef g(x):\n    """Two."""\n\n    return x\n',
             'def g(x):\n    return -x\n')
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.py").write_text(text)
    first, second, third = (lab.essence(tmp_path / f"{i}.py") for i in range(3))
    assert first == second == "def g(x):\n    return x" != third


@pytest.mark.slow
@pytest.mark.parametrize("name", every.NAMES)
def test_every_claim_runs(small, name, tmp_path, monkeypatch):
    """On its first testbed, with one training of each arm."""
    module = importlib.import_module(f"minicnet.experiments.{name}")
    claim = dataclasses.replace(module.CLAIM, trainings=1, testbeds=module.CLAIM.testbeds[:1])
    monkeypatch.setattr(module, "CLAIM", claim)
    args = lab.parser("").parse_args(["--quick", "--data-dir", str(tmp_path), "--device", "cpu",
                                      "--out", str(tmp_path / "out")])
    lab.run(args, name)
    result = json.loads((tmp_path / "out" / f"{name}.json").read_text())
    assert list(result["testbeds"]) == [" ".join(claim.testbeds[0])]
    assert (tmp_path / "out" / f"{name}.png").stat().st_size > 10_000
    assert f"## {name}: " in page.section(name, claim, result)


# -- The page ----------------------------------------------------------------------------------


def test_the_page_shows_current_results_and_refuses_those_of_another_rule(tmp_path, monkeypatch):
    claim = make_claim(Better("good", "poor", "strict_f1", by=0.05), paper={
        ("good", "strict_f1"): "0.7"}, testbeds=(("digits", "muon"), ("coloured", "muon")))
    module = type(claims)("minicnet.experiments.something")
    module.CLAIM = claim
    monkeypatch.setattr(page, "ROOT", tmp_path)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(lab, "stamp", lambda *parts: "stamp")
    found = {"arms": FOUND, "samples": {}, "seconds": 60, "stamp": "stamp", "dataset": "drawn"}
    result = {"rule": claim.rule, "date": "2026-01-02", "torch": "2", "device": "cpu",
              "testbeds": {"digits muon": found, "coloured muon": {**found, "stamp": "old"}}}
    out = tmp_path / "out"
    out.mkdir()
    (out / "something.json").write_text(json.dumps(result))
    (out / "something.png").write_bytes(b"")
    (tmp_path / "minicnet" / "experiments").mkdir(parents=True)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{page.BEGIN}\nOUTDATED\n{page.END}\nafter\n")

    page.publish(out, ["something"])
    text = (tmp_path / "minicnet" / "experiments" / "README.md").read_text()
    assert "## something: reproduced" in text and "(paper: 0.7)" in text and "± " in text
    assert "| of the paper | 1 | 0 | 0 | 0 | 0 |" in text and "Elsewhere" not in text
    assert "Of 1 claims, 1 are measured on the present networks: 1 reproduced" in readme.read_text()
    assert readme.read_text().startswith(f"before\n{page.BEGIN}\n")
    assert readme.read_text().endswith(f"{page.END}\nafter\n") and "OUTDATED" not in readme.read_text()

    module.CLAIM = make_claim(Better("good", "poor", "strict_f1", by=0.06))
    page.publish(out, ["something"])
    text = (tmp_path / "minicnet" / "experiments" / "README.md").read_text()
    assert "## something: not measured yet" in text and "at least 0.06 higher" in text

"""The lab: statistics, rules and verdicts, keeping and finding again, networks, and the page."""

import dataclasses
import functools
import importlib
import json
import sys
import types

import numpy as np
import pytest
import torch
from saved import save_models

from minicnet.checkpoints import fingerprint, write_json
from minicnet.controlnet import ControlNet, controlled
from minicnet.experiments import all as every
from minicnet.experiments import (
    attention,
    batch_size,
    control_guidance,
    data_size,
    lab,
    networks,
    plots,
    stats,
    sudden_convergence,
    transfer,
)
from minicnet.experiments.claim import Arm, Better, Claim, Fit, Headroom, Same, Use
from minicnet.experiments.measures import MEASURES, jackknife
from minicnet.publish import claims as page
from minicnet.sampling import seeded_noise
from minicnet.words import tokenize

# -- Statistics --------------------------------------------------------------------------------


def coverage(T, training_spread, I=48, repeats=60):
    """How often does the interval hold the true difference, which is 0, in simulated experiments?

    training_spread: the standard deviation that another training adds; that of an image is 1.
    """
    generator, hits = np.random.default_rng(0), 0
    for _ in range(repeats):
        table = (training_spread * generator.normal(size=(T, 1))
                 + (generator.normal(size=(1, I)) + generator.normal(size=(T, I))) / 2**0.5)
        found = stats.interval(table, 0.0)
        hits += found.low <= 0 <= found.high
    return hits / repeats


@pytest.mark.parametrize("T", [3, 6, 9])
@pytest.mark.parametrize("training_spread", [0, 0.6])
def test_an_interval_over_trainings_and_images_holds_the_true_difference(T, training_spread):
    assert coverage(T, training_spread, repeats=150) >= 0.92


def test_an_interval_of_a_single_training_covers_other_images_and_no_other_training():
    assert coverage(1, 0) >= 0.88 > 0.7 > coverage(1, 0.5)


def test_intervals_are_computed_in_float64():
    found = stats.interval(np.full((3, 8), 1 + 1e-12).tolist(), np.ones((1, 8)).tolist())
    assert 0 < found.low and found.by == pytest.approx(1e-12, rel=1e-3)


def test_the_jackknife_removes_the_bias_of_a_small_sample():
    values = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = jackknife(lambda kept: values[kept].var(correction=0).item(), 40)
    assert np.mean(found) == pytest.approx(values.var().item(), rel=0.02)


@pytest.mark.parametrize("curve, jump", [
    (np.linspace(0.3, 0.8, 26), 0.08), (1.0 * (np.arange(26) > 12), 1)])
def test_the_onset_is_half_of_a_rise_and_the_jump_its_fastest_part(curve, jump):
    assert sudden_convergence.rise(curve, range(0, 416, 16)) == pytest.approx((200, jump))


@pytest.mark.parametrize("maps, ratio", [(torch.ones(2, 2, 1), 1), (torch.eye(2)[..., None], 1001)])
def test_attention_to_ink_is_divided_by_attention_to_paper(maps, ratio):
    assert attention.on_ink_over_paper(maps, torch.eye(2)).tolist() == [[pytest.approx(ratio)]] * 2


# -- Rules and verdicts ------------------------------------------------------------------------


def make_claim(*tests, headroom=None, **other):
    settings = dict(
        arms={name: Arm(name) for name in ("base", "good", "poor", "real")},
        short="It is so.", quote="It is so.", source="section 0", whose="the paper",
        testbeds=(("digits", "muon"),), why="Because.", dated="2026-01-01")
    return Claim(tests=tests, headroom=headroom or {}, **settings | other)


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
    ([better(), Better("poor", "good", "strict_f1", side=True)], "mixed", "", {}),
    ([WORSE, Better("good", "poor", "strict_f1", side=True)], "not reproduced", "", {}),
    ([WORSE, Same("good", "good", "strict_f1", within=0.01, side=True)], "not reproduced", "", {}),
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
def test_every_claim_names_arms_and_measures_that_exist_and_says_whose_it_is_and_why(name):
    claim = importlib.import_module(f"minicnet.experiments.{name}").CLAIM
    assert claim.whose in page.WHOSE and claim.quote and claim.why and claim.tests
    named = {arm for arm, _ in claim.paper}
    named.update(*((test.ours, test.theirs) for test in claim.tests),
                 *((room.floor, room.ceiling, room.bad) for room in claim.headroom.values()))
    assert {arm for side in named if isinstance(side, str)
            for arm in side.split(" - ")} <= set(claim.arms)
    assert set(claim.headroom) <= set(claim.measured) <= set(MEASURES)


def test_every_claim_has_a_place_in_the_list():
    files = (page.ROOT / "minicnet" / "experiments").glob("*.py")
    assert {path.stem for path in files
            if "CLAIM = Claim(" in path.read_text(encoding="utf-8")} == set(every.NAMES)


# -- The lab -----------------------------------------------------------------------------------


TINY = dict(channels=8, multipliers=(1, 1))
BASES = {
    "digits": (TINY, 28, "drawn", {"canny": 1, "colour": 1}),
    "cifar10": (dict(in_channels=3, **TINY), 32, "cifar10", {"canny": 1, "colour": 3}),
    "coloured": (dict(in_channels=3, **TINY), 28, "coloured-drawn", {"canny": 1, "colour": 3})}


@pytest.fixture(scope="module")
def weights(tmp_path_factory, randomised):
    """A folder of bases and their controls with random weights, where a lab looks for them."""
    return save_models(tmp_path_factory.mktemp("weights"), randomised, BASES)["digits"].parent


@pytest.fixture
def small(tmp_path, monkeypatch, weights):
    """small(base, optimizer) is a lab on tiny bases and a few random images."""
    kinds = {"drawn": (1, 28, "a three"), "cifar10": (3, 32, "a cat"),
             "coloured-drawn": (3, 28, "a red three on navy paper")}

    def loaded(dataset, split, data_dir):
        channels, side, caption = kinds[dataset]
        x = seeded_noise((96, channels, side, side), len(split)).clamp(-1, 1)
        return x, torch.arange(96) % 10, [caption] * 96

    monkeypatch.setattr(lab, "WEIGHTS", weights)
    monkeypatch.setattr(lab, "loaded", loaded)
    return functools.partial(lab.Lab, settings=lab.QUICK, out=tmp_path / "out", data_dir=tmp_path,
                             device=torch.device("cpu"))


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
    trainer, steps = here.trainer(Fit(), 0)
    for _ in range(steps):
        trainer.step()
        [optimizer] = trainer.optimizers
        assert optimizer.param_groups[0]["lr"] == pytest.approx(lab.ADAMW_RATE)
    assert fingerprint(here.network(Fit(), 0).state_dict()) == fingerprint(trainer.net.state_dict())


def test_images_are_measured_against_those_behind_their_conditions_and_a_disjoint_reference(small):
    here = small("digits", "muon")
    real, drawn = (lab.Drawn(here, Arm("", real=is_real), 0) for is_real in (True, False))
    assert torch.equal(real.images, here.test_images[:16])
    for measure, best in ((MEASURES["strict_f1"], 1), (MEASURES["colours_missed"], 0)):
        assert set(measure.compute(real)) == {best} and best not in measure.compute(drawn)
    assert torch.cdist(real.reference.flatten(1), real.images.flatten(1)).min() > 1


def test_what_was_trained_and_measured_is_found_again_and_not_made_twice(small, tmp_path):
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
    fewer = small("digits", "muon", settings={**lab.QUICK, "images": 5}).measure(claim)
    assert np.shape(fewer["arms"]["control"]["strict_f1"]) == (2, 5)
    assert len(times()) == len(before) + 7  # three new rows, and networks that were trained before


def test_a_stamp_depends_on_declarations_and_functions(small):
    stamp, fit = functools.partial(lab.stamp, "digits", lab.QUICK), Fit(networks.GAUSSIAN[1.0])
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
    lab.run(lab.parser("").parse_args(
        ["--quick", "--deciding", "--device", "cpu", "--out", str(out)]), name)
    result = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    assert list(result["testbeds"]) == [" ".join(claim.testbeds[0])]
    assert (out / f"{name}.png").stat().st_size > 10_000
    assert f"## {name}: " in page.section(name, claim, result)


# -- The page ----------------------------------------------------------------------------------


CLAIM = make_claim(better(0.05), paper={("good", "strict_f1"): "0.7"}, amendments=("on a day",),
                   testbeds=(("digits", "muon"), ("coloured", "muon")))


def result(**measured):
    """A result of CLAIM. measured: for each base, "now" or with what other code or weights."""
    now = {base: lab.stamp(base, lab.FULL | {"images": CLAIM.images}, lab.what(CLAIM))
           for base in measured}
    return {"rule": CLAIM.rule, "date": "2026-01-02", "torch": "2", "device": "cpu", "testbeds": {
        f"{base} muon": {"arms": tables(), "samples": {}, "seconds": 60, "dataset": "drawn",
                         "stamp": now[base] if when == "now" else when}
        for base, when in measured.items()}}


@pytest.mark.parametrize("digits, coloured, rule, shown", [
    ("now", "now", CLAIM.rule, ["digits muon", "coloured muon"]),
    ("now", "earlier", CLAIM.rule, ["digits muon"]),
    ("earlier", "now", CLAIM.rule, None),  # it is outdated where it decides
    ("now", "now", "another rule", None)])
def test_a_result_counts_if_it_was_measured_by_the_present_rule_code_and_weights(
        tmp_path, digits, coloured, rule, shown):
    path = tmp_path / "result.json"
    write_json(path, {**result(digits=digits, coloured=coloured), "rule": rule})
    assert ((found := page.read(CLAIM, path)) and list(found["testbeds"])) == shown


def test_the_pages_show_what_is_measured_and_keep_testbeds_that_were_measured_before(
        tmp_path, monkeypatch):
    for name, claim in (("one", CLAIM), ("other", make_claim(better(0.06)))):
        module = types.SimpleNamespace(CLAIM=claim)
        monkeypatch.setitem(sys.modules, f"minicnet.experiments.{name}", module)
    monkeypatch.setattr(page, "ROOT", tmp_path)
    write_json(tmp_path / "one.json", result(digits="now", coloured="earlier"))
    write_json(tmp_path / page.RESULTS / "one.json", result(digits="now", coloured="now"))
    (tmp_path / "one.png").write_bytes(b"")
    (tmp_path / "README.md").write_bytes(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n".encode())
    page.publish(tmp_path, ["one", "other"])
    text = (tmp_path / "minicnet" / "experiments" / "README.md").read_text(encoding="utf-8")
    for part in ("## one: reproduced", "(paper: 0.7)", "± ", "Amended: on a day",
                 "Elsewhere, on coloured muon: reproduced. ",
                 "compares *good* with *poor* in strict edge-F1: the difference is +0.100",
                 "### other: not measured yet", "at least 0.06 higher",
                 "| of the paper | 1 | 0 | 0 | 0 | 1 |"):
        assert part in text
    assert "Of 2 claims, 1 are measured on the present networks: 1 reproduced" in (
        (tmp_path / "README.md").read_text(encoding="utf-8"))
    assert (tmp_path / page.RESULTS / "one.png").exists()


@pytest.mark.parametrize("claim, sentence", [
    (data_size, "with the label as prompt. A whole training has 800 steps of 32 images."),
    (batch_size, "with the label as prompt. A whole training has 200 or 400 or 1600 steps of 8 "
                 "or 32 or 64 images."),
    (control_guidance, "with the label as prompt.")])
def test_the_page_says_what_is_given_and_how_long_networks_train(claim, sentence):
    assert page.setting(claim.CLAIM, "adamw") == f"Conditions: canny; images are drawn {sentence}"


def test_a_figure_shows_the_conditions_of_real_images_unless_arms_have_others():
    stored = {"real": lab.encoded(torch.randn(3, 1, 28, 28).clamp(-1, 1))}
    shown, nothing = (plots.given(one.CLAIM, stored) for one in (batch_size, transfer))
    edges = lab.CONDITIONS["canny"](plots.decoded(stored["real"]))
    assert nothing == {} and torch.equal(shown["given: canny"][:, :1] / 2 + 0.5, edges)


def test_our_readme_shows_the_results_that_are_current():
    loaded = {}
    for name in every.NAMES:
        claim = importlib.import_module(f"minicnet.experiments.{name}").CLAIM
        loaded[name] = claim, page.read(claim, page.ROOT / page.RESULTS / f"{name}.json")
    assert page.front(loaded) in (page.ROOT / "README.md").read_text(encoding="utf-8"), (
        "the code or the weights have changed: python -m minicnet.experiments.all --readme")


@pytest.mark.parametrize("by, text", [
    (0.25, "+0.250 (+0.125 to +0.375)"), (0.0002, "+0.00020 (+0.00010 to +0.00030)"),
    (-0.02, "-0.0200 (-0.0300 to -0.0100)")])
def test_a_small_difference_is_printed_with_more_decimals(by, text):
    assert str(stats.Interval(by, *sorted((0.5 * by, 1.5 * by)))) == text

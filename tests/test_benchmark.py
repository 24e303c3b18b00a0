"""What the benchmark counts, against counts by hand; what it times, against a clock that is set by hand."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minicnet import benchmark
from minicnet.benchmark import flops, interleaved_medians, matmul_peak, saved_bytes, step_memory, table
from minicnet.conditions import canny
from minicnet.controlnet import ControlNet, freeze
from minicnet.diffusion import NoiseSchedule
from minicnet.training import draw_batch, make_optimizer, training_step
from minicnet.unet import UNet

CPU = torch.device("cpu")
SCHEDULE = NoiseSchedule.cosine(1000)
IMAGES = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(1)) * 2 - 1


def batch(size):
    return draw_batch(0, 0, IMAGES, torch.arange(40) % 10, batch_size=size, null_label=10, drop_labels=0.1, T=1000)


def base_eps(net, x_0, label):
    return lambda x_t, t: net(x_t, t, label)


def control_eps(locked):
    return lambda net, x_0, label: lambda x_t, t: locked(x_t, t, label, control=net(x_t, t, label, canny(x_0)))


# Time


def test_actions_take_turns_and_the_median_leaves_the_first_round_out(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    durations = {"a": iter([100, 1, 2, 9]), "b": iter([200, 30, 10, 20])}

    def action(name):
        calls.append(name)
        clock[0] += next(durations[name])

    assert interleaved_medians({n: lambda n=n: action(n) for n in "ab"}, 3, CPU) == {"a": 2, "b": 20}
    assert calls == list("abababab")


def test_a_gpu_is_waited_for_before_and_after(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    benchmark.timed(lambda: calls.append("work"), torch.device("cuda"))
    assert calls == ["wait", "work", "wait"]


def test_the_peak_is_the_best_of_ten_at_the_first_size_that_takes_five_milliseconds(monkeypatch):
    seconds = iter([1e-3] * 10 + [9e-3] * 9 + [6e-3])
    monkeypatch.setattr(benchmark, "timed", lambda action, device: next(seconds))
    assert matmul_peak(CPU, torch.float32) == pytest.approx(2 * 256**3 / 6e-3)


# Memory


def test_each_storage_is_counted_once_and_parameters_are_not():
    linear, x = nn.Linear(3, 5), torch.randn(4, 3)
    assert saved_bytes(lambda: linear(x).sum(), [linear]) == 4 * 3 * 4
    assert saved_bytes(lambda: F.silu(linear(x)).sum(), [linear]) == 4 * (3 + 5) * 4
    assert saved_bytes(lambda: linear(linear(x)[:, :3]).sum(), []) == 4 * (3 + 5) * 4 + 3 * 5 * 4
    with torch.no_grad():
        assert saved_bytes(lambda: F.silu(linear(x)).sum(), [linear]) == 0


def test_gradients_optimizer_and_weights_are_those_of_a_real_step(randomised):
    locked = freeze(randomised(UNet(channels=8, multipliers=(1,))))
    net = ControlNet(locked)
    memory = step_memory(net, control_eps(locked), SCHEDULE, batch(2), [locked])
    optimizer = make_optimizer(net, 1e-3)
    training_step(0, net, copy.deepcopy(net), optimizer, control_eps(locked), SCHEDULE, batch(2))
    moments = [x for state in optimizer.state.values() for name, x in state.items() if name != "step"]
    assert memory["optimizer"] == sum(x.nbytes for x in moments)
    assert memory["gradients"] == sum(p.grad.nbytes for p in net.parameters())
    assert memory["weights"] == sum(x.nbytes for x in (*net.state_dict().values(), *locked.state_dict().values()))


@pytest.mark.parametrize("size", [4, 16])
def test_a_step_of_the_control_takes_no_more_memory_than_one_of_its_base(size):
    unet = UNet()
    base = step_memory(unet, base_eps, SCHEDULE, batch(size))
    locked = freeze(copy.deepcopy(unet))
    control = step_memory(ControlNet(locked), control_eps(locked), SCHEDULE, batch(size), [locked])
    assert control["saved for backward"] <= base["saved for backward"]
    assert sum(control.values()) <= sum(base.values())


# Arithmetic


def test_a_convolution_is_counted_forward_and_twice_more_backward():
    conv, x = nn.Conv2d(3, 5, 3, padding=1), torch.randn(2, 3, 8, 8, requires_grad=True)
    forward = 2 * (2 * 5 * 8 * 8) * (3 * 3 * 3)  # a product and a sum for each weight of each output
    assert flops(lambda: conv(x)) == forward
    assert flops(lambda: conv(x).sum().backward()) == 3 * forward
    conv.requires_grad_(False)
    assert flops(lambda: conv(x).sum().backward()) == 2 * forward


# All of it


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(benchmark, "UNet", lambda: UNet(channels=8, multipliers=(1,)))
    monkeypatch.setattr(benchmark, "generate", lambda *args, guidance: None)
    monkeypatch.setattr(benchmark, "matmul_peak", lambda device, dtype: 1e9 if dtype == torch.float32 else 2e9)


def test_the_program_writes_what_it_prints(small, tmp_path, capsys):
    benchmark.main(["--steps", "2", "--batch-size", "3", "--device", "cpu", "--out", str(tmp_path / "b.json")])
    result = json.loads((tmp_path / "b.json").read_text())
    assert table(result) in capsys.readouterr().out
    assert (result["device"], result["batch_size"], result["steps"]) == ("cpu", 3, 2)
    for kind in ("base", "control"):
        costs = result["training"][kind]
        assert costs["images_per_second"] == pytest.approx(3 / costs["seconds"])
        assert costs["bytes"] == sum(costs[part] for part in
                                     ("saved for backward", "gradients", "optimizer", "weights"))
        assert costs["share_of_peak"] == pytest.approx(
            costs["flops"] / costs["seconds"] / result["peak"][result["dtype"]])
    for seconds in result["seconds_per_image"].values():
        assert len(seconds) == 3 and all(0 < s < math.inf for s in seconds)


def test_the_table_holds_ratios_beside_those_of_the_paper():
    base = {"seconds": 0.2, "images_per_second": 80, "flops": 4e9, "share_of_peak": 0.25, "bytes": 40e6, "weights": 2e6}
    control = {"seconds": 0.19, "images_per_second": 84, "flops": 5e9, "share_of_peak": 0.3, "bytes": 32e6,
               "weights": 3e6}
    text = table({"device": "cpu", "dtype": "float32", "threads": 2, "torch": "2", "date": "today", "batch_size": 16,
                  "peak": {"float32": 7e10}, "training": {"base": base, "control": control},
                  "seconds_per_image": {"guidance 1": [0.1, 0.14, 0.19]}})
    rows = [" ".join(line.split()) for line in text.splitlines()]
    for row in ("time, ms 200 190 0.95 1.34", "memory, MB 40 32 0.80 1.23", "GFLOP 4 5 1.25", "weights, MB 2 3 1.50",
                "guidance 1 100.0 140.0 (1.40) 190.0 (1.90)"):
        assert row in rows


def test_a_device_that_is_not_there_ends_in_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="error: there is no device 'cuda' here"):
        benchmark.main(["--device", "cuda"])


@pytest.mark.parametrize("flags", [["--steps", "0"], ["--batch-size", "-1"]])
def test_flags_without_meaning_are_refused(flags):
    with pytest.raises(SystemExit) as refused:
        benchmark.main(flags)
    assert refused.value.code == 2


def test_ctrl_c_ends_without_a_traceback(monkeypatch):
    def pressed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "measure", pressed)
    with pytest.raises(SystemExit, match="stopped"):
        benchmark.main([])


def test_the_table_goes_into_the_readme(small, monkeypatch, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n{}\nold\n{}\nafter".format(*benchmark.MARKS))
    monkeypatch.setattr(benchmark, "README", readme)
    benchmark.main(["--steps", "1", "--device", "cpu", "--readme", "--out", str(tmp_path / "b.json")])
    text = readme.read_text()
    assert table(json.loads((tmp_path / "b.json").read_text())) in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("\nafter")

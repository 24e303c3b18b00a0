"""Where a program computes, and in which number format."""

import contextlib

import pytest
import torch

from minicnet.devices import autocast, has_fast_bf16, pick_device, place
from minicnet.errors import UserError

ZEN_4 = {"avx512_bf16": True}
ZEN_5 = {"avx512_bf16": True, "avx512_vp2intersect": True}


@pytest.mark.parametrize("capabilities, fast", [
    ({}, False), ({"avx2": True, "amx_bf16": False}, False), (ZEN_4, False), (ZEN_5, True),
    ({"avx512_vp2intersect": True}, False), ({"amx_bf16": True}, True)])
def test_a_cpu_trains_in_bf16_only_where_that_is_faster_and_else_in_channels_last(
        monkeypatch, capabilities, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    cpu, net = torch.device("cpu"), torch.nn.Conv2d(2, 2, 3)
    assert has_fast_bf16(cpu) is fast and not has_fast_bf16(torch.device("mps"))
    with autocast(cpu):
        assert net(torch.zeros(1, 2, 3, 3)).dtype == (torch.bfloat16 if fast else torch.float32)
    assert place(net, cpu) is net and net.weight.is_contiguous() == fast
    assert net.weight.is_contiguous(memory_format=torch.channels_last) != fast


@pytest.mark.parametrize("present, rank, name, device", [
    ("cuda mps", "", "auto", "cuda:0"), ("mps", "", "auto", "mps"), ("", "", "auto", "cpu"),
    ("cuda mps", "", "cpu", "cpu"), ("cuda", "", "mps", None), ("mps", "", "cuda", None),
    ("cuda mps", "", "tpu", None), ("", "", "", None),
    ("cuda mps", "0", "auto", "cuda:0"), ("cuda mps", "1", "auto", "cuda:1"),
    ("cuda mps", "2", "auto", None), ("cuda mps", "1", "mps", None), ("mps", "1", "cuda", None),
    ("mps", "0", "auto", "cpu"), ("mps", "1", "auto", "cpu"), ("", "1", "auto", "cpu")])
def test_auto_is_the_fastest_device_there_is_and_torchrun_s_processes_share_no_gpu(
        monkeypatch, present, rank, name, device):
    """rank: of torchrun. gloo, by which its processes share, has no tensors on a Mac's GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in present)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in present)
    monkeypatch.setattr("os.environ", {"LOCAL_RANK": rank} if rank else {})
    refusal = pytest.raises(UserError, match=f"no device '{name}'|at most the number of GPUs, 2")
    with contextlib.nullcontext() if device else refusal:
        assert str(pick_device(name)) == device

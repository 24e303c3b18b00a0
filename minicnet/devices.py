"""Where to compute: the device, the number format and memory layout, and torchrun's processes."""

import os
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from minicnet.errors import UserError


def pick_device(name):
    """Return the torch.device "cpu", "cuda" or "mps", or for "auto" the fastest one there is.

    Each of the processes that torchrun started gets a GPU of its own. Raises UserError if there is
    no such device.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        # torchrun's processes cannot share gradients on a Mac's GPU.
        "mps": torch.backends.mps.is_available() and "LOCAL_RANK" not in os.environ,
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, present in available.items() if present)
    if not available.get(name):
        raise UserError(f"torch finds no device {name!r} here: try --device auto or --device cpu")
    if name != "cuda":
        return torch.device(name)
    number = int(os.environ.get("LOCAL_RANK", 0))
    if number >= torch.cuda.device_count():
        raise UserError("torchrun's --nproc_per_node must be at most the number of GPUs, "
                        f"{torch.cuda.device_count()}")
    return torch.device("cuda", number)


def has_fast_bf16(device):
    """Return whether training is faster in bf16 than in float32 on this device.

    CPUs with AMX are faster in bf16, and so are CPUs with full-width AVX512 units, such as AMD's
    Zen 5. Zen 4 has the same bf16 instructions, but is faster in float32. We tell the two apart by
    vp2intersect, which only Zen 5 of the two has.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch since 2.11
    zen_5 = features.get("avx512_bf16") and features.get("avx512_vp2intersect")
    return device.type == "cpu" and bool(features.get("amx_bf16") or zen_5)


def autocast(device):
    """Return a context that computes in bf16 where that is faster than float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device))


def place(net, device):
    """Move a network to a device, in the memory layout in which its convolutions run fastest.

    This layout is channels_last, except for bf16 on a CPU. Returns the network.
    """
    contiguous = device.type == "cpu" and has_fast_bf16(device)
    layout = torch.contiguous_format if contiguous else torch.channels_last
    return net.to(device, memory_format=layout)


def rank_and_world_size():
    """Return (rank, world_size) of this process; (0, 1) without torchrun."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def same_everywhere(value):
    """Return whether all of torchrun's processes have the same value."""
    _, world_size = rank_and_world_size()
    values = [value] * world_size
    if world_size > 1:
        distributed.all_gather_object(values, value)
    return all(other == value for other in values)


@contextmanager
def join_processes(device):
    """Let the processes that torchrun started train as one. Yields True on rank 0.

    The body runs on rank 0 first, and on the others after that: so rank 0 downloads, and the others
    find the files. Without torchrun, the body simply runs.
    """
    if "LOCAL_RANK" not in os.environ:
        yield True
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo",
                                   timeout=timedelta(hours=1))  # rank 0 may have to download
    rank, _ = rank_and_world_size()
    if rank > 0:
        distributed.barrier()
    yield rank == 0
    if rank == 0:
        distributed.barrier()


def leave_processes():
    """End what `join_processes` began, at the very end of a run."""
    if distributed.is_initialized():
        distributed.destroy_process_group()

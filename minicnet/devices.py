"""Where to compute: the device, bf16 where it helps, and the processes that torchrun starts."""

import os
from contextlib import contextmanager

import torch
from torch import distributed


class TrainingError(RuntimeError):
    """Training cannot start or go on. The message is one sentence for the user."""


def pick_device(name):
    """The torch.device called "cpu", "cuda" or "mps", or with "auto" the fastest there is. Raises TrainingError.

    Each of the processes that torchrun started gets a GPU of its own.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, present in available.items() if present)
    if not available.get(name):
        raise TrainingError(f"there is no device {name!r} here that torch can use: try --device auto or --device cpu")
    number = int(os.environ.get("LOCAL_RANK", 0))
    if name == "cuda" and number >= torch.cuda.device_count():
        raise TrainingError(f"torchrun's --nproc_per_node must be at most the number of GPUs, "
                            f"{torch.cuda.device_count()}")
    return torch.device(name, number) if name == "cuda" else torch.device(name)


def autocast(device):
    """bf16 autocast where the hardware has instructions for it; without them a CPU is slower at it than at float32."""
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not there in every torch since 2.11
        fast = bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    else:
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def rank_of():
    """The number of this process among those that torchrun started, from 0, and how many these are."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


@contextmanager
def join_processes(device):
    """Makes the processes that torchrun started, if it did, train as one. Yields: is this the first, or the only one?

    Within, the first runs alone, then the others: it downloads, they find the files.
    """
    if "LOCAL_RANK" not in os.environ:
        yield True
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    first = rank_of()[0] == 0
    if not first:
        distributed.barrier()
    yield first
    if first:
        distributed.barrier()

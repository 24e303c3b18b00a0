"""A batch shared out: among the processes that torchrun started, if it did, and in each of them between two cores.

The loss is a mean over the batch, so the losses and gradients of the shares only have to be added up. That is all that
torch's DistributedDataParallel does, too; written out, any network trains, whatever parts of it are called.

    torchrun --nproc_per_node=2 train_mnist_edges.py
"""

import functools
import os
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

import torch
from torch import distributed


class TrainingError(RuntimeError):
    """Training cannot start or go on. The message is one sentence for the user."""


@contextmanager
def process_group(device):
    """Within, the processes that torchrun started train as one, each on its own device. Alone, nothing happens."""
    if "LOCAL_RANK" in os.environ:  # torchrun sets it
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield
    if "LOCAL_RANK" in os.environ:  # not after an error: the others, who wait for this process, must see it end
        distributed.destroy_process_group()


def rank_of():
    """(rank, ranks): which of the processes of a `process_group` this is, 0 the first, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def sum_over_ranks(vector):
    """The sum, in place, of the vectors of all processes. Raises TrainingError if one of them has ended."""
    if rank_of()[1] > 1:
        try:
            distributed.all_reduce(vector)
        except RuntimeError as error:
            raise TrainingError("another process of this run has ended, and so does this one") from error
    return vector


@contextmanager
def first_goes_first(device):
    """Within, the first process runs alone, then the others: it downloads, they find the files. Yields: is this it?"""
    rank, _ = rank_of()
    if rank:
        sum_over_ranks(torch.zeros(1, device=device))  # waits for the first
    yield rank == 0
    if rank == 0:
        sum_over_ranks(torch.zeros(1, device=device))


@functools.cache
def _two_threads():
    """They live as long as the program: starting them at each step would cost a twentieth of it."""
    return ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,))


def _map_in_two_threads(function, *inputs):
    """Like map, but ends only when nothing is running any more, even after an error or Ctrl-C."""
    futures = [_two_threads().submit(function, *one) for one in zip(*inputs)]
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()  # what has not begun
        wait(futures)


@contextmanager
def cores(device, most):
    """Yields (n, map): in how many shares a process takes its batch, at most `most`, and a `map` for all at once.

    On two cores each takes a half. Two threads that share every operation instead gain as much, but lose it all as
    soon as another program runs, because they wait for one another at each of a step's many small operations.
    """
    if device.type != "cpu" or torch.get_num_threads() != 2 or most < 2:
        yield 1, map
        return
    torch.set_num_threads(1)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # s: how long a thread may keep the other from going on in Python; 5e-3 costs a tenth
    try:
        yield 2, _map_in_two_threads
    finally:
        sys.setswitchinterval(before)
        torch.set_num_threads(2)

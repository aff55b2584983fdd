"""poptorch.AsynchronousDataAccessor: a process that prefetches into a ring of buffers in shared memory.

Returned tensors are views of the ring, as in the SDK, which does not copy them: the process overwrites them later. Clone what
has to last.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import itertools
import os
import pickle
import queue
import signal
import tempfile
import traceback
import weakref
from typing import Any, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import multiprocessing

from ipu_trainer.simulator.arguments.nested_values import custom_arg_parsers, parser_for, tensors_of, with_tensors
from ipu_trainer.simulator.enums import SharingStrategy
from ipu_trainer.simulator.errors import createPoptorchError

_CONTEXTS = {
    SharingStrategy.SharedMemory: "spawn",
    SharingStrategy.FileSystem: "spawn",
    SharingStrategy.Fork: "fork",
    SharingStrategy.ForkServer: "forkserver",
}
_ITEM, _END, _LAYOUT, _FAILED = "item", "end", "layout", "failed"
# Interval at which a wait for data checks whether the loading process is alive.
_POLL_INTERVAL_S = 0.5
_accessors: weakref.WeakSet[Any] = weakref.WeakSet()


class AsynchronousDataAccessor:
    """Iterates over a data set or DataLoader that another process reads."""

    def __init__(
        self,
        dataset: Any,
        buffer_size: int = 3,
        miss_sleep_time_in_ms: float = 0.1,
        load_indefinitely: bool = True,
        early_preload: bool = False,
        sharing_strategy: SharingStrategy = SharingStrategy.ForkServer,
        rebatched_size: Optional[int] = None,
    ) -> None:
        """buffer_size: items that the process may prefetch. load_indefinitely: load the next epoch before it is requested.
        early_preload: load before the first iter(). rebatched_size: split and join items to this size.
        miss_sleep_time_in_ms: the SDK's polling interval; no effect, since a wait ends as soon as there is data.

        Raises Error if the DataLoader is asynchronous already, if the data set is empty or its process fails to
        start, AssertionError for settings that exclude each other.
        """
        self._process: Any = None
        if getattr(dataset, "_accessor", None) is not None:
            raise createPoptorchError(
                "The DataLoader already uses an AsynchronousDataAccessor internally. Either use the existing one or "
                "set mode='poptorch.DataLoaderMode.Sync' in the DataLoader."
            )
        combined = getattr(dataset, "combinedBatchSize", None)
        ragged = combined not in (None, 1) and not getattr(dataset, "rebatched_drop_last", True)
        if ragged and not getattr(dataset, "_is_user_batch_sampler_set", False):
            assert rebatched_size is not None, (
                "The 'drop_last=False' option from the DataLoader only works if 'rebatched_size' is specified too."
            )
        assert rebatched_size is None or rebatched_size > 1, "rebatched_size must be None or greater than 1"
        self._dataset = dataset
        self.rebatched_size = rebatched_size
        loader = _Loader(
            dataset,
            buffer_size,
            load_indefinitely,
            early_preload,
            rebatched_size,
            bool(getattr(dataset, "rebatched_drop_last", True)),
        )
        self._start(loader, sharing_strategy, buffer_size)
        self._epoch = 0
        self._held: Optional[int] = None
        self._ended = True
        _accessors.add(self)

    def _start(self, loader: _Loader, sharing: SharingStrategy, buffer_size: int) -> None:
        context: Any = multiprocessing.get_context(_CONTEXTS[sharing])
        if sharing == SharingStrategy.ForkServer:
            context.set_forkserver_preload([__name__])  # imports torch once for all processes
        self._free = context.Queue()  # indices of buffers that the process may fill
        self._filled = context.Queue()
        self._commands = context.Queue()
        with contextlib.ExitStack() as stack:
            given: Any = loader
            if sharing == SharingStrategy.FileSystem:
                given = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "loader.pkl")
                with open(given, "wb") as file:
                    pickle.dump(loader, file, protocol=4)
            arguments = (given, dict(custom_arg_parsers), self._free, self._filled, self._commands)
            starts_processes = getattr(loader.dataset, "num_workers", 0) > 0  # which a daemon may not
            self._process = context.Process(target=_load, args=arguments, daemon=not starts_processes)
            self._process.start()
            kind, message = self._next_message()
        if kind == _FAILED:
            self.terminate()
            raise createPoptorchError(
                f"AsynchronousDataAccessor worker thread failed to start (Check above for details): {message}"
            )
        self._structure, self._buffers = message
        for number in range(buffer_size):
            self._free.put(number)

    def _next_message(self) -> Tuple[str, Any]:
        while True:
            try:
                return self._filled.get(timeout=_POLL_INTERVAL_S)  # type: ignore[no-any-return]
            except queue.Empty:
                if not self._process.is_alive():
                    with contextlib.suppress(queue.Empty):  # its last message
                        return self._filled.get(timeout=0.1)  # type: ignore[no-any-return]
                    return _FAILED, f"it ended with exit code {self._process.exitcode}"

    def terminate(self) -> None:
        """End the process. Safe to call again."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.is_alive():
            self._commands.put(None)
            process.join(timeout=5)
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)
            process.join(timeout=5)
        if process.is_alive():
            process.terminate()
            process.join()
        for channel in (self._free, self._filled, self._commands):
            with contextlib.suppress(OSError):  # closed already, at the end of the program
                channel.cancel_join_thread()
                channel.close()

    def __del__(self) -> None:
        if self.__dict__.get("_process") is not None:
            self.terminate()

    def __len__(self) -> int:
        length = len(self._dataset)
        if self.rebatched_size and getattr(self._dataset, "_accessor", None) is not self:
            return int(length * self._dataset.batch_size // self.rebatched_size)
        return length

    def __iter__(self) -> AsynchronousDataAccessor:
        assert self._process is not None, "the AsynchronousDataAccessor was terminated"
        self._release()
        self._epoch += 1
        self._ended = False
        self._commands.put(self._epoch)
        return self

    def __next__(self) -> Any:
        assert self._process is not None, "the AsynchronousDataAccessor was terminated"
        self._release()
        while not self._ended:
            kind, message = self._next_message()
            if kind == _FAILED:
                raise AssertionError(f"An error occurred in the data fetcher: {message}")
            epoch, number, size = message
            if kind == _ITEM and epoch == self._epoch:
                self._held = number
                return self._item(number, size)
            if kind == _ITEM:  # of an abandoned epoch
                self._free.put(number)
            elif epoch == self._epoch:
                self._ended = True
        raise StopIteration

    def _item(self, number: int, size: Optional[int]) -> Any:
        tensors = [buffer[number] if size is None else buffer[number][:size] for buffer in self._buffers]
        return with_tensors(self._structure, tensors)

    def _release(self) -> None:
        if self._held is not None:
            self._free.put(self._held)
            self._held = None


@dataclasses.dataclass
class _Loader:
    """Runs in the process: reads the data set and writes items into free buffers."""

    dataset: Any
    buffer_size: int
    load_indefinitely: bool
    early_preload: bool
    rebatched_size: Optional[int]
    drop_last: bool

    def __call__(self, free: Any, filled: Any, commands: Any) -> None:
        """Serve epochs until the command None. The first message is the layout of an item."""
        iterator = self._items()
        first = next(iterator, None)
        if first is None:
            raise createPoptorchError("The Dataset is empty")
        structure, tensors, _ = first
        buffers = [
            torch.empty((self.buffer_size, *tensor.shape), dtype=tensor.dtype).share_memory_() for tensor in tensors
        ]
        filled.put((_LAYOUT, (structure, buffers)))
        epoch = 1
        if not self.early_preload and commands.get() is None:
            return
        items: Iterator[Any] = itertools.chain([first], iterator)
        while True:
            wanted = self._serve(epoch, items, buffers, free, filled, commands)
            if wanted is None:
                return
            epoch = wanted
            items = self._items()

    def _serve(
        self, epoch: int, items: Iterator[Any], buffers: Sequence[torch.Tensor], free: Any, filled: Any, commands: Any
    ) -> Any:
        """Load one epoch. Returns the next epoch to load, or None to end."""
        asked: Any = 0
        for _, tensors, size in items:
            number, asked = _free_buffer(free, commands, asked)
            if number is None:
                return asked
            if asked > epoch:  # abandoned
                free.put(number)
                return asked
            for buffer, tensor in zip(buffers, tensors):
                buffer[number][: len(tensor)].copy_(tensor) if tensor.dim() else buffer[number].copy_(tensor)
            filled.put((_ITEM, (epoch, number, size)))
        filled.put((_END, (epoch, None, None)))
        if self.load_indefinitely:
            return epoch + 1
        while asked is not None and asked <= epoch:
            asked = commands.get()
        return asked

    def _items(self) -> Iterator[Any]:
        """(structure, tensors, size) of every item; size is None where it is full."""
        if self.rebatched_size is None:
            for item in self._source():
                yield (_bare(item), _flat(item), None)
            return
        yield from self._rebatched(self.rebatched_size)

    def _rebatched(self, size: int) -> Iterator[Any]:
        waiting: List[torch.Tensor] = []
        structure: Any = None
        for item in self._source():
            structure, tensors = _bare(item), _flat(item)
            waiting = [torch.cat(pair) for pair in zip(waiting, tensors)] if waiting else tensors
            while len(waiting[0]) >= size:
                yield (structure, [tensor[:size] for tensor in waiting], None)
                waiting = [tensor[size:] for tensor in waiting]
            if not len(waiting[0]):
                waiting = []
        if waiting and not self.drop_last:
            rest = len(waiting[0])
            padded = [torch.cat([t, t.new_zeros((size - rest, *t.shape[1:]))]) for t in waiting]
            yield (structure, padded, rest)

    def _source(self) -> Iterator[Any]:
        batches = getattr(self.dataset, "batches", None)
        return iter(self.dataset) if batches is None else iter(batches())


def _free_buffer(free: Any, commands: Any, epoch: int) -> Tuple[Optional[int], Optional[int]]:
    """Wait for a buffer: (its index, the newest requested epoch); (None, None) when the process must stop."""
    while True:
        with contextlib.suppress(queue.Empty):
            while True:
                epoch = commands.get_nowait()
                if epoch is None:
                    return None, None
        with contextlib.suppress(queue.Empty):
            return free.get(timeout=0.05), epoch


def _flat(item: Any) -> List[torch.Tensor]:
    if isinstance(item, (torch.Tensor, dict)) or parser_for(item) is not None:
        tensors = tensors_of(item)
        values: Sequence[Any] = list(item.values()) if isinstance(item, dict) else tensors
    else:
        values = list(item)
    for index, value in enumerate(values):
        assert isinstance(value, torch.Tensor), (
            f"Tensor at index {index} is not a torch tensor ({type(value)}). AsynchronousDataAccessor expects data to "
            "be organised as a flat 1D container of tensors."
        )
    return list(values)


def _bare(item: Any) -> Any:
    """The item's structure around empty tensors, which is sent once."""
    return with_tensors(item, [torch.empty(0) for _ in tensors_of(item)])


def _load(loader: Any, parsers: Any, free: Any, filled: Any, commands: Any) -> None:
    """The process's main function."""
    custom_arg_parsers.update(parsers)
    try:
        if isinstance(loader, str):
            with open(loader, "rb") as file:
                loader = pickle.load(file)  # written by the parent process
        loader(free, filled, commands)
    except KeyboardInterrupt:
        pass
    except BaseException as error:  # of the data set: printed here, and sent to the parent
        traceback.print_exc()
        filled.put((_FAILED, f"{type(error).__name__}: {error}"))
        filled.close()
        filled.join_thread()
        raise SystemExit(1) from error


def poptorchAtExit() -> None:
    """End all loading processes. Called when Python exits."""
    for accessor in list(_accessors):
        accessor.terminate()


atexit.register(poptorchAtExit)

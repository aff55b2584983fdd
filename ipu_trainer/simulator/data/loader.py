"""poptorch.DataLoader: loads combined batches, the unit that an executor is called with.

combined batch = batch size x device iterations x groups of replicas x gradient accumulation, so that one item of the
loader is one host step.
"""

from __future__ import annotations

import math
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Union

import torch

from ipu_trainer.simulator.arguments.call_arguments import micro_batches_per_host_step
from ipu_trainer.simulator.arguments.nested_values import tensors_of, with_tensors
from ipu_trainer.simulator.data.async_loader import AsynchronousDataAccessor
from ipu_trainer.simulator.enums import DataLoaderMode
from ipu_trainer.simulator.errors import createPoptorchError
from ipu_trainer.simulator.logs import logger
from ipu_trainer.simulator.options.options import Options


class DataLoader(torch.utils.data.DataLoader):  # type: ignore[type-arg]
    """torch's DataLoader, in combined batches."""

    def __init__(
        self,
        options: Options,
        dataset: torch.utils.data.Dataset,  # type: ignore[type-arg]
        batch_size: Optional[int] = 1,
        shuffle: Optional[bool] = None,
        num_workers: int = 0,
        drop_last: Optional[bool] = True,
        persistent_workers: Optional[bool] = None,
        auto_distributed_partitioning: bool = True,
        mode: DataLoaderMode = DataLoaderMode.Sync,
        async_options: Optional[Dict[str, Any]] = None,
        rebatched_worker_size: Optional[int] = None,
        batch_sampler: Optional[Union[torch.utils.data.Sampler[Sequence[int]], Iterable[Sequence[int]]]] = None,
        **kwargs: Any,
    ) -> None:
        """Everything that is not named here goes to torch's DataLoader.

        mode: load here (Sync), in a process of its own (Async), or there in smaller pieces of `rebatched_worker_size`
        (AsyncRebatched). batch_size=None switches combining off. Raises Error and AssertionError for combinations
        that exclude each other.
        """
        assert isinstance(options, Options)
        self._accessor: Optional[AsynchronousDataAccessor] = None
        self._is_user_batch_sampler_set = batch_sampler is not None
        self._options = options
        partition = auto_distributed_partitioning and options.Distributed.numProcesses > 1
        if batch_sampler is not None:
            if batch_size != 1 or shuffle:
                raise createPoptorchError("`batch_sampler` option is mutually exclusive with batch_size, shuffle.")
            if partition:
                raise createPoptorchError(
                    "`batch_sampler` option is mutually exclusive with auto_distributed_partitioning=True."
                )
            batch_size = getattr(batch_sampler, "batch_size", batch_size)
        options._freeze()
        self._num_batches_to_combine = None if batch_size is None else micro_batches_per_host_step(options)
        self._combined_batch_size = None if batch_size is None else batch_size * (self._num_batches_to_combine or 1)
        self._drops_last = bool(drop_last)
        self._shuffles_over_processes = False
        self._check_dataset(dataset, batch_sampler, num_workers, kwargs)
        if partition:
            dataset = self._own_share(dataset, bool(shuffle))
            shuffle = False if self._shuffles_over_processes else shuffle

        worker_batch_size: Optional[int] = 1 if batch_sampler is not None else self._combined_batch_size
        combined = self._combined_batch_size
        ragged = mode == DataLoaderMode.Async and not drop_last and combined is not None and combined > 1
        rebatches = mode == DataLoaderMode.AsyncRebatched or ragged
        if rebatches and rebatched_worker_size is not None and combined is not None:
            assert rebatched_worker_size <= combined, (
                f"The rebatched_worker_size ({rebatched_worker_size}) must be <= to the combined batch size "
                f"({combined})"
            )
            worker_batch_size = rebatched_worker_size
        self.rebatched_drop_last = self._drops_last
        super().__init__(
            dataset,
            batch_size=worker_batch_size,
            shuffle=shuffle,
            batch_sampler=batch_sampler,  # type: ignore[arg-type]  # of any sequences
            num_workers=num_workers,
            # Batches of a rebatching worker may be short; a batch sampler drops by itself; None is no batching at all.
            drop_last=False if rebatches or batch_sampler is not None or batch_size is None else self._drops_last,
            persistent_workers=num_workers > 0 if persistent_workers is None else persistent_workers,
            **kwargs,
        )
        if mode != DataLoaderMode.Sync:
            settings = dict(async_options or {})
            assert "rebatched_size" not in settings, (
                "You cannot use DataLoaderMode.AsyncRebatched and manually specify the rebatched_size in async_options"
            )
            self._accessor = AsynchronousDataAccessor(self, **settings, rebatched_size=combined if rebatches else None)

    def _check_dataset(self, dataset: Any, batch_sampler: Any, num_workers: int, kwargs: Dict[str, Any]) -> None:
        processes = self._options.Distributed.numProcesses
        if isinstance(dataset, torch.utils.data.IterableDataset):
            if num_workers > 1 and "worker_init_fn" not in kwargs:
                logger.warning(
                    "IterableDataset used with num_workers=%d but no worker_init_fn specified: as a result the "
                    "DataLoader will return %d times each element in the dataset (See torch.utils.data.IterableDataset "
                    "for more information)",
                    num_workers,
                    num_workers,
                )
            return
        if self._drops_last:
            return
        if batch_sampler is not None:
            self._warn_of_ragged_sampler(batch_sampler)
            return
        step = self._combined_batch_size
        if step is not None and len(dataset) % (step * processes):
            logger.warning(
                "The number of elements in the dataset (%d) is not divisible by the number of elements processed per "
                "step (%d) and drop_last=False. The last tensor will have a batch size of %d. To avoid having to "
                "handle this special case switch to drop_last=True",
                len(dataset),
                step,
                len(dataset) % step,
            )

    def _warn_of_ragged_sampler(self, batch_sampler: Any) -> None:
        combine = self._num_batches_to_combine or 1
        try:
            number = len(batch_sampler)
        except (TypeError, NotImplementedError):
            logger.warning(
                "The `batch_sampler` __len__ method is not implemented and drop_last=False. The last tensor may be "
                "incomplete - batch size < %d. To avoid having to handle this special case switch to drop_last=True.",
                self._combined_batch_size,
            )
            return
        if number % combine:
            logger.warning(
                "The number of batches generated by the batch sampler (%d) is not divisible by the number of batches "
                "elements processed per step (%d) and drop_last=False. The last tensor will have a smaller batch size. "
                "To avoid having to handle this special case switch to drop_last=True.",
                number,
                combine,
            )

    def _own_share(self, dataset: Any, shuffle: bool) -> Any:
        assert not isinstance(dataset, torch.utils.data.IterableDataset), (
            "auto_distributed_partitioning not supported for IterableDataset"
        )
        assert not shuffle or self._options.exists("random_seed"), (
            "When using auto_distributed_partitioning you must set poptorch.Options.randomSeed() to ensure that tensors "
            "are in the same order in all processes."
        )
        assert self._combined_batch_size is not None, (
            "batch_size=None not allowed when using auto_distributed_partitioning."
        )
        self._shuffles_over_processes = shuffle
        return _SubDataset(dataset, self._options, self._combined_batch_size, self._drops_last)

    def __len__(self) -> int:
        """Number of combined batches."""
        if self._accessor is not None and self._accessor.rebatched_size:
            return _divide(len(self.dataset), self._accessor.rebatched_size, self._drops_last)  # type: ignore[arg-type]
        if self._is_user_batch_sampler_set and self._num_batches_to_combine:
            return _divide(super().__len__(), self._num_batches_to_combine, self._drops_last)
        return super().__len__()

    @property
    def combinedBatchSize(self) -> Optional[int]:
        """Samples per host step; None without batching."""
        return self._combined_batch_size

    @property
    def options(self) -> Options:
        """The options that the combined batch follows from."""
        return self._options

    def terminate(self) -> None:
        """End the loading process, if there is one."""
        if self._accessor is not None:
            self._accessor.terminate()

    def __del__(self) -> None:
        if self.__dict__.get("_accessor") is not None:
            self.terminate()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # generators serve as well
        if self._accessor is not None:
            return iter(self._accessor)
        return self.batches()

    def batches(self) -> Iterator[Any]:
        """The combined batches, loaded here."""
        if self._shuffles_over_processes:
            self.dataset.shuffle_global_indices()  # type: ignore[attr-defined]  # a _SubDataset
            self.dataset.swap_range()  # type: ignore[attr-defined]
        batches = super().__iter__()
        if self._is_user_batch_sampler_set and self._num_batches_to_combine not in (None, 1):
            return _combined(batches, self._num_batches_to_combine or 1, self._drops_last)
        return batches


def _divide(number: int, by: int, drop_last: bool) -> int:
    return number // by if drop_last else math.ceil(number / by)


def _combined(batches: Iterator[Any], how_many: int, drop_last: bool) -> Iterator[Any]:
    """Every `how_many` batches as one."""
    waiting: List[Any] = []
    for batch in batches:
        waiting.append(batch)
        if len(waiting) == how_many:
            yield _concatenated(waiting)
            waiting = []
    if waiting and not drop_last:
        yield _concatenated(waiting)


def _concatenated(batches: Sequence[Any]) -> Any:
    columns = zip(*(tensors_of(batch) for batch in batches))
    return with_tensors(batches[-1], [torch.cat(column) for column in columns])


class _SubDataset(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """One process's share of a data set: whole steps of it, or with drop_last=False an equal share of everything.

    All processes shuffle the whole data set alike. What is left over when whole steps are shared out takes turns: on
    every second epoch each share begins that much later.
    """

    def __init__(self, dataset: Any, options: Options, step: int, drop_last: bool) -> None:
        processes, process = options.Distributed.numProcesses, options.Distributed.processId
        if drop_last:
            self._length = step * (len(dataset) // (step * processes))
            self._base_offset = process * self._length
            self._leftovers = len(dataset) % self._length if self._length else 0
        else:
            shares = [len(dataset) // processes + (len(dataset) % processes > p) for p in range(processes)]
            self._length, self._base_offset, self._leftovers = shares[process], sum(shares[:process]), 0
        # Shared, as the order is: loading processes live on and must see the next epoch's.
        self._offset = torch.tensor(self._base_offset).share_memory_()
        self._dataset = dataset
        self._seed = options.random_seed if options.exists("random_seed") else None
        self._generator_state: Optional[torch.Tensor] = None
        self._order: Optional[torch.Tensor] = None

    def shuffle_global_indices(self) -> None:
        """A new order of the whole data set, the same in all processes."""
        generator = torch.Generator()
        if self._generator_state is not None:
            generator.set_state(self._generator_state)
        elif self._seed is not None:
            generator.manual_seed(self._seed)
        else:
            raise AssertionError(
                "Seed must be set when shuffling so that all instances end up with the same shuffled global indices."
            )
        order = torch.randperm(len(self._dataset), generator=generator)
        if self._order is None:
            self._order = order.share_memory_()
        else:
            self._order.copy_(order)
        self._generator_state = generator.get_state()

    def swap_range(self) -> None:
        """Move between the first and the last whole steps."""
        moved = int(self._offset) != self._base_offset
        self._offset.fill_(self._base_offset if moved else self._base_offset + self._leftovers)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        position = index + int(self._offset)
        return self._dataset[position if self._order is None else int(self._order[position])]

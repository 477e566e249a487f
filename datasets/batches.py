"""Batches from a store: one gather a batch, from device memory where the arrays fit, else read one batch ahead.

The order of an epoch and the augmentation of a step are functions of (seed, epoch, step). So there are no workers and
no hidden state, and a run can go on from any step exactly.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from datasets.augment import Draw
from datasets.store import Store

Augment = Callable[[torch.Tensor, torch.Tensor, Draw], tuple[torch.Tensor, torch.Tensor]]
Batch = tuple[torch.Tensor, torch.Tensor]
CHUNK = 1024  # rows that are copied to a GPU at once


class Batches:
    """Some rows of a store as batches on a device.

    Args:
        rows: (n,) rows of the store to train on or to evaluate.
        rare: (n,) bool, True for rows of which an epoch draws only a share (such as tumour-free slices).
        share: at most this share of an epoch's samples are rare ones.
        augment: what `epoch` calls, as augment(images, targets, draw) on the device: makes of what is stored what the
            model takes.
        resident: keep the whole store in the memory of a GPU, if it fits: for what is read many times.
        prepare: does so where nothing is augmented: when iterated over, and in an `epoch` without `augment`; the
            default makes them float.
        part: (rank, size): of each batch, the part of process `rank` of `size`.

    Raises:
        ValueError: every row is a rare one, or a batch is too small to be dealt to all processes.
    """

    def __init__(
        self,
        store: Store,
        rows: np.ndarray,
        batch_size: int,
        device: torch.device,
        seed: int = 0,
        rare: np.ndarray | None = None,
        share: float = 1.0,
        augment: Augment | None = None,
        resident: bool = False,
        prepare: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.float,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.store, self.rows, self.batch_size, self.device = store, rows, batch_size, device
        self.seed, self.augment, self.prepare = seed, augment, prepare
        self.rank, self.size = part
        rare = np.zeros(len(rows), bool) if rare is None else rare
        self.common, self.rare = rows[~rare], rows[rare]
        wanted = round(share * len(self.common) / (1 - share)) if share < 1 else len(self.rare)
        self.drawn = min(wanted, len(self.rare))
        if len(rows) and not self.samples:
            raise ValueError("no sample to train on but rare ones, such as slices without tumour: take other patients")
        if self.samples and (smallest := self.samples // len(self)) < self.size:
            raise ValueError(f"{smallest} samples a batch are too few for {self.size} processes: raise --batch-size")
        self.resident = self._copied() if resident and self._fits() else None

    def _fits(self) -> bool:
        """Whether the whole store may live in the memory of a GPU: it takes at most half of what is free."""
        if self.device.type != "cuda":
            return False
        return 2 * self.store.images.nbytes < torch.cuda.mem_get_info(self.device)[0]

    def _copied(self) -> Batch:
        """The arrays of the store on the device, copied in parts: they may not fit into the memory of the machine."""
        copies = []
        for array in (self.store.images, self.store.targets):
            copy = torch.empty(array.shape, dtype=torch.from_numpy(np.empty(0, array.dtype)).dtype, device=self.device)
            for rows in np.array_split(np.arange(len(array)), -(-len(array) // CHUNK)):
                self.store.expect(rows)
                copy[rows[0] : rows[-1] + 1] = torch.from_numpy(array[rows])
            copies.append(copy)
        return copies[0], copies[1]

    @property
    def samples(self) -> int:
        """Samples an epoch."""
        return len(self.common) + self.drawn

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch in the order of training, (samples,)."""
        rng = np.random.default_rng((self.seed, epoch))
        drawn = rng.choice(self.rare, self.drawn, replace=False)
        return rng.permutation(np.concatenate([self.common, drawn]))

    def steps(self, epoch: int) -> list[np.ndarray]:
        """The rows of each batch of an epoch; sizes differ by one at most, so that no batch is a mere rest."""
        return np.array_split(self.order(epoch), len(self))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches (or this process's part of them) of an epoch from step `start` on: shuffled and augmented."""
        steps = self.steps(epoch)

        def finish(step: int, images: torch.Tensor, targets: torch.Tensor) -> Batch:
            if self.augment is None:
                return self.prepare(images), targets
            seed = np.random.SeedSequence((self.seed, epoch, step)).generate_state(1, np.uint64)[0]
            generator, size = torch.Generator().manual_seed(int(seed >> np.uint64(1))), len(steps[step])
            return self.augment(images, targets, Draw(generator, size, self._mine(size)))

        return self._batches(steps, finish, start)

    def _mine(self, count: int) -> slice:
        """The samples of a batch that fall to this process."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        """Every row once, in the order given, as it is: for evaluation. Of several processes each has its part."""
        steps = [rows for rows in np.array_split(self.rows, -(-len(self.rows) // self.batch_size) or 1) if len(rows)]
        return self._batches(steps, lambda step, images, targets: (self.prepare(images), targets))

    def _batches(
        self, steps: list[np.ndarray], finish: Callable[[int, torch.Tensor, torch.Tensor], Batch], start: int = 0
    ) -> Iterator[Batch]:
        """This process's part of each step, finished on the device; the next is read while the caller works on it."""
        mine = [rows[self._mine(len(rows))] for rows in steps]
        with ThreadPoolExecutor(1) as pool:
            pending = [pool.submit(self._gather, rows) for rows in mine[start : start + 1]]
            for step in range(start, len(mine)):
                images, targets = pending.pop().result()
                images, targets = images.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)
                batch = finish(step, images, targets)
                for rows in mine[step + 1 : step + 2]:  # not before: augmentation and reading would hinder each other
                    pending.append(pool.submit(self._gather, rows))
                yield batch

    def _gather(self, rows: np.ndarray) -> Batch:
        if self.resident:
            index = torch.from_numpy(rows).to(self.device, non_blocking=True)
            return self.resident[0].index_select(0, index), self.resident[1].index_select(0, index)
        self.store.expect(rows)
        # NumPy, not torch: a second thread that used torch's OpenMP would make the threads of the training go to
        # sleep after every operation, and training up to a sixth slower
        arrays = self.store.images, self.store.targets
        images, targets = (torch.from_numpy(np.asarray(array).take(rows, 0)) for array in arrays)
        return (images.pin_memory(), targets.pin_memory()) if self.device.type == "cuda" else (images, targets)

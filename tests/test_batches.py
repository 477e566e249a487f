"""Batches: every row once, tumour-free ones by share, and everything a function of (seed, epoch, step)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import batches
from datasets.augment import Augmentation
from datasets.batches import Batches
from datasets.store import Block, Store, open_or_build

CPU = torch.device("cpu")


def numbered(folder: Path, count: int = 23) -> Store:
    """Sample i is an image full of i."""
    images = np.broadcast_to(np.arange(count, dtype=np.float16)[:, None, None, None], (count, 1, 4, 4)).copy()
    block = Block(images, images[:, 0].astype(np.uint8), [{"slice": i} for i in range(count)], {})
    return open_or_build(folder, "numbered", [], {}, lambda: iter([block]))


def rows_of(found: list[tuple[torch.Tensor, torch.Tensor]]) -> list[int]:
    for images, targets in found:
        assert torch.equal(images[:, 0], targets.float())
    return [int(value) for images, _ in found for value in images[:, 0, 0, 0]]


def test_an_epoch_sees_every_row_once_in_a_new_order(tmp_path: Path) -> None:
    rows = np.arange(3, 20)
    data = Batches(numbered(tmp_path), rows, 4, CPU)
    first, second = rows_of(list(data.epoch(0))), rows_of(list(data.epoch(1)))
    assert sorted(first) == sorted(second) == rows.tolist() and first != second
    assert first == data.order(0).tolist() and len(list(data.epoch(0))) == len(data) == 5
    assert [len(images) for images, _ in data.epoch(0)] == [4, 4, 3, 3, 3]  # no batch is a mere rest
    assert rows_of(list(data)) == rows.tolist()


def test_rare_rows_are_drawn_by_share(tmp_path: Path) -> None:
    rare = np.arange(23) >= 8
    data = Batches(numbered(tmp_path), np.arange(23), 4, CPU, rare=rare, share=0.2)
    assert data.samples == 10  # 8 common, and 2 of the 15 rare: a fifth
    seen = [set(data.order(epoch)) for epoch in range(20)]
    assert all(set(range(8)) <= epoch and len(epoch) == 10 for epoch in seen)
    assert len(set.union(*seen)) > 18
    assert Batches(numbered(tmp_path), np.arange(23), 4, CPU, rare=rare, share=0.0).samples == 8
    assert Batches(numbered(tmp_path), np.arange(23), 4, CPU, rare=rare).samples == 23
    with pytest.raises(ValueError, match="no sample to train on"):
        Batches(numbered(tmp_path), np.arange(8, 23), 4, CPU, rare=rare[8:], share=0.2)


def test_a_copy_on_the_device_gives_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Batches(numbered(tmp_path), np.arange(3, 20), 4, CPU, seed=1)
    monkeypatch.setattr(Batches, "_fits", lambda _: True)  # as on a GPU
    monkeypatch.setattr(batches, "CHUNK", 5)
    copied = Batches(numbered(tmp_path), np.arange(3, 20), 4, CPU, seed=1, resident=True)
    for one, other in zip([*plain.epoch(0), *plain], [*copied.epoch(0), *copied], strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert copied.resident is not None and copied.resident[0].shape == (23, 1, 4, 4)


def test_an_epoch_goes_on_from_any_step(tmp_path: Path) -> None:
    data = Batches(numbered(tmp_path), np.arange(23), 4, CPU, seed=5, augment=Augmentation())
    whole = list(data.epoch(3))
    for start in range(len(data) + 1):
        rest = list(data.epoch(3, start))
        assert len(rest) == len(data) - start
        for (images, targets), (same, labels) in zip(rest, whole[start:], strict=True):
            assert torch.equal(images, same) and torch.equal(targets, labels)
    other = next(iter(Batches(numbered(tmp_path), np.arange(23), 4, CPU, seed=6, augment=Augmentation()).epoch(3)))
    assert not torch.equal(other[0], whole[0][0])


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_see_the_batches_of_one(tmp_path: Path, size: int) -> None:
    store, rows = numbered(tmp_path), np.arange(23)
    whole = list(Batches(store, rows, 6, CPU, seed=2, augment=Augmentation()).epoch(1))
    parts = [list(Batches(store, rows, 6, CPU, seed=2, augment=Augmentation(), part=(rank, size)).epoch(1))
             for rank in range(size)]  # fmt: skip
    for (images, targets), *dealt in zip(whole, *parts, strict=True):
        assert max(len(part) for part, _ in dealt) - min(len(part) for part, _ in dealt) <= 1
        torch.testing.assert_close(torch.cat([part for part, _ in dealt]), images)
        assert torch.equal(torch.cat([part for _, part in dealt]), targets)
    with pytest.raises(ValueError, match="raise --batch-size"):
        Batches(store, rows, 2, CPU, part=(0, 3))
    assert not list(Batches(store, rows[:0], 2, CPU, part=(0, 3)))  # nobody to watch


@pytest.mark.parametrize("count", [7, 23, 24, 25])
def test_several_processes_evaluate_as_many_batches(tmp_path: Path, count: int) -> None:
    store, rows = numbered(tmp_path, count), np.arange(count)[::-1]
    whole = list(Batches(store, rows, 8, CPU))
    parts = [list(Batches(store, rows, 8, CPU, part=(rank, 3))) for rank in range(3)]
    for (_, targets), *dealt in zip(whole, *parts, strict=True):  # else one would wait for the others for ever
        assert torch.equal(torch.cat([part for _, part in dealt]), targets)

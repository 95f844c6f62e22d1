"""What a loader does when an item cannot be read, when it is left early, and to the random numbers."""

import multiprocessing

import pytest
import torch

from hysac.data import Batches, Manifest, QuadrupletDataset, load_manifest, write_toy
from hysac.training.processes import leave_signals_to_main


def preprocess(image):
    return torch.zeros(3, 2, 2)


def tokenizer(captions):
    return torch.zeros(len(captions), 3, dtype=torch.int64)


@pytest.fixture
def records(tmp_path):
    return load_manifest(write_toy(tmp_path, train_size=6, val_size=1, progress=False)["train"]).records


@pytest.fixture
def dataset(records):
    return QuadrupletDataset(Manifest(records), preprocess, tokenizer, verify=False)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_those_of_a_loader(dataset, workers):
    batches = Batches(dataset, batch_size=4, num_workers=workers)
    assert len(batches) == 2
    for _ in range(2):
        read = list(batches)
        assert [batch["id"] for batch in read] == [
            [record.id for record in part] for part in (dataset.records[:4], dataset.records[4:])
        ]
        assert [batch["image"].shape for batch in read] == [(4, 2, 3, 2, 2), (2, 2, 3, 2, 2)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_told_in_one_line_and_ends_the_workers(dataset, records, workers):
    """Workers that ignore SIGTERM, as training's do, would otherwise keep Python from exiting."""
    records[3].images[1].write_bytes(b"no image")
    batches = iter(Batches(dataset, batch_size=2, num_workers=workers, worker_init_fn=leave_signals_to_main))
    assert next(batches)["id"] == [records[0].id, records[1].id]
    with pytest.raises(ValueError, match="cannot be read") as caught:
        next(batches)
    assert str(caught.value).startswith(f"row with id '{records[3].id}': image {records[3].images[1]}")
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("error", [RuntimeError, KeyError])
def test_other_errors_keep_the_traceback_of_the_worker(records, error):
    def fail(image):
        raise error("in the transform")

    dataset = QuadrupletDataset(Manifest(records), fail, tokenizer, verify=False)
    batches = Batches(dataset, batch_size=2, num_workers=1, worker_init_fn=leave_signals_to_main)
    with pytest.raises(error, match="in the transform") as caught:
        next(iter(batches))
    assert "Traceback" in str(caught.value)
    assert not multiprocessing.active_children()


def test_leaving_early_ends_the_workers(dataset):
    batches = iter(Batches(dataset, batch_size=1, num_workers=1, worker_init_fn=leave_signals_to_main))
    next(batches)
    assert multiprocessing.active_children()
    batches.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_random_numbers_are_left_alone(dataset, workers):
    before = torch.get_rng_state()
    list(Batches(dataset, batch_size=2, num_workers=workers))
    assert torch.equal(torch.get_rng_state(), before)

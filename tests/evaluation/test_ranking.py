"""Counts of each image, gathered from processes that share some images."""

from types import SimpleNamespace

import numpy as np
import torch.distributed as dist

from densesiam.evaluation.ranking import ImageCounts


def test_of_an_image_that_two_processes_have_the_labelled_one_counts(monkeypatch):
    void, labelled = np.zeros((2, 2), np.int32), np.eye(2, dtype=np.int32)
    counts = ImageCounts()
    counts.counts = {0: void, 1: labelled}
    theirs = {0: labelled, 1: void, 2: void}  # the last has no labelled pixel anywhere

    def gather(parts, own):
        parts[:] = [own, theirs]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    counts.on_validation_end(SimpleNamespace(world_size=2), None)
    assert counts.counts.keys() == {0, 1, 2}
    assert [bool(table.any()) for _, table in sorted(counts.counts.items())] == [True, True, False]

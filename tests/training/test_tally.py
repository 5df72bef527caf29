import os

import torch

from densesiam.training.checkpoints import WholeCheckpoints
from tests.training.tally import Trials


def test_nothing_is_lost_by_files(tmp_path):
    found = list(Trials(tmp_path).of_files())
    assert [tried for _, tried, _ in found] == [4, 3, 10]
    assert [lost for *_, lost in found] == [0, 0, 0]


def test_what_a_careless_writer_loses_is_counted(tmp_path, monkeypatch):
    def in_place(self, checkpoint, path, storage_options=None):
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            os.fsync(file.fileno())
            torch.save(checkpoint, file)

    monkeypatch.setattr(WholeCheckpoints, "save_checkpoint", in_place)
    assert all(lost > 0 for *_, lost in Trials(tmp_path).of_files())

from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from densesiam.methods import Segmenter
from densesiam.training.pictures import SegmentationGrid


@pytest.mark.parametrize("is_first", [True, False])
def test_the_first_process_alone_draws_and_when_it_is_due(tmp_path, is_first):
    grid = SegmentationGrid(tmp_path, Mock(), every_n_epochs=2)
    drawn = []
    grid._draw = lambda trainer, module: drawn.append(trainer.current_epoch)  # nothing to save
    for epoch in range(5):
        trainer = SimpleNamespace(current_epoch=epoch, max_epochs=5, is_global_zero=is_first)
        grid.on_train_epoch_end(trainer, Mock(spec=Segmenter))
    assert drawn == ([1, 3, 4] if is_first else [])

"""A training without a command: a method, callbacks, and as many steps as are wanted."""

import lightning as L
from torch.utils.data import DataLoader

from tests.methods.support import apart, batch


def fit(model, callbacks, steps, saves=None, **options):
    """Train for one epoch, on the same two batches over and over."""
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        callbacks=callbacks,
        default_root_dir=saves,
        logger=False,
        enable_checkpointing=saves is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, DataLoader(apart(batch(8)) * (steps // 2), batch_size=4))
    return trainer

"""What all data modules share: their place among the processes, and how loaders load."""

from typing import Any

import lightning as L
import torch


class LoadingModule(L.LightningDataModule):
    """A data module whose loaders have worker processes.

    Attributes:
        num_workers: processes that load data, for each loader; 0 loads in the main process.
    """

    num_workers: int

    def _place(self) -> tuple[int, int]:
        """Number of processes, and which one this is."""
        if self.trainer is None:
            return 1, 0
        return self.trainer.world_size, self.trainer.global_rank

    def _loading(self) -> dict[str, Any]:
        """Arguments of every loader."""
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }

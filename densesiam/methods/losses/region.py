"""When RegionSim joins a training."""

import math

import lightning as L


class RegionStart:
    """When RegionSim joins a training: it is best started midway, says the paper.

    Args:
        start: an epoch (an int, counted from 0), or a share of the training's steps (a float below
            1).
        alone: whether there is no other loss, so that nothing could be learned before.

    Raises:
        ValueError: it is neither, or RegionSim is alone and starts late.
    """

    def __init__(self, start: int | float, alone: bool) -> None:
        if isinstance(start, bool) or start < 0 or (isinstance(start, float) and not start < 1):
            raise ValueError(
                "region_start must be an epoch (an int from 0) or a share of the training (a "
                f"float from 0 to below 1), got {start!r}; to do without RegionSim set its weight "
                "to 0"
            )
        if alone and start != 0:
            raise ValueError(
                "RegionSim is the only loss, so there is nothing to learn before "
                f"region_start={start}: set it to 0"
            )
        self.start = start

    def reached(self, module: L.LightningModule) -> bool:
        """Whether the module's training has come so far.

        Raises:
            ValueError: the start is a share of a training without end.
        """
        if isinstance(self.start, int):
            return module.current_epoch >= self.start
        if self.start == 0:
            return True
        steps = module.trainer.estimated_stepping_batches
        if steps == math.inf:
            raise ValueError(
                f"region_start={self.start} is a share of the training, which has no end: give "
                "the trainer max_epochs, or region_start as an epoch"
            )
        return module.global_step >= self.start * steps

    def check_reachable(self, trainer: L.Trainer) -> None:
        """Refuse a training that would be over before the start.

        Raises:
            ValueError: the start is an epoch that the training does not reach.
        """
        epochs = trainer.max_epochs or -1
        if isinstance(self.start, int) and 0 < epochs <= self.start:
            raise ValueError(
                f"RegionSim would start at epoch {self.start}, but the training has only epochs 0 "
                f"to {epochs - 1}: lower region_start, or set RegionSim's weight to 0"
            )

    def check_share(self, steps: float) -> None:
        """Refuse a training that has no step left at the start.

        Args:
            steps: of the whole training.

        Raises:
            ValueError: the start is a share of the training that leaves no step.
        """
        if isinstance(self.start, float) and steps - 1 < self.start * steps:
            raise ValueError(
                f"RegionSim would start after {self.start:g} of the training, but that has only "
                f"{steps} steps and none is left then: lower region_start, train longer, or set "
                "RegionSim's weight to 0"
            )

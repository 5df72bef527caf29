"""Which of a launcher's processes this is, and whether they are those of the training."""

import os

import lightning as L
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import ParallelStrategy

from densesiam.training.console import set_rank

_TORCHRUN, _SRUN = "torchrun", "SLURM's srun"
# Where they say how many processes are on a machine.
_EACH = {_TORCHRUN: "LOCAL_WORLD_SIZE", _SRUN: "SLURM_NTASKS_PER_NODE"}


def join(trainer: L.Trainer, devices: str | None = "trainer.devices") -> None:
    """Take the trainer's word for which process this is, and compare it with the launcher's.

    Launchers set variables (RANK, SLURM_PROCID) in jobs too whose processes know nothing of each
    other, one for each part of the data say. There each process is the first of one.

    Args:
        trainer: knows how many processes work together, and which one this is.
        devices: the setting that says how many; None where a command always takes one.

    Raises:
        ValueError: the launcher has started more or fewer processes than work together.
    """
    launched = _launched(trainer)
    together = trainer.num_devices * trainer.num_nodes  # `world_size` repeats the launcher's
    if launched is not None and launched[1] != together:
        launcher, started = launched
        if devices is None:
            advice = "start it without"
        else:
            each = int(os.environ.get(_EACH[launcher], started))
            advice = f"set {devices} to {each}"
            if started > each:
                advice += f" and trainer.num_nodes to {started // each}"
            if trainer.num_devices == 1:
                advice += ", with trainer.accelerator cpu where there are fewer GPUs"
        raise ValueError(
            f"{launcher} has started {started} processes, but {together} would work "
            f"together: {advice}"
        )
    set_rank(trainer.global_rank)


def _launched(trainer: L.Trainer) -> tuple[str, int] | None:
    """Who started this process, and how many of them; None for whom that says nothing."""
    if TorchElasticEnvironment.detect():
        return _TORCHRUN, int(os.environ["WORLD_SIZE"])
    # A queue's tasks may be jobs of their own, each with a trainer of one process.
    if isinstance(trainer.strategy, ParallelStrategy) and SLURMEnvironment.detect():
        return _SRUN, int(os.environ["SLURM_NTASKS"])
    return None

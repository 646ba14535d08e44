"""Training: state, step, loops on the host and on the device, checkpoints, metrics."""

from reweight.train.checkpoint import Checkpointer, CheckpointError, Restored
from reweight.train.loop import Fit, evaluate, fit
from reweight.train.meta import alternate, make_meta_step
from reweight.train.on_device import Run, epoch_order, run_on_device
from reweight.train.state import TrainState, init_state
from reweight.train.step import LossOutput, jit_step, make_step, mean_over_count, token_reduction, whole_batch
from reweight.train.writers import JsonlWriter, TensorBoardWriter, Writer

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "Fit",
    "JsonlWriter",
    "LossOutput",
    "Restored",
    "Run",
    "TensorBoardWriter",
    "TrainState",
    "Writer",
    "alternate",
    "epoch_order",
    "evaluate",
    "fit",
    "init_state",
    "jit_step",
    "make_meta_step",
    "make_step",
    "mean_over_count",
    "run_on_device",
    "token_reduction",
    "whole_batch",
]

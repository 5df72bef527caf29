"""The program that test_pretrain.py starts under torchrun: the command, on several CPU processes.

PyTorch's synchronised batch normalisation runs on GPUs only. So that two processes compute what one
would on the same images, its stand-in here normalises over all of them through gloo. All else is
the command as a user starts it.
"""

import sys

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from densesiam import cli
from densesiam.training import options, run


class MeanOverRanks(torch.autograd.Function):
    """The mean over all processes, of which each process's loss is a function."""

    @staticmethod
    def forward(ctx, tensor):
        total = tensor.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def backward(ctx, grad):
        total = grad.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()


class GlobalBatchNorm(_BatchNorm):
    """Batch normalisation over the values of all processes, as many in each."""

    def _check_input_dim(self, input):
        pass

    def forward(self, input):
        if not self.training:
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        mean = MeanOverRanks.apply(input.mean(axes))
        centred = input - mean.view(shape)
        variance = MeanOverRanks.apply(centred.square().mean(axes))
        with torch.no_grad():
            count = dist.get_world_size() * input.numel() / input.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        output = centred / (variance.view(shape) + self.eps).sqrt()
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output


def convert(module, process_group=None):
    """In place of timm's conversion to synchronised layers."""
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            # The parameters stay; timm's layers with an activation of their own keep it.
            forward = GlobalBatchNorm.forward.__get__(child)
            if getattr(child, "act", None) is None:
                child.forward = forward
            else:
                child.forward = lambda x, child=child, forward=forward: child.act(
                    child.drop(forward(x))
                )
    return module


if __name__ == "__main__":
    torch.set_num_threads(1)
    options.convert_sync_batchnorm = convert
    options.can_synchronise = run.can_synchronise = lambda _: True
    sys.exit(cli.main())

"""Gradients taken early are those that would be taken late, and free what they needed."""

import weakref

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from densesiam.methods.losses.early import early_gradients, gradient_scale
from tests.tolerance import assert_close, assert_within, terms_of, tolerance


def heads():
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6)).double() for _ in range(2)]


def inputs():
    torch.manual_seed(1)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    y = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    return x, y, torch.randn(4, 6, dtype=torch.float64)  # the last is a constant


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_same_values_and_gradients(scale):
    outer, inner = heads()
    factor = None if scale is None else torch.tensor(scale)

    def term(hidden, x, y):
        return (inner(hidden) * x * y).mean()

    def late(x, y, c):
        hidden = outer(x * c)
        return hidden.square().mean() + term(hidden, x, y)

    def early(x, y, c):
        hidden = outer(x * c)  # depends on x, which the term takes too
        return hidden.square().mean() + early_gradients(term, [hidden, x, y], [inner], factor)

    x, y, c = inputs()
    learning = [x, y, *outer.parameters(), *inner.parameters()]
    expected = 3 * late(x, y, c) + x.sum()
    got = 3 * early_gradients(early, [x, y, c], [outer, inner], factor) + x.sum()
    assert_close(got, expected, terms=24 * 10, rms=5)
    gradients = torch.autograd.grad(got, learning), torch.autograd.grad(expected, learning)
    assert_close(*gradients, terms=24 * 10, rms=5)


@pytest.mark.parametrize("backward_inside", [False, True])
def test_same_gradients_under_autocast(backward_inside):
    """Layers in bfloat16, as in mixed precision: the very numbers, since the same steps run.

    A loss whose backward is itself composed of what autocast acts on: `Composed` multiplies
    matrices there. Late gradients are taken outside of autocast, as trainers do, where they are
    float32's; inside, they are what early ones must not be.
    """
    torch.manual_seed(2)
    head, composed = nn.Linear(64, 64), nn.Linear(64, 64)
    x = torch.randn(32, 64, requires_grad=True)
    learning = [x, *head.parameters(), composed.weight]

    def loss(x):
        return (Composed.apply(head(x).float(), composed.weight)).square().mean()

    with torch.autocast("cpu", torch.bfloat16):
        assert head(x).dtype == torch.bfloat16
        late = loss(x)
        early = early_gradients(loss, [x], [head, composed])
        inside = torch.autograd.grad(late, learning, retain_graph=True)
    expected = torch.autograd.grad(late, learning)
    if backward_inside:
        assert not all(map(torch.equal, inside, expected))  # so the type of backward tells
        with torch.autocast("cpu", torch.bfloat16):
            found = torch.autograd.grad(early, learning)
    else:
        found = torch.autograd.grad(early, learning)
    assert all(map(torch.equal, found, expected))


class Composed(torch.autograd.Function):
    """x W^T in the type of x, with a backward that autocast would act on."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        with torch.autocast("cpu", enabled=False):
            return x @ weight.T

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.T @ x


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: (x + y).square().sum(),  # one tensor is the gradient of both
        lambda x, y: x.sum() + (x + y - 1).square().mean(),
        lambda x, y: x.sum() + y.sum(),  # a single number, expanded
    ],
)
def test_gradients_that_share_memory(loss):
    x, y, _ = inputs()
    expected = torch.autograd.grad(3 * loss(x, y), (x, y))
    got = torch.autograd.grad(3 * early_gradients(loss, [x, y], []), (x, y))
    assert_close(got, expected, terms=24 * 10, rms=5)


def test_a_parameter_named_twice_counts_once():
    (head, _), (x, _, _) = heads(), inputs()
    expected = torch.autograd.grad(head(x).square().sum(), head.parameters())
    loss = early_gradients(lambda x: head(x).square().sum(), [x], [head, head[0]])
    assert_close(torch.autograd.grad(loss, head.parameters()), expected, terms=24 * 10)


def test_where_nothing_learns_it_is_just_the_loss():
    (head, _), (_, _, c) = heads(), inputs()
    head.requires_grad_(False)
    assert not early_gradients(lambda c: head(c).sum(), [c], [head]).requires_grad


def test_what_a_loss_needed_is_gone_before_backward():
    (head, _), (x, _, _) = heads(), inputs()
    kept = []

    def loss(x):
        hidden = head(x).square()
        kept.append(weakref.ref(hidden))
        return hidden.mean()

    total = early_gradients(loss, [x], [head])
    assert kept[0]() is None
    total.backward()
    assert x.grad is not None


def test_unused_and_constant_inputs_get_no_gradient():
    (head, _), (x, y, c) = heads(), inputs()
    early_gradients(lambda x, y, c: (head(x) * c).sum(), [x, y, c], [head]).backward()
    assert x.grad is not None
    assert y.grad is None
    assert c.grad is None


def test_without_gradients_it_is_just_the_loss():
    (head, _), (x, _, _) = heads(), inputs()
    asked = []

    def loss(x):
        asked.append(torch.is_grad_enabled())
        return head(x).sum()

    with torch.no_grad():
        value = early_gradients(loss, [x], [head])
        assert value == head(x).sum()
    assert not value.requires_grad
    assert asked == [False]


def test_a_second_backward_says_why_it_cannot_be():
    (head, _), (x, _, _) = heads(), inputs()
    loss = early_gradients(lambda x: head(x).sum(), [x], [head])
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()


def test_the_scale_saves_small_gradients_of_half_precision():
    x = torch.ones(4, dtype=torch.float16, requires_grad=True)

    def loss(x):
        return 1e-9 * (2 * x).float().sum()  # float16 begins at 6e-8

    scale = torch.tensor(2.0**16)
    lost = early_gradients(loss, [x], [])
    (gradient,) = torch.autograd.grad(scale * lost, x)
    assert gradient.eq(0).all()
    kept = early_gradients(loss, [x], [], scale)
    (gradient,) = torch.autograd.grad(scale * kept, x)
    assert_close(gradient, torch.full((4,), 2e-9 * 2.0**16, dtype=torch.float64), terms=2)


class Scaled(L.LightningModule):
    """Learns by an early loss, and notes its scale."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(6, 1)
        self.scales = []

    def training_step(self, batch):
        scale = gradient_scale(self)
        self.scales.append(None if scale is None else float(scale))
        return early_gradients(lambda x: self.head(x).square().mean(), batch, [self.head], scale)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(**options):
    torch.manual_seed(1)
    data = torch.utils.data.TensorDataset(torch.randn(8, 6))
    module = Scaled()
    L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    ).fit(module, torch.utils.data.DataLoader(data, batch_size=4))
    return module


def test_the_scale_is_that_of_the_trainers_scaler():
    assert gradient_scale(Scaled()) is None  # not in training
    plain = train()
    assert plain.scales == [None, None]
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    scaled = train(plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    assert scaled.scales == [128.0, 128.0]
    # Gradients are float16's.
    near = tolerance(terms_of(plain), 0.1, torch.float16)  # a step is 0.1 of them
    assert_within(scaled.head.weight, plain.head.weight, near)

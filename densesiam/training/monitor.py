"""Collapse: what to measure on a training step, when to speak up, and the callback that does it.

A Siamese method without negatives has a trivial solution: say the same of every image. Nothing in
its loss forbids that, so a training that has gone wrong shows the *best* loss. No single number
sees every way there: features of rank 8 in 128 dimensions have a healthy spread, features that
hardly differ from one another a healthy spectrum. So several are measured, on vectors sampled from
the encoder's output, z and p.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from densesiam.methods.losses.assignment import assignment_statistics
from densesiam.models import Predictor, Projector

Kind = Literal["cross_entropy", "cosine"]

# Features


def normalised_std(vectors: Tensor) -> float:
    r"""How far vectors point in different directions.

    :math:`\frac{1}{\sqrt d} \sum_c \mathrm{std}_n(x_{nc} / |x_n|)`: the standard deviation of each
    channel over L2-normalised vectors, averaged over channels, times :math:`\sqrt d` (Chen and He,
    CVPR 2021, figure 2, who leave out the factor).

    Args:
        vectors: (N, d), N at least 2.

    Returns:
        In [0, 1] up to a factor of sqrt(N / (N - 1)): near 1 for directions spread evenly, 0 where
        all are the same. Small too where few channels are alive. NaN for NaN.
    """
    std = F.normalize(vectors.double(), dim=1).std(dim=0)
    return float(std.mean() * math.sqrt(vectors.shape[1]))


def singular_values(vectors: Tensor) -> Tensor:
    """Singular values of centred vectors.

    They are the roots of the eigenvalues of the smaller Gram matrix. In float64 that costs nothing
    that a share of a spectrum could show, and a small part of a singular value decomposition.

    Args:
        vectors: (N, d), N at least 2.

    Returns:
        (min(N - 1, d),) float64, largest first; centring takes one dimension of N. NaN where a
        vector is not finite.
    """
    N, d = vectors.shape
    count = min(N - 1, d)
    centred = vectors.double() - vectors.double().mean(dim=0)
    if not centred.isfinite().all():
        return centred.new_full((count,), math.nan)
    gram = centred.mT @ centred if d < N else centred @ centred.mT
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(0)[:count]


def mean_explained_share(singular: Tensor) -> float:
    r"""Mean over i of the share that the first i singular values have in the sum of all r.

    Args:
        singular: (r,), largest first.

    Returns:
        (r + 1) / 2r, about 0.5, for a flat spectrum; 1 where one direction has everything, or where
        there is nothing. After Li, Efros and Pathak (ECCV 2022).
    """
    total = singular.sum()
    if total == 0:
        return 1.0
    return float((singular.cumsum(0) / total).mean())


def effective_rank_share(singular: Tensor) -> float:
    r"""Effective rank over the greatest possible.

    :math:`\frac1r \exp(-\sum_i q_i \ln q_i)` with :math:`q_i = \sigma_i / \sum_j \sigma_j` (Roy
    and Vetterli, 2007).

    Args:
        singular: (r,), not negative.

    Returns:
        1 for a flat spectrum, 1 / r where one direction has everything, 0 where there is nothing.
    """
    total = singular.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(singular / total).sum().exp() / len(singular))


def feature_metrics(vectors: Tensor, max_rank: int | None = None) -> dict[str, float]:
    """Spread and spectrum of vectors.

    Args:
        vectors: (N, d), N at least 2.
        max_rank: the most dimensions that they can fill, where that is less than d: as many
            singular values are looked at. By default min(N - 1, d).

    Returns:
        ``std`` (`normalised_std`), ``explained_share`` (`mean_explained_share`) and
        ``effective_rank`` (`effective_rank_share`).
    """
    singular = singular_values(vectors)[:max_rank]
    return {
        "std": normalised_std(vectors),
        "explained_share": mean_explained_share(singular),
        "effective_rank": effective_rank_share(singular),
    }


# Categories, losses, gradients


def assignment_metrics(z1: Tensor, z2: Tensor) -> dict[str, float]:
    """How vectors of two views are spread over categories.

    Args:
        z1: (N, K) logits of view 1.
        z2: (N, K) logits of the same points in view 2.

    Returns:
        - ``usage_perplexity``: exp of the entropy of the categories' use, in [1, K];
        - ``dead_classes``: share of the categories that no vector has, in [0, 1); of as many as the
          2N vectors could have, where those are fewer than K;
        - ``max_probability``: mean of the largest probability, in [1 / K, 1];
        - ``agreement``: share of the points whose category is the same in both views.
    """
    N, K = z1.shape
    pixels = (z1[:, :, None], z2[:, :, None])  # one pixel an image
    described = assignment_statistics(*pixels, weight=torch.ones(N, device=z1.device))
    seen = round(float(described["usage_share"]) * K)
    return {
        "usage_perplexity": float(described["usage_perplexity"]),
        "dead_classes": 1 - seen / min(K, 2 * N),
        "max_probability": float(described["confidence"]),
        "agreement": float(described["agreement"]),
    }


def loss_metrics(p1: Tensor, z1: Tensor, p2: Tensor, z2: Tensor, kind: Kind) -> dict[str, float]:
    r"""The similarity loss of two views, beside the least that p could make of it.

    Args:
        p1: (N, d) predictions of view 1.
        z1: (N, d) projections of view 1.
        p2: predictions of the same points in view 2.
        z2: projections of the same points in view 2.
        kind: the loss. The floor of ``"cross_entropy"`` is the mean entropy of the targets; that of
            ``"cosine"`` is -1.

    Returns:
        ``loss``: :math:`\frac12 D(p_1, z_2) + \frac12 D(p_2, z_1)`; ``floor``; ``excess``, the
        difference, not negative. For ``"cross_entropy"`` all are in nats: of normal logits of 27
        categories the loss starts at ln 27 = 3.30 above a floor of 2.85.
    """
    pairs = [(p1.double(), z2.double()), (p2.double(), z1.double())]
    if kind == "cosine":
        loss = -torch.stack([F.cosine_similarity(p, z).mean() for p, z in pairs]).mean()
        floor = torch.tensor(-1.0)
    else:
        losses = [F.cross_entropy(p, z.softmax(1)) for p, z in pairs]
        entropies = [torch.special.entr(z.softmax(1)).sum(1).mean() for _, z in pairs]
        loss, floor = torch.stack(losses).mean(), torch.stack(entropies).mean()
    return {"loss": float(loss), "floor": float(floor), "excess": float(loss - floor)}


def balanced_floor(num_classes: int) -> float:
    r"""Entropy of the hardest even assignment that logits of mean 0 and variance 1 can make.

    Each of K categories has 1 / K of the vectors, so a channel is :math:`\sqrt{K - 1}` for its own
    and :math:`-1 / \sqrt{K - 1}` for all others: the gap is :math:`K / \sqrt{K - 1}`.

    Args:
        num_classes: K, at least 2.

    Returns:
        In nats: 1.08 for 12 categories, 0.73 for 27, 0.02 for 128.
    """
    others = num_classes - 1
    logits = torch.zeros(num_classes, dtype=torch.float64)
    logits[0] = num_classes / math.sqrt(others)
    return float(torch.special.entr(logits.softmax(0)).sum())


def gradient_norms(module: nn.Module) -> dict[str, float]:
    """Length of the gradient of each part of a module.

    Args:
        module: its direct children are the parts.

    Returns:
        The L2 norm over all parameters of each part that has a gradient, by the part's name.
    """
    norms = {}
    for name, part in module.named_children():
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        if gradients:
            lengths = torch._foreach_norm([g.float() for g in gradients])
            norms[name] = float(torch.stack(lengths).norm())
    return norms


# When to speak up


@dataclass(frozen=True)
class Limit:
    """Where a metric stops being healthy.

    Attributes:
        metric: its name, whatever it was measured on.
        value: the limit.
        below: whether values below the limit are the suspicious ones, or those above.
        meaning: what it says where it is crossed.
    """

    metric: str
    value: float
    below: bool
    meaning: str


# docs/collapse.md has the values that these stand between.
LIMITS = (
    # Healthy encoders, z and p have 0.55 to 1, fresh networks included; collapsed heads 0 to 0.3.
    Limit("std", 0.2, True, "the vectors all point one way"),
    # Rank 8 of 128 has at most 0.0625, and at least 0.973. Healthy spectra have 0.18 to 0.95, and
    # 0.64 to 0.93; those closest to the limits are of predictors, which pass through a bottleneck.
    Limit("effective_rank", 0.08, True, "the vectors fill few dimensions"),
    Limit("explained_share", 0.96, False, "few directions hold all that differs"),
    # A short training may well leave a category or two; three in four is another matter.
    Limit("dead_classes", 0.75, False, "most categories are empty"),
)
# The use of K categories is suspicious below this share of the way from one to all of them.
_NARROW = 0.1
# Assignments as even as these (as a share of ln K) say nothing; normal logits have 0.86 to 0.9.
_UNIFORM = 0.99
# Losses below this share of `balanced_floor` are not to be had from logits that the projector
# normalises, unless they leave most categories.
_TOO_GOOD = 0.5


def diagnose(metrics: Mapping[str, float], num_classes: int | None = None) -> dict[str, str]:
    """Say what looks collapsed.

    Args:
        metrics: by name, ``<part>/<metric>``, as `CollapseMonitor` logs them.
        num_classes: K, where z are logits of categories.

    Returns:
        For each suspicious metric, by its name, what it looks like; nothing where all is well.
    """
    findings = {}
    for name, value in metrics.items():
        part, _, metric = name.rpartition("/")
        if not math.isfinite(value):
            findings[name] = f"{part}: {metric} is {value}"
        for limit in LIMITS:
            if metric == limit.metric and (
                value < limit.value if limit.below else value > limit.value
            ):
                relation = "below" if limit.below else "above"
                findings[name] = (
                    f"{part}: {limit.meaning} ({metric} {value:.2f}, {relation} {limit.value:g})"
                )
        if part == "gradient_norm" and value == 0:
            findings[name] = f"{metric}: no gradient arrives"
    if num_classes is None:
        return findings
    fewest = 1 + _NARROW * (num_classes - 1)
    if (used := metrics.get("z/usage_perplexity", math.inf)) < fewest:
        findings["z/usage_perplexity"] = (
            f"z: few categories have nearly everything (usage_perplexity {used:.1f} of "
            f"{num_classes}, below {fewest:.1f})"
        )
    if metrics.get("similarity/floor", 0) > _UNIFORM * math.log(num_classes):
        findings["similarity/floor"] = "z: every vector is in all categories alike"
    least = balanced_floor(num_classes)
    if (loss := metrics.get("similarity/loss", math.inf)) < _TOO_GOOD * least:
        findings["similarity/loss"] = (
            f"loss: {loss:.2f} is less than normalised logits in even use can reach ({least:.2f})"
        )
    return findings


# The callback

PARTS = {
    "encoder": "encoder",
    "z": "projector",
    "p": "predictor",
    "dense_z": "dense_projector",  # pre-training has heads of both kinds
    "dense_p": "dense_predictor",
}


class CollapseMonitor(Callback):
    """Measure every n-th step, log, and warn where something looks collapsed.

    Forward hooks sample vectors from what the method's children compute anyway; the same points
    of both views, and of z and p. Neither the method nor its random numbers are touched. Measures:

    - ``monitor/<part>/``: `feature_metrics` of the encoder's output, z and p;
    - ``monitor/z/``: `assignment_metrics`, where z are logits;
    - ``monitor/similarity/``: `loss_metrics`;
    - ``monitor/gradient_norm/``: `gradient_norms` of the method's children.

    Loggers get each measurement; ``trainer.callback_metrics``, and so ``summary.json``, their means
    over the epoch. A finding of `diagnose` is warned of once, when it has held for two measurements
    in a row: a fresh network may look odd. Only the first process measures, its own images.

    Args:
        parts: the method's children to watch, by the name they are logged under. Those that it does
            not have are left out. A child is called for view 1, then for view 2; or once for
            both, with ``views=2``.
        kind: the similarity loss. With ``"cross_entropy"``, z are logits.
        every_n_steps: steps of the optimiser from one measurement to the next.
        vectors: how many vectors to sample from each part, of both views together.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        parts: Mapping[str, str] = PARTS,
        kind: Kind = "cross_entropy",
        every_n_steps: int = 50,
        vectors: int = 512,
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        if vectors < 4:
            raise ValueError(f"vectors must be at least 4, two of each view, got {vectors}")
        self.parts = dict(parts)
        self.kind = kind
        self.every_n_steps = every_n_steps
        self.vectors = vectors
        self.latest: dict[str, float] = {}
        self.findings: dict[str, str] = {}
        self._suspected: set[str] = set()
        self._samples: dict[str, list[Tensor]] = {}
        self._max_rank: dict[str, int] = {}
        self._hooks: list[RemovableHandle] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Listen to the parts, where the step is one to measure."""
        self._release()
        if trainer.global_step % self.every_n_steps or not trainer.is_global_zero:
            return
        known = dict(pl_module.named_children())
        for part, name in self.parts.items():
            if name in known:
                self._samples[part] = []
                if isinstance(head := known[name], Projector | Predictor):
                    # A predictor passes through a bottleneck: what it cannot fill is no sign.
                    self._max_rank[part] = head.max_rank
                hook = known[name].register_forward_hook(self._listener(part), with_kwargs=True)
                self._hooks.append(hook)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure what was heard, and the gradients."""
        if not self._hooks:
            return
        samples = self._samples
        self._release()
        self.latest = self.measure(samples) | {
            f"gradient_norm/{name}": norm for name, norm in gradient_norms(pl_module).items()
        }
        logged = {f"monitor/{name}": value for name, value in self.latest.items()}
        for logger in trainer.loggers:
            logger.log_metrics(logged, step=trainer.global_step)
        pl_module.log_dict(
            logged, on_step=False, on_epoch=True, logger=False, batch_size=1, rank_zero_only=True
        )
        self._warn(trainer.global_step, diagnose(self.latest, self._num_classes(samples)))

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Leave the method as it was."""
        self._release()

    def measure(self, samples: Mapping[str, list[Tensor]]) -> dict[str, float]:
        """Compute all metrics but the gradients'.

        Args:
            samples: for each part the vectors (N, d) of each view, N at least 2.

        Returns:
            Numbers by name, ``<part>/<metric>``.
        """
        metrics = {}
        for part, views in samples.items():
            if views:
                for name, value in feature_metrics(
                    torch.cat(views), self._max_rank.get(part)
                ).items():
                    metrics[f"{part}/{name}"] = value
        z, p = samples.get("z", []), samples.get("p", [])
        if _paired(z) and self.kind == "cross_entropy":
            for name, value in assignment_metrics(*z).items():
                metrics[f"z/{name}"] = value
        if _paired(z) and _paired(p):
            for name, value in loss_metrics(p[0], z[0], p[1], z[1], self.kind).items():
                metrics[f"similarity/{name}"] = value
        return metrics

    def _listener(self, part: str) -> Any:
        def listen(module: nn.Module, _: Any, options: dict[str, Any], output: Tensor) -> None:
            for view in output.chunk(options.get("views", 1)):
                self._samples[part].append(sample_vectors(view, self.vectors // 2))

        return listen

    def _num_classes(self, samples: Mapping[str, list[Tensor]]) -> int | None:
        return (
            samples["z"][0].shape[1] if self.kind == "cross_entropy" and samples.get("z") else None
        )

    def _warn(self, step: int, findings: dict[str, str]) -> None:
        """Tell of what has held twice in a row and was not told before, in one line."""
        held = {name: text for name, text in findings.items() if name in self._suspected}
        new = [text for name, text in held.items() if name not in self.findings]
        self._suspected = set(findings)
        self.findings |= held
        if new:
            warnings.warn(
                f"step {step}: this looks like collapse: {'; '.join(new)}. See docs/collapse.md",
                stacklevel=2,
            )

    def _release(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._samples = [], {}


def sample_vectors(output: Tensor, count: int) -> Tensor:
    """Take vectors from a module's output; of outputs with as many points, from the same points.

    Args:
        output: (B, d) or (B, d, *).
        count: how many to take; all where there are no more.

    Returns:
        (at most count, d) float32 on the CPU, without gradient.
    """
    output = output.detach()[:, :, None].flatten(2)
    B, _, P = output.shape
    # Drawn by a generator of its own, the same for each call: the training's draws stay as they
    # are. A plain stride would meet the same column of every map.
    generator = torch.Generator().manual_seed(0)
    points = B * P
    few = points <= count
    order = torch.arange(points) if few else torch.randint(points, (count,), generator=generator)
    image, point = (index.to(output.device) for index in (order // P, order % P))
    return output[image, :, point].float().cpu()


def _paired(views: list[Tensor]) -> bool:
    return len(views) == 2 and views[0].shape == views[1].shape

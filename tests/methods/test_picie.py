"""PiCIE: its clusters, its losses against plain PyTorch, and when it clusters."""

import warnings

import lightning as L
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.utils.data import DataLoader

from densesiam.evaluation import ClusterMetrics
from densesiam.methods import PiCIE
from densesiam.methods.losses.clustering import MiniBatchKMeans, assign
from tests.methods.support import batch, scenes
from tests.tolerance import assert_close, terms_of

# The loaders here are tiny, and the CPU is meant.
pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    # Lightning's own use of libraries that have moved on.
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message=".*self.trainer.* reference is not registered")


# Clusters


def clouds(count=300):
    """Three well separated clouds of unequal size, and the number of each point's."""
    centres = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, -5.0]])
    labels = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), count, replacement=True)
    return centres[labels] + 0.3 * torch.randn(count, 3), labels


def test_centroids_are_the_means_of_all_batches():
    vectors, labels = clouds()
    kmeans = MiniBatchKMeans(3, unit=False)
    for part in vectors.split(60):
        kmeans.update(part)
    means = torch.stack([vectors[labels == k].mean(dim=0) for k in range(3)])
    order = assign(means, kmeans.centroids)
    assert sorted(order.tolist()) == [0, 1, 2]
    assert_close(kmeans.centroids[order], means, terms=len(vectors))
    assert kmeans.counts[order].tolist() == torch.bincount(labels).tolist()
    assert torch.equal(assign(vectors, kmeans.centroids), order[labels])


def test_unit_centroids_have_length_1_and_a_direction_of_each_cloud():
    vectors, labels = clouds()
    kmeans = MiniBatchKMeans(3, unit=True)
    for part in F.normalize(vectors, dim=1).split(60):
        kmeans.update(part)
    assert_close(kmeans.centroids.norm(dim=1), torch.ones(3), terms=2 * 3)
    nearest = assign(F.normalize(vectors, dim=1), kmeans.centroids)
    assert all(len(nearest[labels == k].unique()) == 1 for k in range(3))


def test_nearest_centroid_is_the_one_of_least_distance():
    vectors, centroids = torch.randn(50, 4), torch.randn(7, 4)
    expected = torch.cdist(vectors, centroids).argmin(dim=1)
    assert torch.equal(assign(vectors, centroids), expected)


def test_fewer_vectors_than_clusters():
    with pytest.raises(ValueError, match="2 features do not suffice for 3 clusters"):
        MiniBatchKMeans(3, unit=False).update(torch.randn(2, 4))


def halves():
    torch.manual_seed(4)
    return clouds()


def cluster_half(store, rank):
    """One of two processes, which meets every other vector."""
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    try:
        kmeans = MiniBatchKMeans(3, unit=False)
        for part in halves()[0][rank::2].split(50):
            kmeans.update(part)
        return kmeans
    finally:
        dist.destroy_process_group()


def other_process(_, store):
    cluster_half(store, 1)


def test_processes_cluster_together(tmp_path):
    store = str(tmp_path / "store")
    process = mp.start_processes(
        other_process, (store,), nprocs=1, join=False, start_method="spawn"
    )
    kmeans = cluster_half(store, 0)
    while not process.join():
        pass
    vectors, labels = halves()
    means = torch.stack([vectors[labels == k].mean(dim=0) for k in range(3)])
    order = assign(means, kmeans.centroids)
    assert_close(kmeans.centroids[order], means, terms=len(vectors))
    assert kmeans.counts[order].tolist() == torch.bincount(labels).tolist()


# Losses


def tiny(**options):
    defaults = {
        "num_classes": 4,
        "backbone": "test_resnet",
        "strides": (4, 8),
        "channels": 16,
        "lr": 0.05,
    }
    return PiCIE(**(defaults | options))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("rebalance", ["none", "inverse"])
def test_losses_are_cross_entropies_of_distances(metric, rebalance):
    model = tiny(metric=metric, rebalance=rebalance)
    model.centroids.normal_()
    if metric == "cosine":
        model.centroids.copy_(F.normalize(model.centroids, dim=2))
    model.counts.copy_(torch.tensor([[10, 20, 30, 40], [5, 5, 50, 40]]))
    features = torch.randn(2, 3, 16, 5, 6).unbind()
    old = torch.randn(2, 3, 16, 5, 6).unbind()
    weight = torch.tensor([True, False, True])
    teachers = [model.logits(f, mu) for f, mu in zip(old, model.centroids, strict=True)]
    losses = model.losses(*features, *teachers, weight)

    def distances(maps, view):
        vectors = maps.movedim(1, -1)
        if metric == "cosine":
            vectors = vectors / vectors.norm(dim=-1, keepdim=True)
        return (vectors[..., None, :] - model.centroids[view]).square().sum(-1)

    def toward(view, maps):
        labels = distances(old[view], view).argmin(-1)
        log_probabilities = (-distances(maps, view)).log_softmax(-1)
        values = -log_probabilities.gather(-1, labels[..., None])[..., 0]
        if rebalance == "inverse":
            n = model.counts[view]
            values = values * (n.sum() / (4 * n))[labels]
        return values[weight].mean()

    within = (toward(0, features[0]) + toward(1, features[1])) / 2
    cross = (toward(1, features[0]) + toward(0, features[1])) / 2
    # Distances are sums over 16 channels, and losses means over the pixels of two images.
    for name, expected in (("within", within), ("cross", cross)):
        assert_close(losses[name], expected, terms=3 * 16 + 2 * 30, rms=32)


def test_labels_receive_no_gradient_and_come_from_the_frozen_encoder():
    model = tiny()
    model.cluster([batch()])
    assert not any("labeller" in name for name in model.state_dict())
    labeller = model._labeller[0]
    before = {name: value.clone() for name, value in labeller.state_dict().items()}
    model.training_step(batch()).backward()
    assert all(p.grad is None for p in labeller.parameters())
    assert all(p.grad is not None for p in model.parameters())
    # The step's batch statistics went into the encoder, not into its frozen copy.
    assert all(torch.equal(value, before[name]) for name, value in labeller.state_dict().items())


# Trainings


class Scenes(L.LightningDataModule):
    def train_dataloader(self):
        whole = scenes()
        items = [
            dict(zip(whole, values, strict=True)) for values in zip(*whole.values(), strict=True)
        ]
        return DataLoader(items, batch_size=4)

    def val_dataloader(self):
        images = scenes()["view2"]
        labels = torch.zeros(8, 64, 96, dtype=torch.int64)
        return DataLoader(
            [{"image": i, "label": k} for i, k in zip(images, labels, strict=True)], batch_size=4
        )


def trainer(**options):
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "max_epochs": 1,
    }
    return L.Trainer(**(defaults | options))


def test_clusters_fit_the_trained_encoder(tmp_path):
    model = tiny()
    run = trainer(max_epochs=2)
    run.fit(model, datamodule=Scenes())
    run.save_checkpoint(tmp_path / "picie.ckpt")
    trained = model.centroids.clone()
    model.cluster(Scenes().train_dataloader())
    assert_close(model.centroids, trained, terms=terms_of(model) + 8 * 8 * 12)
    assert model.counts.sum(dim=1).tolist() == [8 * 8 * 12] * 2

    # A checkpoint brings the clusters with it, and goes on from them.
    loaded = PiCIE.load_from_checkpoint(tmp_path / "picie.ckpt")
    images = scenes()["view2"]
    assert_close(loaded.segment(images), model.segment(images), terms_of(model))
    clustered = []
    loaded.cluster = lambda batches: clustered.append(loaded.current_epoch)
    resumed = trainer(max_epochs=3)
    resumed.fit(loaded, datamodule=Scenes(), ckpt_path=tmp_path / "picie.ckpt", weights_only=True)
    assert clustered == [2]


def test_training_separates_the_colours_of_scenes():
    model = tiny(lr=0.1)
    run = trainer(max_epochs=10)
    seen = []

    class Metrics(L.Callback):
        def on_train_epoch_end(self, trainer, model):
            seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    run.callbacks.append(Metrics())
    run.fit(model, datamodule=Scenes())
    assert seen[-1]["train/loss"] < 0.6 * seen[0]["train/loss"]
    assert seen[-1]["train/agreement"] > 0.85  # from 0.65 in the first epoch
    assert seen[-1]["train/usage_perplexity"] > 2


def test_validation_before_training_clusters_first():
    model = tiny()
    model.evaluator = ClusterMetrics(num_clusters=4, num_classes=2)
    trainer(limit_val_batches=1.0).validate(model, datamodule=Scenes(), verbose=False)
    assert model.counts.any()


def test_clustering_needs_a_data_module():
    with pytest.raises(ValueError, match="give the trainer a data module"):
        trainer().fit(tiny(), Scenes().train_dataloader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"metric": "manhattan"}, "metric must be one of cosine, euclidean"),
        ({"rebalance": "frequency"}, "rebalance must be one of none, inverse"),
        ({"cluster_batches": 0}, "cluster_batches must be at least 1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)

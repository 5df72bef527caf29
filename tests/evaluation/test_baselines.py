import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import pairwise_distances_argmin
from torch import nn

from densesiam.evaluation import ClusterMetrics
from densesiam.evaluation.baselines import ColourPosition, KMeans, OneClass, settle_statistics
from densesiam.models import Encoder
from tests.tolerance import about, assert_close

COLOURS = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 2], [-2, -2, -2]])


def scenes(count=6, cells=6, size=4, seed=0):
    """Blocks of four colours with a little noise, and which colour each pixel has."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count, cells, cells), generator=generator)
    labels = labels.repeat_interleave(size, 1).repeat_interleave(size, 2)
    images = COLOURS[labels].movedim(-1, 1)
    return images + 0.1 * torch.randn(images.shape, generator=generator), labels


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def score(segment, images, labels, num_clusters):
    metrics = ClusterMetrics(num_clusters, 4)
    metrics.update(segment(images), labels)
    return metrics.compute()


def test_one_class_finds_the_largest_class():
    labels = torch.tensor([[[0, 1], [1, 1]], [[3, 1], [2, 255]]])
    result = score(OneClass(4), torch.zeros(2, 3, 2, 2), labels, 4)
    assert result["accuracy"] == pytest.approx(4 / 7)
    assert result["miou"] == pytest.approx(4 / 7 / 4)
    assert result["assignment"][0] == 1


def test_colour_and_position():
    images = noise(2, 3, 4, 5)
    x = ColourPosition()(images)
    assert torch.equal(x[:, :3], images)
    assert_close(x[1, 3], ((torch.arange(5) + 0.5) / 5).expand(4, 5), terms=2)
    assert_close(x[1, 4], ((torch.arange(4) + 0.5) / 4)[:, None].expand(4, 5), terms=2)


def test_kmeans_finds_clusters_that_are_there():
    images, labels = scenes()
    # Where k-means starts decides what it finds; among these seeds one must find all four.
    found = [
        float(score(KMeans(nn.Identity(), 4, seed).fit(images.split(2)), images, labels, 4)["miou"])
        for seed in range(5)
    ]
    assert max(found) > 0.99


def test_logits_belong_to_the_nearest_centre_of_the_enlarged_features():
    images = noise(4, 3, 6, 8)
    kmeans = KMeans(nn.Identity(), 5).fit([images])
    size = (24, 32)

    def enlarge(maps):
        return F.interpolate(maps, size, mode="bilinear", align_corners=False)

    features = (enlarge(images) - kmeans.mean[:, None, None]) / kmeans.deviation[:, None, None]
    pixels = features.movedim(1, -1).flatten(0, 2).numpy()
    nearest = pairwise_distances_argmin(pixels, kmeans.centres.numpy()).reshape(4, *size)
    assert (enlarge(kmeans(images)).argmax(dim=1).numpy() == nearest).mean() > 0.9999


def test_kmeans_gives_all_channels_one_weight():
    images = noise(8, 3, 6, 8)
    stretched = images * torch.tensor([1.0, 1000, 0.001])[:, None, None] + 5
    plain, scaled = (KMeans(nn.Identity(), 5).fit([x]) for x in (images, stretched))
    # Roundings of float32 move single pixels on the border between two centres.
    same = plain(images).argmax(dim=1) == scaled(stretched).argmax(dim=1)
    assert same.float().mean() > 0.99
    scale = scaled.deviation[1] / plain.deviation[1]
    assert float(scale) == about(1000, terms=images[:, 0].numel())


def test_kmeans_follows_from_its_seed():
    batches = noise(8, 3, 40, 40).split(4)
    first, again, other = (
        KMeans(nn.Identity(), 5, seed, pixels_per_image=100).fit(batches).centres
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-3


def test_kmeans_is_saved_with_its_centres():
    images = noise(4, 3, 6, 8)
    kmeans = KMeans(nn.Identity(), 5).fit([images])
    assert set(kmeans.state_dict()) == {"mean", "deviation", "centres"}


def test_kmeans_on_a_frozen_encoder_leaves_it_as_it_is():
    encoder = Encoder("test_resnet", strides=[8], fpn=False)
    before = {name: t.clone() for name, t in encoder.state_dict().items()}
    kmeans = KMeans(encoder, 3).fit([noise(4, 3, 32, 48)])
    assert kmeans(noise(2, 3, 32, 48)).shape == (2, 3, 4, 6)
    after = encoder.state_dict()
    assert all(torch.equal(after[name], t) for name, t in before.items())


class Recording(nn.Identity):
    """Notes of each batch whether it is to be differentiated."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, images):
        self.calls.append(torch.is_grad_enabled())
        return images


def test_images_are_read_once_for_statistics_and_twice_for_centres():
    features = Recording()
    KMeans(features, 2).fit(noise(4, 3, 6, 8).split(2))
    assert features.calls == [False] * 2 * 3
    KMeans(features, 2).fit(noise(4, 3, 6, 8).split(2), passes=4)
    assert len(features.calls) == 2 * 3 + 2 * 5


def test_settling_keeps_nothing_for_a_backward():
    model = Recording()
    settle_statistics(model, noise(4, 3, 6, 8).split(2))
    assert model.calls == [False, False]


def test_a_single_pass_over_the_images_is_refused():
    with pytest.raises(ValueError, match="several times"):
        KMeans(nn.Identity(), 2).fit(iter([noise(2, 3, 4, 4)]))


def test_kmeans_says_what_is_missing():
    with pytest.raises(RuntimeError, match="call fit first"):
        KMeans(nn.Identity(), 2)(noise(2, 3, 4, 4))
    with pytest.raises(ValueError, match="no batch"):
        KMeans(nn.Identity(), 2).fit([])
    with pytest.raises(ValueError, match="8 pixels is too small for 9 clusters"):
        KMeans(nn.Identity(), 9, pixels_per_image=4).fit([noise(2, 3, 4, 4)])
    with pytest.raises(ValueError, match="at least 1"):
        KMeans(nn.Identity(), 0)


def test_settled_statistics_are_those_of_the_images():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, affine=False))
    images = 3 * noise(6, 3, 10, 10) + 1
    settle_statistics(model, images.split(2))
    assert not model.training
    output = model(images)
    means = output.mean(dim=(0, 2, 3))
    assert_close(means, torch.zeros_like(means), terms=output[:, 0].numel(), rms=1)
    # Batches of equal size: the mean of their variances lacks that of their means, here 2 %.
    assert (output.var(dim=(0, 2, 3)) - 1).abs().max() < 0.05
    assert model[1].momentum == 0.1


def test_settling_spares_a_frozen_backbone_and_all_weights():
    encoder = Encoder("test_resnet", strides=[4, 8], normalize_stages=True, backbone_lr_factor=0)
    for layer in encoder.backbone.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.fill_(0.5)  # as if it had been trained
    before = {name: t.clone() for name, t in encoder.state_dict().items()}
    settle_statistics(encoder, [noise(4, 3, 32, 48)])
    after = encoder.state_dict()
    changed = {name for name, t in before.items() if not torch.equal(after[name], t)}
    assert changed
    assert all(name.startswith("norms.") for name in changed)

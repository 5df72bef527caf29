from collections import Counter

import pytest

from densesiam.data import Draw, EvaluationSampler, TrainingSampler
from densesiam.data.order.sampler import EvaluationBatches


def epoch(sampler, number):
    sampler.set_epoch(number)
    draws = list(sampler)
    assert len(draws) == len(sampler)
    return draws


def test_one_pass():
    sampler = TrainingSampler(50)
    first, second = epoch(sampler, 0), epoch(sampler, 1)
    for number, draws in enumerate((first, second)):
        assert sorted(draw.index for draw in draws) == list(range(50))
        assert {(draw.epoch, draw.repetition) for draw in draws} == {(number, 0)}
    assert [d.index for d in first] != [d.index for d in second]
    assert epoch(sampler, 0) == first == epoch(TrainingSampler(50), 0)
    assert [d.index for d in epoch(TrainingSampler(50, seed=1), 0)] != [d.index for d in first]


def test_repetition_gives_distinct_draws():
    draws = epoch(TrainingSampler(9, samples=24), 2)
    assert len(draws) == len(set(draws)) == 24
    counts = Counter(draw.index for draw in draws)
    assert set(counts.values()) == {2, 3}
    assert len(counts) == 9
    assert [draw.repetition for draw in draws] == [0] * 9 + [1] * 9 + [2] * 6
    passes = [[d.index for d in draws if d.repetition == r] for r in (0, 1)]
    assert passes[0] != passes[1]


def test_a_part_of_the_images():
    sampler = TrainingSampler(100, samples=10)
    parts = [{draw.index for draw in epoch(sampler, e)} for e in range(5)]
    assert all(len(part) == 10 for part in parts)
    assert len(set.union(*parts)) > 30


@pytest.mark.parametrize(("num_images", "samples"), [(50, None), (9, 31), (50, 23)])
def test_processes_share_an_epoch(num_images, samples):
    left_out = set()
    for number in range(3):
        ranks = [
            epoch(TrainingSampler(num_images, samples, num_replicas=4, rank=r), number)
            for r in range(4)
        ]
        assert len({len(draws) for draws in ranks}) == 1
        together = [draw for draws in ranks for draw in draws]
        whole = epoch(TrainingSampler(num_images, samples), number)
        assert len(together) == len(set(together)) == len(whole) // 4 * 4
        assert set(together) <= set(whole)
        left_out |= {draw.index for draw in set(whole) - set(together)}
    assert len(left_out) > len(whole) % 4, "not always the same images are left out"


@pytest.mark.parametrize(("num_images", "num_replicas"), [(10, 4), (8, 4), (3, 4), (5, 1), (1, 3)])
def test_evaluation_counts_each_image_once(num_images, num_replicas):
    ranks = [list(EvaluationSampler(num_images, num_replicas, r)) for r in range(num_replicas)]
    assert len({len(draws) for draws in ranks}) == 1
    assert len(ranks[0]) == len(EvaluationSampler(num_images, num_replicas, 0))
    draws = [draw for draws in ranks for draw in draws]
    counted = sorted(draw.index for draw in draws if draw.repetition == 0)
    assert counted == list(range(num_images))
    if num_replicas == 1:
        assert draws == [Draw(i) for i in range(num_images)]


@pytest.mark.parametrize(("num_images", "num_replicas"), [(17, 1), (17, 2), (17, 3), (1, 3)])
def test_batches_of_one_shape(num_images, num_replicas):
    shapes = [(i * i) % 3 for i in range(num_images)]  # 0 and 1
    asked = []

    def shape_of(index):
        asked.append(index)
        return shapes[index]

    ranks = []
    for rank in range(num_replicas):
        asked.clear()
        sampler = EvaluationBatches(num_images, 4, shape_of, num_replicas, rank)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler)
        assert asked == list(range(num_images))
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for batches in ranks for batch in batches]
    assert all(len({shapes[draw.index] for draw in batch}) == 1 for batch in batches)
    counted = [draw.index for batch in batches for draw in batch if draw.repetition == 0]
    assert sorted(counted) == list(range(num_images))
    full = sum(len(batch) == 4 and batch[0].repetition == 0 for batch in batches)
    assert full == sum(shapes.count(shape) // 4 for shape in set(shapes))


def test_errors():
    with pytest.raises(ValueError, match="3 samples do not suffice for 4 processes"):
        TrainingSampler(3, num_replicas=4)
    with pytest.raises(ValueError, match="Invalid rank"):
        TrainingSampler(30, num_replicas=4, rank=4)


@pytest.mark.parametrize("replicas", [1, 2])
def test_draws_that_are_done_are_skipped_once(replicas):
    sampler = TrainingSampler(7, 20, num_replicas=replicas, rank=replicas - 1)
    whole = list(sampler)
    sampler.skip(4)
    assert len(sampler) == len(whole)
    assert list(sampler) == whole[4:]
    assert list(sampler) == whole

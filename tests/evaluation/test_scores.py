import torch
from sklearn.metrics import accuracy_score, jaccard_score
from torch.nn.functional import interpolate

from densesiam.evaluation.scores import SegmentationScores
from tests.tolerance import assert_close


def test_scores_are_scikit_learns_at_the_labels_size():
    generator = torch.Generator().manual_seed(0)
    batches = [
        (
            torch.randn(number, 4, 3, 5, generator=generator),
            torch.randint(4, (number, height, width), generator=generator),
        )
        for number, height, width in ((3, 8, 10), (1, 11, 6))
    ]
    scores = SegmentationScores(4, ignore_index=9)
    truth, found = [], []
    for logits, labels in batches:
        labels[:, 0] = 9
        scores.update(logits, labels.to(torch.uint8))
        prediction = interpolate(logits, labels.shape[1:], mode="bilinear").argmax(1)
        counted = labels != 9
        truth.append(labels[counted])
        found.append(prediction[counted])
    truth, found = torch.cat(truth).numpy(), torch.cat(found).numpy()
    result = scores.compute()
    iou = jaccard_score(truth, found, average=None)
    # Quotients of whole numbers, and a mean of four.
    assert_close(result["iou"], torch.from_numpy(iou), terms=1, rms=1)
    assert_close(result["miou"], torch.tensor(iou.mean()), terms=4, rms=1)
    assert_close(result["accuracy"], torch.tensor(accuracy_score(truth, found)), terms=1, rms=1)
    assert scores.by_name(["a", "b", "c", "d"])["iou/c"] == float(result["iou"][2])

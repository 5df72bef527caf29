import math

import torch

from densesiam import reference
from densesiam.reference.overlap_sample import whole_map_boxes
from tests.ops.suite import Case, Error, Maker, OpSuite
from tests.rounding import may_round


def views(kind, **keywords):
    def make(m: Maker):
        p, z = m.features(3, 8, 7, 9), m.features(3, 8, 6, 5)
        return [p, z, m.boxes(3), m.boxes(3), (3, 4), kind, m.weights(3)]

    return Case(make, keywords=keywords)


class TestOverlapSimilarity(OpSuite):
    op = "overlap_similarity"
    BOXES = (2, 3)
    rounds_in_input_dtype = True  # the composition rounds the samples; fused kernels need not
    CASES = {
        "cosine": views("cosine"),
        "cosine, each sample": views("cosine", reduction="none"),
        "cross-entropy": views("cross_entropy"),
        "whole target": Case(
            lambda m: [m.features(2, 4, 5, 6), m.features(2, 4, 5, 6), m.boxes(2), None, 4]
        ),
        "whole maps": Case(
            lambda m: [m.features(2, 4, 5, 6), m.features(2, 4, 3, 3), None, None, (5, 6)]
        ),
        "one channel": Case(
            lambda m: [m.features(2, 1, 5, 6), m.features(2, 1, 4, 4), m.boxes(2), m.boxes(2), 3],
            keywords={"reduction": "none"},
            cancels=True,
        ),
        "seven": Case(
            lambda m: [m.features(2, 20, 8, 8), m.features(2, 20, 8, 8), m.boxes(2), m.boxes(2), 7]
        ),
    }
    ERRORS = {
        "channels": Error(
            lambda m: [m.features(2, 3, 4, 4), m.features(2, 4, 4, 4), None, None, 3],
            ValueError,
            "p and z must have one batch size and number of channels, got shapes (2, 3, 4, 4) and "
            "(2, 4, 4, 4)",
        ),
        "boxes_z": Error(
            lambda m: [m.features(2, 3, 4, 4), m.features(2, 3, 4, 4), None, m.boxes(3), 3],
            ValueError,
            "boxes_z must have shape (B, 4) = (2, 4)",
        ),
        "NaN boxes_p": Error(
            lambda m: [
                m.features(2, 3, 4, 4),
                m.features(2, 3, 4, 4),
                m.boxes(2) * math.nan,
                None,
                3,
            ],
            ValueError,
            "boxes_p must be finite, got [nan, nan, nan, nan] for sample 0",
        ),
        "an infinite box of z": Error(
            lambda m: [
                m.features(2, 3, 4, 4),
                m.features(2, 3, 4, 4),
                m.boxes(2),
                torch.tensor([[0, 0, 1, 1], [0, 0, 1, math.inf]], device=m.device),
                3,
            ],
            ValueError,
            "boxes_z must be finite, got [0.0, 0.0, 1.0, inf] for sample 1",
        ),
        "kind": Error(
            lambda m: [m.features(2, 3, 4, 4), m.features(2, 3, 4, 4), None, None, 3, "dot"],
            ValueError,
            "kind must be one of cosine, cross_entropy, got 'dot'",
        ),
    }

    def oracle(self, args, keywords=None):
        p, z, boxes_p, boxes_z, size, *rest = args
        boxes_p = whole_map_boxes(p) if boxes_p is None else boxes_p
        boxes_z = whole_map_boxes(z) if boxes_z is None else boxes_z
        samples = [
            may_round(reference.overlap_sample(features, boxes, size))
            for features, boxes in ((p, boxes_p), (z, boxes_z))
        ]
        return reference.pixel_similarity(*samples, *rest, **(keywords or {}))

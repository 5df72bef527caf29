from tests.ops.suite import Case, Error, Maker, OpSuite


def maps(*shape: int, **keywords):
    return Case(lambda m: [m.features(*shape), m.features(*shape)], **keywords)


def weighted(m: Maker):
    return [m.features(3, 9, 5, 7), m.features(3, 9, 5, 7), m.weights(3)]


class TestPixelL2(OpSuite):
    op = "pixel_l2"
    CASES = {
        "mean": maps(3, 9, 5, 7),
        "weighted": Case(weighted),
        "each pixel": Case(weighted, keywords={"reduction": "none"}),
        "many channels": maps(2, 300, 3),
        "many pixels": maps(2, 8, 37, 41),
        "one pixel": maps(2, 16, 1, 1),
        "one channel": maps(2, 1, 3, 5, keywords={"reduction": "none"}, cancels=True),
    }
    ERRORS = {
        "shapes": Error(
            lambda m: [m.features(2, 3, 4, 4), m.features(2, 3, 4, 5)],
            ValueError,
            "p and z must have one shape, got (2, 3, 4, 4) and (2, 3, 4, 5)",
        ),
        "reduction": Error(
            lambda m: [m.features(2, 3, 4), m.features(2, 3, 4)],
            ValueError,
            "reduction must be one of mean, none, got 'sum'",
            keywords={"reduction": "sum"},
        ),
    }

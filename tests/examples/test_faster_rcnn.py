"""The example of a detector that takes this project's roi_align in one line."""

from importlib import import_module

from densesiam import ops
from examples import faster_rcnn
from tests.tolerance import assert_close, terms_of


def test_outputs_are_the_same(monkeypatch, capsys):
    calls = []
    roi_align = ops.roi_align

    def recording(*args, **kwargs):
        calls.append(args)
        return roi_align(*args, **kwargs)

    monkeypatch.setattr(ops, "roi_align", recording)
    runs = []
    run = faster_rcnn.run
    monkeypatch.setattr(faster_rcnn, "run", lambda: runs.append(run()) or runs[-1])
    faster_rcnn.main()
    theirs, ours = runs
    assert len(calls) == 4  # two levels of a pyramid, in training and in detection
    terms = terms_of(faster_rcnn.make()[0])
    for name, expected in theirs.items():
        assert expected.numel(), name
        assert_close(ours[name], expected, terms=terms)
    assert theirs["gradients"].any()
    assert capsys.readouterr().out.count("apart by") == len(theirs)


def test_torchvision_gets_its_own_back():
    poolers = import_module("torchvision.ops.poolers")
    theirs = poolers.roi_align
    with faster_rcnn.our_roi_align():
        assert poolers.roi_align is not theirs
    assert poolers.roi_align is theirs

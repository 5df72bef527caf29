import pytest

from benchmarks.devices import DEVICES
from benchmarks.measure import Timing
from benchmarks.predict import LAUNCH, floors

from .synthetic import results, row

H100 = DEVICES["H100 SXM"]


@pytest.fixture(scope="module")
def every():
    return list(floors(list(DEVICES.values()), batch=64))


def test_memory_bound_floor():
    wanted = ("overlap_sample", "segmentation", "contiguous", "float32")
    (floor,) = [f for f in floors([H100], 64) if (f.op, f.name, f.layout, f.dtype) == wanted]
    # Forward reads the map and writes as much; backward reads that and writes the map.
    size = 4 * 64 * 128 * 80 * 80 * 4
    assert floor.milliseconds == pytest.approx(1e3 * (size / 3.35e12 + 2 * LAUNCH))
    assert floor.bound == "memory"
    assert floor.launches == 2


def test_products_bound_only_where_tensor_cores_do_not_help(every):
    bounds = {
        (f.name, f.dtype): f.bound for f in every if f.op == "region_pool" and f.device == H100.name
    }
    assert bounds["128 regions", "float32"] == "products"
    assert bounds["128 regions", "float16"] == "memory"
    assert bounds["27 regions", "float32"] == "memory"


def test_every_kernel_is_in_the_audit(every):
    assert {f.op for f in every if f.registers is None} == set()
    assert all(8 <= f.warps <= DEVICES[f.device].warps for f in every)
    assert all(f.in_flight > 0 for f in every)


def test_a_batch_of_one_is_bound_by_launches():
    floor = next(floors([DEVICES["B200 SXM"]], batch=1))
    assert floor.bound == "launches"


def test_measured_times_stand_beside_their_prediction():
    one = row(shape="64x128x80x80 -> 80x80")
    times = {"cuda": Timing(0.5, 0.4, 0.6), "clone": Timing(0.3, 0.3, 0.3)}
    result = results([type(one)(**{**vars(one), "milliseconds": times})])
    result.machine["device"] = "NVIDIA H100 80GB HBM3"
    beside = [f for f in floors(list(DEVICES.values()), 64, result) if f.measured]
    assert [(f.device, f.op, f.layout, f.dtype, f.measured) for f in beside] == [
        ("H100 SXM", "overlap_sample", "contiguous", "float32", {"cuda": 0.5})
    ]

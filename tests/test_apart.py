import pytest

from tests.apart import run_apart


def test_what_ends_well_passes():
    run_apart("-c", "print(1)")


def test_a_crash_is_a_failure():
    with pytest.raises(AssertionError, match=r"string_at\(0\): SIGSEGV\n"):
        run_apart("-c", "import ctypes; ctypes.string_at(0)")


def test_an_error_is_a_failure_that_says_why():
    with pytest.raises(AssertionError, match=r"(?s)python -c 1/0: exit code 1\n.*division by zero"):
        run_apart("-c", "1/0")

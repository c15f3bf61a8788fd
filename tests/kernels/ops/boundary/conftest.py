"""What the tests of the boundary share."""

import pytest

from emulated_boundary import compile_emulator


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The CUDA kernels, compiled for the CPU."""
    return compile_emulator(tmp_path_factory.mktemp("emulated"))

"""The ahead-of-time build of the CUDA operators. Compiling for real needs nvcc, no GPU."""

from pathlib import Path

import pytest

from shadow_kernels import build as build_module
from shadow_kernels.build import ARCHITECTURES, BuildError, build, find_nvcc, find_sources

FAKE_NVCC = """#!/bin/sh
echo call >>"{log}"
while [ "$1" != -o ]; do shift; done
echo library >"$2"
"""


@pytest.fixture
def calls(tmp_path, monkeypatch) -> Path:
    """A compiler that writes something; each of its runs is a line of the returned file."""
    nvcc, log = tmp_path / "bin" / "nvcc", tmp_path / "log"
    nvcc.parent.mkdir()
    nvcc.write_text(FAKE_NVCC.format(log=log))
    nvcc.chmod(0o755)
    monkeypatch.setattr(build_module, "find_nvcc", lambda: nvcc)
    return log


def test_built_again_it_compiles_nothing(calls, tmp_path):
    output = tmp_path / "lib.so"
    assert build(output)
    assert not build(output)
    assert output.read_text() == "library\n"
    assert calls.read_text().count("call") == 1


def test_other_architectures_compile_again(calls, tmp_path):
    output = tmp_path / "lib.so"
    build(output)
    assert build(output, ["80"])
    assert calls.read_text().count("call") == 2


def test_changed_sources_compile_again(calls, tmp_path, monkeypatch):
    sources = tmp_path / "csrc"
    sources.mkdir()
    (sources / "a.cu").write_text("one")
    monkeypatch.setattr(build_module, "find_sources", lambda: sources)
    output = tmp_path / "lib.so"
    build(output)
    (sources / "a.cu").write_text("two")
    assert build(output)


def test_without_a_compiler_it_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "find_nvcc", lambda: None)
    with pytest.raises(BuildError, match="CUDA_HOME"):
        build(tmp_path / "lib.so")


def test_a_failed_build_keeps_the_library_and_reports_the_compiler(tmp_path, monkeypatch):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'error: expected a ;' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    monkeypatch.setattr(build_module, "find_nvcc", lambda: nvcc)
    output = tmp_path / "lib.so"
    output.write_text("old")
    with pytest.raises(BuildError, match="expected a ;"):
        build(output)
    assert output.read_text() == "old"


def test_the_arithmetic_knows_no_tensor_library():
    headers = list((find_sources() / "include").rglob("*.*"))
    assert len(headers) >= 4
    for path in [*headers, find_sources() / "boundary.cu"]:
        assert "torch" not in path.read_text()


@pytest.mark.slow
@pytest.mark.skipif(find_nvcc() is None, reason="needs nvcc")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_sources_compile(architecture, tmp_path):
    output = tmp_path / "lib.so"
    build(output, [architecture])
    assert output.read_bytes().startswith(b"\x7fELF")

"""`auto` selects bf16 only on hardware with native bf16; an environment variable overrides the detection."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clipvid.runtime import precision
from clipvid.runtime.precision import autocast, is_finite, native_bf16, resolve

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PACKAGE = Path(precision.__file__).parent


@pytest.fixture
def hardware(monkeypatch) -> pytest.MonkeyPatch:
    """Simulated CPU with bf16 instructions and a oneDNN that uses them; tests remove one or the other."""
    for name in ("CLIPVID_NATIVE_BF16", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True, raising=False)
    return monkeypatch


def test_auto_is_bf16_if_the_instructions_and_onednn_support_it(hardware):
    assert native_bf16(CPU)
    assert resolve("auto", CPU) == "bf16-mixed"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (torch.cpu, "_is_avx512_bf16_supported"),
        (torch.backends.mkldnn, "is_available"),
        (torch.ops.mkldnn, "_is_mkldnn_bf16_supported"),
    ],
)
def test_auto_is_float32_if_one_of_them_is_missing(hardware, module, name):
    hardware.setattr(module, name, lambda: False, raising=False)
    assert not native_bf16(CPU)
    assert resolve("auto", CPU) == "32-true"


@pytest.mark.parametrize("cap", ["AVX512_CORE", "avx512_core_vnni"])
def test_auto_is_float32_if_onednn_is_barred_from_the_instructions(hardware, cap):
    hardware.setenv("ONEDNN_MAX_CPU_ISA", cap)
    assert resolve("auto", CPU) == "32-true"


def test_auto_is_float32_if_torch_cannot_detect_bf16(hardware):
    hardware.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert resolve("auto", CPU) == "32-true"


@pytest.mark.parametrize(("answer", "cpu", "cuda"), [("0", "32-true", "16-mixed"), ("1", "bf16-mixed", "bf16-mixed")])
def test_the_environment_variable_overrides_the_hardware(hardware, answer, cpu, cuda):
    hardware.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: answer == "0", raising=False)
    hardware.setenv("CLIPVID_NATIVE_BF16", answer)
    assert (resolve("auto", CPU), resolve("auto", CUDA)) == (cpu, cuda)
    with autocast("auto", CPU):
        assert torch.is_autocast_enabled("cpu") is (answer == "1")
    for name in ("bf16-mixed", "16-mixed", "32-true"):
        assert resolve(name, CPU) == name, "an explicit precision must not depend on the variable"


@pytest.mark.parametrize("answer", ["", "yes", "2"])
def test_another_value_of_the_environment_variable_is_refused(monkeypatch, answer):
    monkeypatch.setenv("CLIPVID_NATIVE_BF16", answer)
    with pytest.raises(ValueError, match=rf"CLIPVID_NATIVE_BF16 must be 0 or 1, got '{answer}'; unset it to test the"):
        resolve("auto", CPU)


@pytest.mark.parametrize("device", ["mps", "meta"])
def test_devices_with_unverified_bf16_compute_in_float32(monkeypatch, device):
    monkeypatch.setenv("CLIPVID_NATIVE_BF16", "1")
    assert resolve("auto", torch.device(device)) == "32-true"


def test_a_process_whose_onednn_is_limited_to_avx2_computes_in_float32():
    code = "import torch; from clipvid.runtime.precision import resolve; print(resolve('auto', torch.device('cpu')))"
    plain = {name: value for name, value in os.environ.items() if name != "CLIPVID_NATIVE_BF16"}
    env = {**plain, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(PACKAGE.parent)}
    process = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "32-true"


@pytest.mark.native_bf16
def test_tests_marked_native_bf16_run_only_on_such_hardware():
    assert resolve("auto", CPU) == "bf16-mixed"


def test_no_other_file_in_the_package_queries_the_hardware():
    queries = re.compile(r"is_bf16_supported|bf16_supported\(|get_cpu_capability")
    files = {path.name for path in PACKAGE.rglob("*.py") if queries.search(path.read_text(encoding="utf-8"))}
    assert files == {"precision.py"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_single_value_that_is_not_finite_is_noticed_wherever_it_is(dtype):
    values = torch.randn(7, 33).to(dtype)
    assert is_finite(values)
    assert is_finite(values[:0])
    for wrong in (float("nan"), float("inf"), -float("inf")):
        for _ in range(20):
            changed = values.clone()
            changed[random.randrange(7), random.randrange(33)] = wrong
            assert not is_finite(changed)
            assert not is_finite(changed.T)


def test_whole_numbers_are_finite():
    assert is_finite(torch.arange(3))

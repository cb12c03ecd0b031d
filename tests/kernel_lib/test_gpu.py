import torch

from lite_llama.kernel_lib.gpu import A100, B200, H200, INTERPRETER, gpu_spec


def test_dependent_launch_begins_with_hopper() -> None:
    assert [spec.has_pdl for spec in (A100, H200, B200)] == [False, True, True]


def test_a_cpu_is_described_as_the_interpreter() -> None:
    assert gpu_spec(torch.device("cpu")) is INTERPRETER

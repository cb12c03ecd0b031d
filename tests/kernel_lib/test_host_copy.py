import pytest
import torch

from lite_llama.kernel_lib.host_copy import store_to_host


@pytest.mark.parametrize("num_elements", [0, 1, 8, 1024, 2500])
def test_a_result_arrives_whole_and_nothing_beside_it(num_elements: int) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = torch.arange(1, num_elements + 1, device=device)
    host = torch.full((num_elements + 1,), -1, dtype=torch.int64)
    host = host.pin_memory() if device.type == "cuda" else host
    store_to_host(source, host[:-1])
    if device.type == "cuda":
        event = torch.cuda.Event()
        event.record()
        event.synchronize()
    assert host.tolist() == [*range(1, num_elements + 1), -1]

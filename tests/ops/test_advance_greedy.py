import pytest
import torch
from torch import Tensor

from lite_llama.errors import OperatorError
from lite_llama.ops import advance_drawn, advance_greedy
from lite_llama.ops.advance_greedy import kernel, reference
from tests.ops.compare import cases, poison_new_outputs, random


def _step(num_rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Fields in which each row's numbers differ from every other's, and nothing told."""
    at = torch.arange(num_rows, device=device)
    fields = torch.stack((at + 7, 3 * at + 100, 16 * at + 5, 3 * at + 101, at % 2))
    return fields, torch.full((2, num_rows), -1, device=device)


@pytest.mark.parametrize(
    ("shape", "dtype"), cases([(3, 576), (2, 4097)], [(1, 2048), (5, 20000), (1, 128256)])
)
def test_tokens_are_argmax_and_fields_go_on_by_one(
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = shape[0]
    logits = random(*shape, dtype=dtype, device=device)
    fields, told = _step(count + 2, device)
    before = fields.clone()
    poison_new_outputs(monkeypatch)
    kernel.advance_greedy(logits, fields, told)
    columns = torch.arange(shape[1], device=device)
    largest = logits == logits.amax(-1, keepdim=True)
    tokens = torch.where(largest, columns, shape[1]).amin(-1)
    assert torch.equal(fields[0, :count], tokens)
    assert torch.equal(fields[1:4, :count], before[1:4, :count] + 1)
    assert torch.equal(fields[4, :count], 1 - before[4, :count])
    assert torch.equal(fields[:, count:], before[:, count:])
    rows = torch.arange(count, device=device)
    assert torch.equal(told[before[4, :count], rows], tokens)
    told[before[4, :count], rows] = -1
    assert (told == -1).all()


def test_padding_is_left_alone_and_the_reference_agrees(device: torch.device) -> None:
    logits = random(6, 300, dtype=torch.float32, device=device)
    logits[2, [9, 200]] = float("nan")  # the largest, as in torch; the first of them
    logits[3] = float("-inf")
    fields, told = _step(6, device)
    fields[1:4, [1, 4]] = torch.tensor([0, -1, 0], device=device)[:, None]
    want = fields.cpu(), told.cpu()
    reference.advance_greedy(logits.cpu(), *want)
    before = fields.clone()
    kernel.advance_greedy(logits, fields, told)
    assert torch.equal(fields.cpu(), want[0])
    assert torch.equal(told.cpu(), want[1])
    assert torch.equal(fields[:, [1, 4]], before[:, [1, 4]])
    assert fields[0, [2, 3]].tolist() == [9, 0]


def test_tokens_drawn_before_advance_as_those_drawn_here(device: torch.device) -> None:
    tokens = torch.tensor([59, 293, 17, 9], device=device)
    logits = (torch.arange(300, device=device) == tokens[:, None]).float()
    fields, told = _step(6, device)
    fields[1:4, 2] = torch.tensor([0, -1, 0], device=device)  # padding
    want = fields.clone(), told.clone()
    kernel.advance_greedy(logits, *want)
    plain = fields.clone().cpu(), told.clone().cpu()
    reference.advance_drawn(tokens.cpu(), *plain)
    kernel.advance_drawn(tokens, fields, told)
    for got, as_greedy, as_reference in zip((fields, told), want, plain, strict=True):
        assert torch.equal(got, as_greedy)
        assert torch.equal(got.cpu(), as_reference)


def test_steps_in_turn_tell_in_turn(device: torch.device) -> None:
    fields, told = _step(1, device)
    for step, token in enumerate((5, 3, 8)):
        logits = torch.zeros(1, 10, device=device)
        logits[0, token] = 1.0
        kernel.advance_greedy(logits, fields, told)
        assert told[step % 2, 0] == token
        assert fields[:, 0].tolist() == [token, 101 + step, 6 + step, 102 + step, 1 - step % 2]
    assert told[:, 0].tolist() == [8, 3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: memory of a host beside it")
def test_a_host_reads_what_a_step_tells() -> None:
    fields, _ = _step(3, torch.device("cuda"))
    told = torch.full((2, 3), -1).pin_memory()
    logits = random(3, 5000, dtype=torch.float32, device=torch.device("cuda"))
    advance_greedy(logits, fields, told)
    event = torch.cuda.Event()
    event.record()
    event.synchronize()
    tokens = logits.argmax(-1).tolist()
    assert told.tolist() == [[tokens[0], -1, tokens[2]], [-1, tokens[1], -1]]


def test_no_rows_and_calls_against_the_contract(device: torch.device) -> None:
    fields, told = _step(2, device)
    before = fields.clone()
    advance_greedy(torch.empty(0, 9, device=device), fields, told)
    assert torch.equal(fields, before)
    logits = torch.zeros(2, 9, device=device)
    with pytest.raises(OperatorError, match=r"logits has shape \(3, 9\), expected \[0..2, "):
        advance_greedy(torch.zeros(3, 9, device=device), fields, told)
    with pytest.raises(OperatorError, match=r"fields has shape \(4, 2\), expected \(5, 2\)"):
        advance_greedy(logits, fields[:4], told)
    with pytest.raises(OperatorError, match=r"told has shape \(1, 2\), expected \(2, 2\)"):
        advance_greedy(logits, fields, told[:1])
    with pytest.raises(OperatorError, match=r"fields is torch\.int32"):
        advance_greedy(logits, fields.int(), told)
    with pytest.raises(OperatorError, match="expected 1 in the last dimension"):
        advance_greedy(torch.zeros(9, 2, device=device).T, fields, told)
    tokens = torch.zeros(2, dtype=torch.int64, device=device)
    advance_drawn(tokens[:0], fields, told)
    assert torch.equal(fields, before)
    with pytest.raises(OperatorError, match=r"tokens has shape \(3,\), expected \[0..2\]"):
        advance_drawn(torch.zeros(3, dtype=torch.int64, device=device), fields, told)
    with pytest.raises(OperatorError, match=r"tokens has dtype torch\.float32"):
        advance_drawn(tokens.float(), fields, told)
    with pytest.raises(OperatorError, match=r"told has shape \(1, 2\), expected \(2, 2\)"):
        advance_drawn(tokens, fields, told[:1])

"""Rows of a table."""

import torch
from torch import Tensor

from lite_llama.kernel_lib.checks import (
    check_device,
    check_integer,
    check_rank,
    check_unit_stride,
)
from lite_llama.layouts.encoded_rows import EncodedRows
from lite_llama.ops.embedding import reference


def embedding(indices: Tensor, table: Tensor | EncodedRows) -> Tensor:
    """Rows `indices` (any shape) of `table` [num_rows, hidden] -> [*indices.shape, hidden].

    Indices must lie in [0, num_rows); they are not checked on the device.
    A table left in its disk format is decoded to float32.
    """
    check_integer("indices", indices)
    if isinstance(table, EncodedRows):
        return table.gather(indices.reshape(-1)).view(*indices.shape, table.num_columns)
    check_rank("table", table, 2)
    check_unit_stride("table", table)
    check_device("indices", indices, "table", table)
    if indices.numel() == 0 or table.shape[1] == 0:
        return torch.empty(*indices.shape, table.shape[1], dtype=table.dtype, device=table.device)
    if table.is_cuda:
        from lite_llama.ops.embedding import kernel

        return kernel.embedding(indices, table)
    return reference.embedding(indices, table)

"""How a row is cut into groups, and groups into programs."""

from dataclasses import dataclass

from lite_llama.kernel_lib.rows import ceil_div, next_power_of_2

MAX_K = 256
# The second kernel holds a row's group maxima in registers, then k groups: 16384 of either.
_MIN_GROUP, _FEW_GROUPS, _MAX_IN_REGISTERS = 16, 8192, 16384
MAX_COLUMNS = _MAX_IN_REGISTERS // MAX_K * _MAX_IN_REGISTERS
_BLOCK = 4096


@dataclass(frozen=True)
class TopkLaunch:
    """A row is `groups` groups of `group` columns; a program of the first kernel takes `block`
    columns; `groups_block` and `k_block` pad the number of groups and k."""

    group: int
    groups: int
    groups_block: int
    k_block: int
    block: int


def choose_launch(num_columns: int, k: int) -> TopkLaunch:
    """Depends on the row alone, so that a row gives the same bits in any batch."""
    most = _FEW_GROUPS if num_columns <= _FEW_GROUPS * _MIN_GROUP else _MAX_IN_REGISTERS
    group = max(_MIN_GROUP, next_power_of_2(ceil_div(num_columns, most)))
    groups = ceil_div(num_columns, group)
    return TopkLaunch(
        group=group,
        groups=groups,
        groups_block=next_power_of_2(groups),
        k_block=max(16, next_power_of_2(k)),
        block=min(next_power_of_2(groups) * group, _BLOCK),
    )

"""What declares a kernel of rows_of_clusters.cuh, in which a cluster of blocks holds a row."""

import dataclasses
from typing import Any

from .rows import clusters_of


@dataclasses.dataclass(frozen=True)
class Cluster:
    """packs: of a row; rows: how many there are; most: blocks that share one, 8 or 16. The numbers
    are from sweeps on an H200: of softmax, of 64 to 4096 rows of 2048 to 64000 packs, where these
    blocks were the fastest or up to 2 % slower, unless there were few rows of less than 98304
    bytes; of rms_norm, of rows of 8192 and 10240 packs."""

    packs: str
    rows: str
    most: int = 16

    @property
    def ranks(self) -> str:
        """Blocks that share a row: 1024 packs each, if that are not too many blocks."""
        return f"min({self.most}, next_power_of_2(ceil_div({self.packs}, 1024)))"

    @property
    def warps(self) -> str:
        """Warps of a block: few, with up to 16 packs a thread, and 8 where a row is too long for
        that, or so short that threads may hold their packs as float."""
        return f"(8 if {self.packs} <= 4 * 1024 or {self.packs} > {self.most} * 2048 else 4)"

    @property
    def part(self) -> str:
        """Packs of a row that a block has: whole lines of 128 bytes."""
        return f"(8 * ceil_div({self.packs}, 8 * {self.ranks}))"

    @property
    def template(self) -> str:
        """Template arguments RANKS, WARPS and EACH."""
        each = f"ceil_div({self.part}, 32 * {self.warps})"
        return f"{{{self.ranks}}}, {{{self.warps}}}, {{{each}}}"

    @property
    def launch(self) -> dict[str, Any]:
        return {
            "grid": f"{self.ranks} * {self.rows}",
            "block": f"32 * {self.warps}",
            "cluster": self.ranks,  # so that clusters of 16 are allowed
        }

    @property
    def requires(self) -> list[str]:
        """That the blocks hold a row, and the device has clusters of so many."""
        return [
            f"{self.packs} >= 2048 and {self.packs} <= {self.most} * 4096",
            f"{self.ranks} * {self.rows} < 2147483648",
            f"arch(x) >= 90 and ({clusters_of(self.ranks)})",
        ]

"""What declares a kernel of rows_of_clusters.cuh, in which a cluster of blocks holds a row."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Cluster:
    """packs: of a row; rows: how many there are. The numbers are from a sweep on an H200, of 64 to
    4096 rows of 2048 to 64000 packs: these blocks were the fastest, or up to 2 % slower, but for
    few rows of less than 98304 bytes."""

    packs: str
    rows: str

    @property
    def ranks(self) -> str:
        """Blocks that share a row: 1024 packs each, but not more than a cluster may have."""
        return f"min(16, next_power_of_2(ceil_div({self.packs}, 1024)))"

    @property
    def warps(self) -> str:
        """Warps of a block: few, with up to 16 packs a thread, and 8 where a row is too long for
        that, or so short that threads may hold their packs as float."""
        return f"(8 if {self.packs} <= 4 * 1024 or {self.packs} > 16 * 2048 else 4)"

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
        return {"grid": f"{self.ranks} * {self.rows}", "block": f"32 * {self.warps}"}

    @property
    def requires(self) -> list[str]:
        """That 16 blocks hold a row, and the device has clusters of that many: 8 is what all of
        them have that have clusters, and those of data centers have 16."""
        return [
            f"{self.packs} >= 2048 and {self.packs} <= 16 * 4096",
            f"{self.ranks} * {self.rows} < 2147483648",
            f"arch(x) >= 90 and ({self.ranks} <= 8 or arch(x) < 120)",
        ]

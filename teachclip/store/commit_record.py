"""The commit mark of a shard of a store.

`shard-00003.json` is one JSON object:

    {"shard": 3, "sha256": {"video_text": "..."}, "failures": {"1540": "why row 1540 has no value"},
     "remarks": {"1541": "what is to be known of row 1541"}}

with the checksum of each whole `.npy` file and the rows (counted over the whole store) that could not be computed;
`remarks` may be left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Mark(NamedTuple):
    """What the mark of a shard says: checksum by array, reason by row that failed, remark by row."""

    sums: Mapping[str, str]
    failures: Mapping[int, str]
    remarks: Mapping[int, str]

    @classmethod
    def read(cls, file: Path) -> Mark:
        """Read a mark. Raises OSError, ValueError, KeyError, TypeError or AttributeError if it is not whole."""
        content = json.loads(file.read_bytes())
        reasons = ({int(row): str(text) for row, text in found.items()} for found in _texts(content))
        return cls(dict(content["sha256"]), *reasons)

    def to_json(self, shard: int) -> dict[str, Any]:
        """Return the content of the file; without remarks the key is left out."""
        failures, remarks = (
            {str(row): " ".join(str(text).split()) for row, text in sorted(texts.items())}
            for texts in (self.failures, self.remarks)
        )
        content = {"shard": shard, "sha256": dict(self.sums), "failures": failures}
        return {**content, "remarks": remarks} if remarks else content


def _texts(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return content["failures"], content.get("remarks", {})

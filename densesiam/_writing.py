"""Files that are whole at every moment."""

import json
import math
from pathlib import Path
from typing import Any


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that is whole at every moment; nan and infinity become null."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        return [plain(entry) for entry in value] if isinstance(value, list) else value

    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(plain(content), indent=2) + "\n")
    temporary.replace(path)

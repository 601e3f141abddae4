"""Files in bench/results: how they are named and written. Needs neither torch nor adl_kernels."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Content = dict[str, Any]  # of a file: the machine, rows and more


def slug(name: str) -> str:
    """NVIDIA H200 -> nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write_json(path: Path, content: Content) -> None:
    """One entry or row per line, so that two runs can be compared line by line."""
    parts = []
    for key, value in content.items():
        text = json.dumps(value)
        if isinstance(value, list):
            text = "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"
        parts.append(f"{json.dumps(key)}: {text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    # At once, so that the file is whole whenever the program is stopped.
    new = path.with_name(f"{path.name}.new")
    new.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    new.replace(path)


def save(path: Path, content: Content) -> None:
    write_json(path, content)
    print(f"written: {path}")

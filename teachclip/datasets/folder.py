"""The folder of a data set that is made: what it was made from, and whether it is complete."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from teachclip.errors import DataError
from teachclip.store.files import LOCK, read_json, write_atomic
from teachclip.store.fingerprint import describe_difference, fingerprint_of

MANIFEST, PARTIAL_MANIFEST = "manifest.json", "manifest.partial.json"


def check_folder(folder: Path, settings: Mapping[str, Any], name: str) -> None:
    """Raise DataError unless `folder` is empty or was begun with the same settings.

    `name`: of the data set, such as "Shapes". `settings` has `version`, the format of the folder.
    """
    for file in (MANIFEST, PARTIAL_MANIFEST):
        path = folder / file
        if not path.exists():
            continue
        recorded = read_record(path, name)["settings"]
        if recorded.get("version") != settings["version"]:
            raise DataError(
                f"{folder} has the format {recorded.get('version')} of an older teachclip, expected "
                f"{settings['version']}; delete the folder and make the dataset again, which gives the same videos "
                "and captions"
            )
        difference = describe_difference(recorded, settings)
        if difference:
            raise DataError(
                f"{folder} holds another {name} dataset ({difference}); choose another folder or delete it"
            )
        return
    names = sorted(path.name for path in folder.iterdir() if path.name != LOCK)
    if names:
        raise DataError(f"{folder} holds {', '.join(names[:3])} and no {name} dataset; choose an empty folder")


def read_record(path: Path, name: str) -> dict[str, Any]:
    """Return a record with `settings`. Raises DataError if it cannot be read."""
    try:
        content = read_json(path)
        dict(content["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as a record of a {name} dataset ({error!r}); delete its folder"
        ) from error
    return content


def begin(folder: Path, settings: Mapping[str, Any]) -> None:
    """Record what is being made, and remove the manifest until it is complete."""
    write_atomic(folder / PARTIAL_MANIFEST, json.dumps({"settings": settings}, indent=1).encode())
    (folder / MANIFEST).unlink(missing_ok=True)


def complete(folder: Path, settings: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """Write the manifest, which says that everything is there."""
    content = {"settings": settings, "fingerprint": fingerprint_of(settings), "results": results}
    write_atomic(folder / MANIFEST, json.dumps(content, indent=1).encode())
    (folder / PARTIAL_MANIFEST).unlink(missing_ok=True)

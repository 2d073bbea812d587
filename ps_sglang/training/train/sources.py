"""Where training data comes from: JSON lines, parquet, and data sets of Hugging Face.

A table has one set of keys: where a row lacks one, the table has a null, at every depth. Such nulls
were never said and are left out. A table cannot tell a null that the row did say from one that it
invented, so those are left out as well; JSON lines, and columns of JSON text, keep theirs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from ps_sglang.errors import DataError

Add = Callable[[str, str], None]
Rows = Iterator[tuple[str, dict[str, Any]]]

_HUB_NAME: Final = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?::([\w.\[\]%:-]+))?")
_SPLIT: Final = "train"


def read_rows(source: str, add: Add) -> Rows:
    """Where each row stands, for a person, and the row. Lines that are none go to `add`.

    Raises DataError for a source that cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix == ".parquet":
            return _table(path.name, _loaded(source, lambda: _parquet(path)))
        return _json_lines(path, add)
    folder, split = _saved(source)
    if folder is not None:
        return _table(source, _loaded(source, lambda: _from_disk(folder, split)))
    if match := _HUB_NAME.fullmatch(source):
        return _table(source, _loaded(source, lambda: _hub(match[1], match[2] or _SPLIT)))
    raise DataError(
        f"no file {source}; give a .jsonl file or a data set's name (org/name), a .parquet file, "
        "or a folder of save_to_disk"
    )


def _json_lines(path: Path, add: Add) -> Rows:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path.name}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except RecursionError:
                add(where, "is nested too deeply")
                continue
            except ValueError as error:
                add(where, f"is not JSON: {error}")
                continue
            if isinstance(row, dict):
                yield where, row
            else:
                add(where, f"must be a JSON object, not {type(row).__name__}")


def _saved(source: str) -> tuple[Path | None, str]:
    """The folder that `save_to_disk` wrote, and the split of it: `folder` or `folder:split`."""
    name, colon, split = source.rpartition(":")
    for folder, part in ((source, _SPLIT), (name, split)) if colon else ((source, _SPLIT),):
        path = Path(folder).expanduser()
        if any((path / file).is_file() for file in ("dataset_dict.json", "state.json")):
            return path, part
    return None, _SPLIT


def _loaded(source: str, load: Callable[[], Any]) -> Any:
    # Imported late: most runs read local files.
    import datasets
    import httpx

    try:
        return load()
    except (
        *(OSError, ValueError, KeyError, NotImplementedError),
        *(httpx.HTTPError, datasets.exceptions.DatasetsError),
    ) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if Path(source).expanduser().exists():
            raise DataError(f"{source} could not be read: {reason}") from error
        raise DataError(
            f"no file {source}, and the data set could not be loaded ({reason}); "
            "give the path of a .jsonl file instead"
        ) from error


def _parquet(path: Path) -> Any:
    import datasets
    import pyarrow.parquet

    return datasets.Dataset(pyarrow.parquet.read_table(path))


def _from_disk(folder: Path, split: str) -> Any:
    import datasets

    loaded = datasets.load_from_disk(folder)
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if split not in loaded:
        raise ValueError(f"it has no split {split}, but {', '.join(loaded)}; write folder:split")
    return loaded[split]


def _hub(name: str, split: str) -> Any:
    import datasets

    return datasets.load_dataset(name, split=split)


def _table(name: str, table: Any) -> Rows:
    for index, row in enumerate(table):
        yield f"{name}[{index}]", _without_invented(row, dict(table.features))


def _without_invented(value: Any, feature: Any) -> Any:
    """`value` without the nulls of its objects. `feature` is what `datasets` knows of its type:
    what a column holds as JSON is left as it is."""
    if value is None:
        return None
    if isinstance(feature, dict):
        return {
            key: _without_invented(inner, feature[key])
            for key, inner in value.items()
            if inner is not None
        }
    if isinstance(feature, list):
        return [_without_invented(inner, feature[0]) for inner in value]
    if (items := getattr(feature, "feature", None)) is not None and isinstance(value, list):
        return [_without_invented(inner, items) for inner in value]
    return value

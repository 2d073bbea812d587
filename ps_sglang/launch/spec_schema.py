"""The JSON schema of specifications, for editors: `python -m ps_sglang.launch.spec_schema`.

It stands in `launch/spec.schema.json`. A key is described by the help of its flag.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from ps_sglang.launch.args import flag_help
from ps_sglang.launch.specfile import SpecFile

_TITLE: Final = "A cluster of ps-sglang"


def spec_schema() -> str:
    """The schema, as JSON."""
    (schema,), definitions = msgspec.json.schema_components(
        [SpecFile], schema_hook=_schema_of, ref_template="#/$defs/{name}"
    )
    helps = flag_help()
    for key, value in definitions[SpecFile.__name__]["properties"].items():
        if key in helps:
            value["description"] = helps[key]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": _TITLE}
    content = msgspec.json.encode(head | schema | {"$defs": definitions})
    return msgspec.json.format(content, indent=2).decode() + "\n"


def _schema_of(kind: type) -> dict[str, Any]:
    assert kind is Path, kind
    return {"type": "string"}


if __name__ == "__main__":
    print(spec_schema(), end="")

"""Token ids of an answer, between a decode worker and the gateway.

A stream whose request has HEADER tells the ids of its output tokens, before the event that they
lead to, in a comment of the event stream: `:ids 17,4`. So the gateway knows at each moment at
least the tokens whose text its client has had.

A request with PARAM among its `custom_params` has had these output tokens from another worker. The
decoder puts them out once more, whatever it would choose itself, and chooses from there on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

HEADER: Final = "x-ps-sglang-output-ids"
PARAM: Final = "__ps_sglang_output_ids"

_COMMENT: Final = re.compile(rb":ids (\d+(?:,\d+)*)\n")


def comment(ids: Iterable[int]) -> bytes:
    """The line that tells of new output tokens, at least one; an event follows."""
    return f":ids {','.join(map(str, ids))}\n".encode()


def split(event: bytes) -> tuple[list[int], bytes]:
    """The ids that are told with an event, and the event without them."""
    if (told := _COMMENT.match(event)) is None:
        return [], event
    return [int(one) for one in told[1].split(b",")], event[told.end() :]

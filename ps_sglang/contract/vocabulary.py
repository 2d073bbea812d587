"""Does a tokenizer say only token ids that its model has an embedding for?

A tokenizer with a token of its own, added after the model was made, turns a text into an id beyond
the embedding. On a CPU that ends the process that looks it up, on a GPU it spoils it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ps_sglang.contract.files import read_object
from ps_sglang.contract.shape import read_shape
from ps_sglang.errors import CheckpointError


def require_vocabulary(folder: Path) -> None:
    """Refuse a checkpoint whose tokenizer has a token id that its model lacks.

    Raises CheckpointError, which names the tokens, their ids and the model's vocabulary.
    """
    vocabulary = read_shape(folder).vocabulary
    beyond = tokens_beyond(folder, vocabulary)
    if not beyond:
        return
    named = ", ".join(f"{beyond[token_id]!r} = {token_id}" for token_id in sorted(beyond)[:5])
    more = f" and {len(beyond) - 5} more" if len(beyond) > 5 else ""
    raise CheckpointError(
        f"{folder}: the tokenizer has token ids up to {max(beyond)}, the model a vocabulary of "
        f"{vocabulary}, so a text with {named}{more} cannot be read; put the model's own tokenizer "
        "files there, or remove these tokens"
    )


def tokens_beyond(folder: Path, vocabulary: int) -> dict[int, str]:
    """Id -> token, of all tokens in `folder` whose id is not below `vocabulary`."""
    return {token_id: token for token, token_id in _tokens(folder) if token_id >= vocabulary}


def _tokens(folder: Path) -> Iterator[tuple[str, int]]:
    """Every token and its id, of each file that gives any; some more than once."""
    for name in ("vocab.json", "added_tokens.json"):
        yield from _object(folder / name).items()
    tokenizer = _object(folder / "tokenizer.json")
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, dict):
        yield from vocabulary.items()
    else:  # Unigram: [token, score], its place is the id
        yield from ((entry[0], place) for place, entry in enumerate(vocabulary))
    yield from ((token["content"], token["id"]) for token in tokenizer.get("added_tokens") or ())
    added = _object(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    yield from ((token["content"], int(token_id)) for token_id, token in added.items())


def _object(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}

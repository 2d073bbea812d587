"""What a tokenizer.json does to texts, whichever way it is written.

Saving a tokenizer again may add a post-processor that does nothing, move a normalizer's work into
the pre-tokenizer, or write defaults out. So the steps before and after the model are compared by
the tokens that come out, not by their names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

# What a step of tokenizing may treat in a way of its own: case, accents as one and as two
# characters, widths, digits, runs of spaces, line ends, contractions, code, scripts, emoji,
# control and zero-width characters, and spaces at either end.
_TEXTS: Final = (
    "The quick brown fox jumps over the lazy dog. THE QUICK BROWN FOX. tHe qUiCk",
    "caf\u00e9 cafe\u0301 \u00c5ngstr\u00f6m \ufb01ne \uff26\uff55\uff4c\uff4c "
    "\u2460 \u00bd \u2126",
    "1 22 333 4444 55555 666666 3.14159 1,000,000 0x1F 2026-11-29T12:00:00Z \u0664\u0665\u0666",
    "a  b   c    d     e        f\tg\t\th\n\ni\r\nj \n k\n  l \n",
    " leading, trailing ",
    "I'm you're we'll they'd he's don't I'M DON'T y'all "
    "\u2019s it\u2019s 'quoted' \u201cquoted\u201d",
    'def f(x: int) -> dict[str, int]:\n    return {"a": x ** 2, "b": [x, -1]}  # <b>&amp;</b>',
    "snake_case camelCase kebab-case a/b\\c a@b.com https://x.org/?q=1&r=2#s $9.99 50% ~ ^ ` |",
    "...!!!???---___===+++ *** ((( ))) [[[ ]]] {{{ }}} <<< >>> ;;; ::: ,,,",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f \u30ab\u30bf\u30ab\u30ca "
    "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u0393\u03b5\u03b9\u03ac \u0645\u0631\u062d\u0628\u0627 "
    "\u05e9\u05dc\u05d5\u05dd \u0928\u092e\u0938\u094d\u0924\u0947 "
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \u2764\ufe0f "
    "\U0001d400\U0001d401 \U00020000",
    "\u0000\u0001\u001b\u007f\u00a0\u00ad\u200b\u2028\u3000\ufeff\ufffd\u2581x\u2581\u0120y\u010a",
    "i\u0307 \u0130 \u0131 \u00df \u1e9e \u03c2 \u01c5 \u0149 stra\u00dfe STRASSE",
)
# Tokens of the vocabulary whose texts are tried too, evenly spread over it, and how many a text.
_SAMPLED: Final = 2048
_JOINED: Final = 16
_FLAGS: Final = ("single_word", "lstrip", "rstrip", "normalized", "special")
_OPTIONS, _ADDED = "model's options", "added tokens' flags"
STEPS: Final = ("normalizer", "pre-tokenizer", "post-processor", "decoder")


def tokenizer_parts(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The parts of the tokenizer.json `tokenizer`: vocabulary, merges, added tokens, encodings."""
    model = tokenizer.get("model") or {}
    return {
        "model": model.get("type"),
        "vocabulary": model.get("vocab"),
        "merges": [m.split(" ") if isinstance(m, str) else m for m in model.get("merges") or ()],
        "added tokens": {
            token["content"]: [token["id"], bool(token.get("special"))]
            for token in tokenizer.get("added_tokens") or ()
        },
        "encodings": _encodings(tokenizer),
    }


def causes(base: dict[str, Any], decoder: dict[str, Any]) -> list[str]:
    """Which parts make the encodings of two tokenizer.json of one vocabulary differ.

    Each is put into `base` alone; what only is written differently changes nothing there.
    """
    ours, theirs = written_parts(base), written_parts(decoder)
    differ = [name for name in ours if ours[name] != theirs[name]]
    base_encodings = _encodings(base)
    return [
        n for n in differ if _encodings(base | _part_of(decoder, n)) != base_encodings
    ] or differ


def _part_of(tokenizer: dict[str, Any], name: str) -> dict[str, Any]:
    key = {_OPTIONS: "model", _ADDED: "added_tokens"}.get(name, name.replace("-", "_"))
    return {key: tokenizer.get(key)}


def written_parts(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The parts that can make encodings differ, as they are written."""
    model = tokenizer.get("model") or {}
    options = {key: model[key] for key in model if key not in ("vocab", "merges")}
    steps = {step: tokenizer.get(step.replace("-", "_")) for step in STEPS}
    flags = {
        token["content"]: [bool(token.get(flag)) for flag in _FLAGS]
        for token in tokenizer.get("added_tokens") or ()
    }
    return steps | {_OPTIONS: options, _ADDED: flags}


def _encodings(tokenizer: dict[str, Any]) -> Any:
    # Imported late: most of the contract reads small files only.
    from tokenizers import Tokenizer

    added = [dict.fromkeys(_FLAGS, False) | t for t in tokenizer.get("added_tokens") or ()]
    # How it was last padded and truncated is no part of it.
    whole = {**tokenizer, "added_tokens": added, "truncation": None, "padding": None}
    try:
        loaded = Tokenizer.from_str(json.dumps(whole))
    # The library raises plain Exceptions.
    except Exception:
        # Of a version that we do not know: it is what is written.
        return written_parts(tokenizer)
    texts = [*_TEXTS, *_own_texts(loaded, [token["content"] for token in added])]
    # One by one: a batch would start threads, and the launcher forks.
    ids = [loaded.encode(text, add_special_tokens=False).ids for text in texts]
    return {
        "texts": texts,
        "ids": ids,
        "with special tokens": [loaded.encode(text).ids for text in ("", *_TEXTS[:2])],
        "decoded": [loaded.decode(token_ids, skip_special_tokens=False) for token_ids in ids],
    }


def _own_texts(tokenizer: Any, added: list[str]) -> Iterator[str]:
    """Texts of the tokenizer's own vocabulary, and its added tokens within and between words."""
    ids = sorted(tokenizer.get_vocab(with_added_tokens=False).values())
    spread = ids[:: max(1, len(ids) // _SAMPLED)]
    tokens = [tokenizer.decode([token], skip_special_tokens=False) for token in spread]
    for start in range(0, len(tokens), _JOINED):
        between = " " if start // _JOINED % 2 else ""
        yield between.join(tokens[start : start + _JOINED])
    for token in added:
        yield f"Word{token}word {token}  {token} A{token}\n{token.upper()}{token.lower()}"

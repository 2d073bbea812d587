"""Small tokenizers of the kinds that models have, each as its `tokenizer.json`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXT = (
    "The system asks the user a question and the assistant answers it step by step. ",
    "One model reads the prompt for all of the others; Grüße aus Köln, naïve café. ",
    'def total(values): return sum(value for value in values) # {"name": "total"} ',
)
SPECIAL = ("<s>", "</s>", "<|user|>", "<|end|>")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _trained(tokenizer: Tokenizer, **options: Any) -> Tokenizer:
    special = [AddedToken(one, special=True, normalized=False) for one in SPECIAL]
    trainer = trainers.BpeTrainer(  # type: ignore[no-untyped-call]
        vocab_size=700, special_tokens=special, show_progress=False, **options
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def byte_level(add_prefix_space: bool = False) -> Tokenizer:
    """GPT-2, Llama 3, SmolLM2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def with_bos(tokenizer: Tokenizer) -> Tokenizer:
    """Llama 3: a token before every text."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def with_nfc() -> Tokenizer:
    """Qwen."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def lower_case() -> Tokenizer:
    """No model of today, but one that changes texts in a way that is known."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return tokenizer


def _byte_fallback() -> Tokenizer:
    return Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))


def _with_bytes(tokenizer: Tokenizer) -> Tokenizer:
    trained = _trained(tokenizer, initial_alphabet=["\u2581"])
    # A trainer does not make these, and as tokens of the model they must be in its vocabulary.
    return Tokenizer.from_str(_insert_bytes(trained.to_str()))


def _insert_bytes(content: str) -> str:
    read = json.loads(content)
    vocabulary = read["model"]["vocab"]
    for token in ("<unk>", *BYTES):
        vocabulary.setdefault(token, len(vocabulary))
    read["model"]["byte_fallback"] = True
    read["model"]["unk_token"] = "<unk>"
    return json.dumps(read)


def _metaspace_decoder(strip: int) -> Any:
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*parts, decoders.Strip(" ", strip, 0)])


def llama_2() -> Tokenizer:
    """Llama 2 and Mistral: the normalizer puts a space before each piece, and BOS comes first."""
    tokenizer = _byte_fallback()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = _metaspace_decoder(1)
    return with_bos(_with_bytes(tokenizer))


def metaspace(scheme: str) -> Tokenizer:
    """Later conversions of the same: the space comes first, before each piece, or never."""
    tokenizer = _byte_fallback()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = _metaspace_decoder(1)
    return with_bos(_with_bytes(tokenizer))


def gemma() -> Tokenizer:
    """Spaces are written as something else, nothing is added."""
    tokenizer = _byte_fallback()
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = _metaspace_decoder(0)
    return with_bos(_with_bytes(tokenizer))


def phi_3() -> Tokenizer:
    """Added tokens that swallow the space behind them."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<|assistant|>", rstrip=True, normalized=False)])
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "byte level with BOS": lambda: with_bos(byte_level()),
    "byte level with a space": lambda: byte_level(add_prefix_space=True),
    "NFC": with_nfc,
    "lower case": lower_case,
    "Llama 2": llama_2,
    "metaspace first": lambda: metaspace("first"),
    "metaspace always": lambda: metaspace("always"),
    "metaspace never": lambda: metaspace("never"),
    "Gemma": gemma,
    "Phi 3": phi_3,
}


def with_unknowns() -> Tokenizer:
    """Loses the characters that it does not know."""
    tokenizer = Tokenizer(models.BPE(unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _trained(tokenizer)


def word_piece() -> Tokenizer:
    """BERT's kind, which does not tell where spaces were."""
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def with_eos() -> Tokenizer:
    """Puts a token behind every text, which no prompt has in the middle."""
    tokenizer = byte_level()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer

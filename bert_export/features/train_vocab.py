"""Learns a WordPiece or SentencePiece vocabulary from texts.

The same texts give the same bytes, whatever the machine's cores.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import math
import re
from collections.abc import Iterable, Iterator

import sentencepiece
from tqdm import tqdm

from bert_export.errors import UserError

SENTENCEPIECE_MODELS = ("unigram", "bpe")
MASK = "[MASK]"

# SentencePiece's results depend on the number of threads, so it is a fixed one.
_THREADS = 4
# SentencePiece leaves out longer lines; no line of a corpus is as long.
_MAX_LINE_BYTES = 1 << 24
# WordPiece: a vocabulary this much smaller than asked for is good enough.
_SLACK = 0.02
_TEXTS_AT_A_TIME = 2048
# As long as words that `WordPiece` cuts up at all.
_MAX_BYTES_PER_WORD = 100


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """The special tokens' names. Their ids are 0 to 4, in this order."""

    pad: str = "[PAD]"
    unk: str = "[UNK]"
    cls: str = "[CLS]"
    sep: str = "[SEP]"
    mask: str = MASK

    def __iter__(self) -> Iterator[str]:
        return iter(dataclasses.astuple(self))


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int,
    *,
    model_type: str = "unigram",
    character_coverage: float = 0.9995,
    lower_case: bool = True,
    special_tokens: SpecialTokens | None = None,
) -> bytes:
    """Learns a SentencePiece model (Kudo 2018, https://arxiv.org/abs/1804.10959).

    Args:
      texts: One sentence each.
      vocab_size: Pieces, special tokens included; the model has exactly as many.
      model_type: One of SENTENCEPIECE_MODELS.
      character_coverage: The part of all characters that get a piece; the rest, the
        rarest ones, is unknown.
      lower_case: Whether the model folds case (nmt_nfkc_cf) or keeps it (nmt_nfkc).
      special_tokens: The unknown piece and four control symbols, which no text gives.

    Returns:
      The bytes of a .model file.

    Raises:
      UserError: The texts do not give as many pieces or need more.
    """
    tokens = special_tokens or SpecialTokens()
    model = io.BytesIO()
    with tqdm(texts, "reading", unit=" texts", mininterval=1) as progress:
        lines = iter(progress)
        first = next(lines, None)
        if first is None:
            raise UserError("the corpus has no text to learn a vocabulary from")

        def sentences() -> Iterator[str]:
            assert first is not None
            yield first
            yield from lines
            progress.close()
            tqdm.write(f"learning {vocab_size} pieces", progress.fp)

        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=sentences(),
                model_writer=model,
                model_type=model_type,
                vocab_size=vocab_size,
                character_coverage=character_coverage,
                normalization_rule_name="nmt_nfkc_cf" if lower_case else "nmt_nfkc",
                pad_id=0,
                unk_id=1,
                bos_id=-1,
                eos_id=-1,
                pad_piece=tokens.pad,
                unk_piece=tokens.unk,
                control_symbols=[tokens.cls, tokens.sep, tokens.mask],
                num_threads=_THREADS,
                max_sentence_length=_MAX_LINE_BYTES,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            raise UserError(_why(str(error), vocab_size)) from None
    return model.getvalue()


def _why(error: str, vocab_size: int) -> str:
    """SentencePiece's error, told in terms of the flags."""
    # trainer_interface.cc and bpe_model_trainer.cc
    if found := re.search(r"set it to a value <= (\d+)", error):
        return (
            f"--vocab_size={vocab_size} is too large: the corpus gives at most "
            f"{found[1]} pieces; ask for so many or fewer, or add text"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
        return (
            f"--vocab_size={vocab_size} is too small: the special tokens and the "
            f"corpus's characters alone are {found[1]} pieces; ask for more, or lower "
            "--character_coverage"
        )
    return f"sentencepiece could not learn a vocabulary: {error}"


def train_wordpiece(
    texts: Iterable[str],
    vocab_size: int,
    *,
    character_coverage: float = 0.9995,
    lower_case: bool = True,
    special_tokens: SpecialTokens | None = None,
) -> bytes:
    """Learns a WordPiece vocabulary for BERT's tokenizer, `tokenizer.WordPiece`.

    With tensorflow_text's learner, which counts what the tokenizer's longest-match
    cuts, from words that BERT's own normalization and splitting give.

    Args:
      texts: One sentence or more each.
      vocab_size: Word pieces, special tokens included; the vocabulary has at most as
        many, and at least 98 % of them.
      character_coverage: The part of all characters that get word pieces; the rest,
        the rarest ones, is unknown.
      lower_case: Whether to fold case and strip accents, as in features.lower_case.
      special_tokens: The first word pieces.

    Returns:
      The bytes of a vocab.txt.

    Raises:
      UserError: The texts do not give as many word pieces or need more.
    """
    tokens = list(special_tokens or SpecialTokens())
    words, alone = _word_counts(texts, lower_case, character_coverage)
    if not words and not alone:
        raise UserError("the corpus has no text to learn a vocabulary from")
    inside = sorted({character for word in words for character in word})
    alone = [character for character in alone if character not in set(inside)]
    required = len(tokens) + len(alone) + 2 * len(inside)
    if vocab_size < required:
        raise UserError(
            f"--vocab_size={vocab_size} is too small: the special tokens and the "
            f"corpus's characters alone are {required} word pieces; ask for more, or "
            "lower --character_coverage"
        )
    learned = _learn(words, vocab_size - len(tokens) - len(alone), 2 * len(inside))
    vocab = tokens + alone + learned
    if len(vocab) < (1 - _SLACK) * vocab_size:
        raise UserError(
            f"--vocab_size={vocab_size} is too large: the corpus gives at most "
            f"{len(vocab)} word pieces; ask for so many or fewer, or add text"
        )
    return ("\n".join(vocab) + "\n").encode("utf-8")


def size(kind: str, content: bytes) -> int:
    """The number of pieces of what `train_sentencepiece` or `train_wordpiece` gave."""
    if kind == "wordpiece":
        return content.count(b"\n")
    return sentencepiece.SentencePieceProcessor(model_proto=content).vocab_size()


def _word_counts(
    texts: Iterable[str], lower_case: bool, character_coverage: float
) -> tuple[dict[str, int], list[str]]:
    """Counts words as the tokenizer sees them: normalized, and split as it splits.

    Returns:
      The words of two characters or more with their counts, and the characters that
      are words of their own, both sorted.
    """
    import tensorflow as tf
    import tensorflow_text as tf_text

    normalizer = tf_text.FastBertNormalizer(lower_case_nfd_strip_accents=lower_case)
    chunks: collections.Counter[str] = collections.Counter()
    with tqdm(desc="reading", unit=" texts", mininterval=1) as progress:
        for batch in _batches(texts):
            for text in normalizer.normalize(tf.constant(batch)).numpy():
                chunks.update(text.decode("utf-8").split())
            progress.update(len(batch))
    characters: collections.Counter[str] = collections.Counter()
    for chunk, count in chunks.items():
        for character in chunk:
            characters[character] += count
    covered = _covered(characters, character_coverage)
    if not covered:
        return {}, []

    # With characters for its vocabulary the tokenizer shows where it splits chunks
    # into words: what follows in a word has the prefix ##.
    splitter = tf_text.FastWordpieceTokenizer(
        ["[UNK]", *covered, *(f"##{character}" for character in covered)],
        token_out_type=tf.string,
        max_bytes_per_word=_MAX_BYTES_PER_WORD,
    )
    words: collections.Counter[str] = collections.Counter()
    for batch in _batches(sorted(chunks)):
        rows = splitter.tokenize(tf.constant(batch)).to_list()
        for chunk, pieces in zip(batch, rows):
            for word in _words(piece.decode("utf-8") for piece in pieces):
                words[word] += chunks[chunk]
    return (
        {word: words[word] for word in sorted(words) if len(word) > 1},
        sorted(word for word in words if len(word) == 1),
    )


def _words(pieces: Iterable[str]) -> Iterator[str]:
    """Joins characters, '##' before each that is not a word's first, to words."""
    word = ""
    for piece in pieces:
        if len(piece) == 3 and piece.startswith("##"):
            word += piece[2]
            continue
        if word:
            yield word
        word = "" if piece == "[UNK]" else piece
    if word:
        yield word


def _covered(characters: collections.Counter[str], coverage: float) -> list[str]:
    """The most frequent characters that make up `coverage` of all, sorted."""
    wanted = coverage * sum(characters.values())
    covered: list[str] = []
    total = 0
    for character in sorted(characters, key=lambda c: (-characters[c], c)):
        if total >= wanted:
            break
        covered.append(character)
        total += characters[character]
    return sorted(covered)


def _learn(words: dict[str, int], size: int, required: int) -> list[str]:
    """The word pieces of words: all of their characters, then the most frequent.

    Searches for the count that a piece must have for `size` pieces at most, as
    tensorflow_text's learner does, but shows how it gets on, and cuts off what is too
    much where no count gives the size.

    Args:
      words: With their counts, sorted.
      size: Word pieces to return at most.
      required: Pieces of one character; no more than `size`.
    """
    from tensorflow_text.tools.wordpiece_vocab import (
        wordpiece_tokenizer_learner_lib as learner,
    )

    if not words:
        return []
    counts = list(words.items())
    params = learner.Params(
        upper_thresh=None,
        lower_thresh=None,
        num_iterations=4,
        max_input_tokens=-1,
        max_token_length=max(map(len, words)),
        max_unique_chars=required,
        vocab_size=size,
        slack_ratio=_SLACK,
        include_joiner_token=True,
        joiner="##",
        reserved_tokens=[],
    )
    # The highest count of which is known that it gives too many pieces, and the lowest
    # that gives few enough, each with the number of pieces.
    low, too_many = 0, 0
    high, few = max(words.values()) + 1, required
    smaller: list[str] = []
    larger: list[str] = []
    with tqdm(desc=f"learning from {len(words)} words", unit=" searches") as progress:
        while high - low > 1 and len(smaller) < (1 - _SLACK) * size:
            threshold = _between(low, too_many, high, few, size)
            pieces = learner.learn_with_thresh(counts, threshold, params)
            progress.update()
            progress.set_postfix_str(f"{len(pieces)} pieces")
            if len(pieces) > size:
                larger, low, too_many = pieces, threshold, len(pieces)
            else:
                smaller, high, few = pieces, threshold, len(pieces)
    if larger and len(smaller) < (1 - _SLACK) * size:
        single = [piece for piece in larger if len(piece.removeprefix("##")) == 1]
        others = [piece for piece in larger if len(piece.removeprefix("##")) > 1]
        return single + others[: size - len(single)]
    return smaller


def _between(low: int, too_many: int, high: int, few: int, size: int) -> int:
    """The count to try next, above `low` and below `high`.

    By Zipf's law the number of pieces is about a power of the count.
    """
    if not low:
        guess = high * (few / size) ** 1.5
    else:
        slope = math.log(too_many / few) / math.log(high / low)
        guess = low * (too_many / (0.99 * size)) ** (1 / slope) if slope else low
    return min(max(round(guess), low + 1), high - 1)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _TEXTS_AT_A_TIME:
            yield batch
            batch = []
    if batch:
        yield batch

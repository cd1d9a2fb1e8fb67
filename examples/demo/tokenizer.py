"""WordPiece for an uncased BERT vocabulary: text in, token numbers out.

The same steps as the model's own `tokenizer.json`: clean the text, put spaces around CJK characters, strip
accents, lower-case, split at white space and punctuation, then cut every word greedily into the longest
pieces that the vocabulary holds. Special tokens written out in the text, such as "[MASK]", are ordinary text
here.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

# Code points that BERT treats as words of their own: the CJK ideograph blocks.
CJK_BLOCKS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
DROPPED = ("Cc", "Cf", "Co", "Cs")  # control, format, private use and surrogates carry no text
LONGEST_WORD = 100  # characters; a longer word becomes [UNK], as `max_input_chars_per_word` says


def is_cjk(char: str) -> bool:
    """Whether the character is a CJK ideograph."""
    return any(first <= ord(char) <= last for first, last in CJK_BLOCKS)


def is_punctuation(char: str) -> bool:
    """Unicode punctuation, and every ASCII symbol: BERT splits at `$` and `^` too."""
    code = ord(char)
    ascii_symbol = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return ascii_symbol or unicodedata.category(char).startswith("P")


def clean(text: str) -> str:
    """White space to plain spaces, control characters out, spaces around CJK characters."""
    out = []
    for char in text:
        if char in "\t\n\r":
            out.append(" ")
        elif char == "\ufffd" or unicodedata.category(char) in DROPPED:
            continue
        elif is_cjk(char):
            out.append(f" {char} ")
        else:
            out.append(char)
    return "".join(out)


def fold(text: str) -> str:
    """Decompose (NFD), drop the accents (Mn), lower-case one character at a time."""
    decomposed = unicodedata.normalize("NFD", text)
    return "".join(char.lower() for char in decomposed if unicodedata.category(char) != "Mn")


def words(text: str) -> Iterator[str]:
    """Normalised words; each punctuation character is a word of its own."""
    for chunk in fold(clean(text)).split():
        start = 0
        for at, char in enumerate(chunk):
            if is_punctuation(char):
                if start < at:
                    yield chunk[start:at]
                yield char
                start = at + 1
        if start < len(chunk):
            yield chunk[start:]


class WordPiece:
    """A tokenizer over the text of a `vocab.txt`: one token a line, its number is the line's."""

    def __init__(self, vocabulary: str, max_length: int) -> None:
        self.ids = {token: number for number, token in enumerate(vocabulary.rstrip("\n").split("\n"))}
        self.max_length = max_length
        self.cls, self.sep, self.unk = (self.ids[token] for token in ("[CLS]", "[SEP]", "[UNK]"))

    def encode(self, text: str) -> list[int]:
        """Token numbers of one sentence: [CLS], the pieces, [SEP]; at most `max_length` of them."""
        pieces = [piece for word in words(text) for piece in self.pieces(word)]
        return [self.cls, *pieces[: self.max_length - 2], self.sep]

    def pieces(self, word: str) -> list[int]:
        """The word as the longest known pieces, from the left; [UNK] where some part is not known."""
        if len(word) > LONGEST_WORD:
            return [self.unk]
        found = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(len(word), start, -1):
                number = self.ids.get(prefix + word[start:end])
                if number is not None:
                    found.append(number)
                    start = end
                    break
            else:
                return [self.unk]
        return found

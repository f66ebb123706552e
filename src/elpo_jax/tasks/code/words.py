"""Programs about two texts, and about lists of words."""

from elpo_jax.tasks.code.inputs import WORDS, anagram, choice, integer, letter, text, words
from elpo_jax.tasks.code.program import Program

_ONE_WORD = {"s": text(1, 1)}
_FEW = integer(2, 4)
_FIRST = letter("cklmopr")
_WORD = choice(*(f"'{word}'" for word in WORDS[:12]))

PAIRS = (
    Program(
        "s t",
        "the number of places at which s and t differ",
        "return sum(a != b for a, b in zip(s, t))",
        ("!=", "=="),
        {"s": anagram, "t": anagram},
    ),
    Program(
        "s t",
        "whether s and t have the same letters equally often",
        "return sorted(s) == sorted(t)",
        ("sorted(s) == sorted(t)", "set(s) == set(t)"),
        {"s": anagram, "t": anagram},
    ),
    Program(
        "s t",
        "what s and t both begin with",
        "k = 0\nwhile s[:k + 1] == t[:k + 1] and k < len(s):\n    k += 1\nreturn s[:k]",
        ("return s[:k]", "return s[:k + 1]"),
        {"s": anagram, "t": anagram},
    ),
    Program(
        "s t",
        "the number of distinct letters that s and t share",
        "return len(set(s) & set(t))",
        ("&", "|"),
    ),
    Program(
        "s t",
        "the letters of s that are not in t",
        "return ''.join(c for c in s if c not in t)",
        ("not in", "in"),
    ),
    Program(
        "s t",
        "the letters of s and t in turn",
        "return ''.join(a + b for a, b in zip(s, t))",
        ("a + b", "b + a"),
        _ONE_WORD,
    ),
    Program(
        "s t",
        "whether the letters of t are in s in their order",
        "i = iter(s)\nreturn all(c in i for c in t)",
        ("c in i", "c in s"),
        {"s": anagram, "t": choice("mon", "nom", "lem", "mel", "eon", "one", "leo", "ole")},
    ),
    Program("s t", "t, then {p}, then s", "return t + {p} + s", ("t + {p} + s", "s + {p} + t")),
    Program(
        "s t",
        "the longer of s and t, or s",
        "return max(s, t, key=len)",
        ("max(s, t, key=len)", "max(s, t)"),
        _ONE_WORD,
    ),
)
WORD_LISTS = (
    Program(
        "w", "the first of the longest words of w", "return max(w, key=len)", (", key=len", "")
    ),
    Program(
        "w", "the first of the shortest words of w", "return min(w, key=len)", (", key=len", "")
    ),
    Program(
        "w", "the lengths of the words of w", "return [len(v) for v in w]", ("len(v)", "len(w)")
    ),
    Program("w", "w by length", "return sorted(w, key=len)", (", key=len", "")),
    Program("w", "w by alphabet", "return sorted(w)", ("sorted(w)", "sorted(w, key=len)")),
    Program("w", "w from last to first", "return w[::-1]", ("w[::-1]", "[v[::-1] for v in w]")),
    Program(
        "w", "the words of w, each backwards", "return [v[::-1] for v in w]", ("v[::-1]", "v[-1]")
    ),
    Program(
        "w",
        "the number of words of w longer than {k}",
        "return sum(len(v) > {k} for v in w)",
        (">", ">="),
        {"k": integer(3, 5)},
    ),
    Program(
        "w",
        "the words of w longer than {k}",
        "return [v for v in w if len(v) > {k}]",
        (">", ">="),
        {"k": integer(3, 5)},
    ),
    Program(
        "w",
        "the words of w of length {k}",
        "return [v for v in w if len(v) == {k}]",
        ("==", ">="),
        {"k": integer(3, 5)},
    ),
    Program(
        "w",
        "the words of w that begin with {c}",
        "return [v for v in w if v[0] == {c}]",
        ("v[0]", "v[-1]"),
        {"c": _FIRST},
    ),
    Program(
        "w",
        "the words of w that have {c}",
        "return [v for v in w if {c} in v]",
        ("in v]", "not in v]"),
    ),
    Program(
        "w",
        "the first letters of the words of w, in capitals",
        "return ''.join(v[0] for v in w).upper()",
        (".upper()", ""),
    ),
    Program(
        "w",
        "the last letters of the words of w",
        "return ''.join(v[-1] for v in w)",
        ("v[-1]", "v[0]"),
    ),
    Program("w", "the words of w with {p} between", "return {p}.join(w)", ("{p}", "' '")),
    Program(
        "w",
        "the number of letters of all words of w",
        "return sum(len(v) for v in w)",
        ("sum(len(v) for v in w)", "len(w)"),
    ),
    Program(
        "w",
        "the number of distinct words of w",
        "return len(set(w))",
        ("set(w)", "w"),
        {"w": words(3, 6)},
    ),
    Program(
        "w",
        "w without repeats, in its order",
        "return list(dict.fromkeys(w))",
        ("list(dict.fromkeys(w))", "sorted(set(w))"),
        {"w": words(3, 6)},
    ),
    Program(
        "w",
        "the first of the most frequent words of w",
        "return max(w, key=w.count)",
        ("max(w, key=w.count)", "max(w)"),
        {"w": words(3, 6)},
    ),
    Program(
        "w",
        "how often {v} is in w",
        "return w.count({v})",
        ("w.count({v})", "int({v} in w)"),
        {
            "v": choice(*(f"'{word}'" for word in WORDS[:4])),
            "w": lambda rng, small: [WORDS[i] for i in rng.integers(0, 4, 4)],
        },
    ),
    Program(
        "w",
        "w with {v} at the end",
        "return w + [{v}]",
        ("w + [{v}]", "[{v}] + w"),
        {"v": _WORD},
    ),
    Program(
        "w",
        "word number {k} of w, the first is 1",
        "return w[{k} - 1]",
        ("{k} - 1", "{k}"),
        {"k": _FEW, "w": words(5, 7)},
    ),
    Program(
        "w",
        "the words of w in capitals",
        "return [v.upper() for v in w]",
        ("upper", "capitalize"),
    ),
    Program(
        "w",
        "the first {k} letters of each word of w",
        "return [v[:{k}] for v in w]",
        ("v[:{k}]", "v[{k}:]"),
        {"k": _FEW},
    ),
    Program(
        "w",
        "the word of w with most vowels, the first of them",
        "return max(w, key=lambda v: sum(c in 'aeiou' for c in v))",
        ("in 'aeiou'", "not in 'aeiou'"),
    ),
    Program(
        "w",
        "whether w is in alphabetical order",
        "return w == sorted(w)",
        ("sorted(w)", "sorted(w, key=len)"),
        {
            "w": lambda rng, small: (
                words()(rng, small) if rng.random() < 0.5 else sorted(words()(rng, small))
            )
        },
    ),
    Program(
        "w",
        "the words of w by their last letters",
        "return sorted(w, key=lambda v: v[-1])",
        ("v[-1]", "v[0]"),
    ),
)

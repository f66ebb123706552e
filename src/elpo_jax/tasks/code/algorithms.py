"""Small algorithms: searches, runs, tables of partial results, brackets."""

from elpo_jax.tasks.code.inputs import ascending, choice, integer, numbers
from elpo_jax.tasks.code.program import Program

ALGORITHMS = (
    Program(
        "x",
        "whether two numbers of x add up to {k}",
        "return any({k} - v in x[:i] for i, v in enumerate(x))",
        ("x[:i]", "x"),
        {"k": choice(4, 6, 8, 10, 12, 14)},
    ),
    Program(
        "x",
        "the number of pairs in x that add up to {k}",
        "return sum(x[:i].count({k} - v) for i, v in enumerate(x))",
        ("x[:i]", "x"),
        {"k": integer(4, 14)},
    ),
    Program(
        "x",
        "the length of the longest rising run in x",
        "t = k = 1\nfor a, b in zip(x, x[1:]):\n"
        "    k = k + 1 if a < b else 1\n    t = max(t, k)\nreturn t",
        ("a < b", "a > b"),
        {"x": numbers(4, 8)},
    ),
    Program(
        "x",
        "the largest sum of a run of x",
        "t = k = x[0]\nfor v in x[1:]:\n    k = max(v, k + v)\n    t = max(t, k)\nreturn t",
        ("max(v, k + v)", "k + v"),
        {"x": numbers(4, 8, -9, 9)},
    ),
    Program(
        "x",
        "the number of pairs in x in the wrong order",
        "return sum(a > b for i, a in enumerate(x) for b in x[i:])",
        ("x[i:]", "x"),
        {"x": numbers(3, 7)},
    ),
    Program(
        "x",
        "how many of x are above both neighbours",
        "return sum(a < b > c for a, b, c in zip(x, x[1:], x[2:]))",
        ("a < b > c", "a < b < c"),
        {"x": numbers(4, 9)},
    ),
    Program(
        "x",
        "the largest sum of {k} neighbours in x",
        "return max(sum(x[i:i + {k}]) for i in range(len(x) - {k} + 1))",
        ("max", "min"),
        {"k": integer(2, 3), "x": numbers(4, 8)},
    ),
    Program(
        "x",
        "where {k} belongs in the ordered list x",
        "i = 0\nwhile i < len(x) and x[i] < {k}:\n    i += 1\nreturn i",
        ("< {k}", "<= {k}"),
        {"x": ascending()},
    ),
    Program(
        "x",
        "the largest profit of buying at one of x and selling at a later one, or 0",
        "t, k = 0, x[0]\nfor v in x:\n    k = min(k, v)\n    t = max(t, v - k)\nreturn t",
        ("min(k, v)", "v"),
        {"x": numbers(4, 8)},
    ),
    Program(
        "x",
        "the number of ways to pick some of x that add up to {k}",
        "t = [1] + [0] * {k}\nfor v in x:\n    for i in range({k}, v - 1, -1):\n"
        "        t[i] += t[i - v]\nreturn t[{k}]",
        ("range({k}, v - 1, -1)", "range(v, {k} + 1)"),
        {"k": integer(4, 9), "x": numbers(3, 6, 1, 6)},
    ),
    Program(
        "x",
        "the fewest coins of x that make {k}, or -1",
        "t = [0]\nfor i in range({k}):\n"
        "    t.append(min([t[i + 1 - v] for v in x if v <= i + 1], default=99) + 1)\n"
        "return t[-1] if t[-1] < 99 else -1",
        ("t[-1] < 99", "t[-1] > 99"),
        {"k": integer(6, 12), "x": numbers(2, 4, 2, 6)},
    ),
    Program(
        "s t",
        "the length of the longest common subsequence of s and t",
        "k = [0] * (len(t) + 1)\nfor c in s:\n    p = k[:]\n    for i, d in enumerate(t):\n"
        "        k[i + 1] = p[i] + 1 if c == d else max(p[i + 1], k[i])\nreturn k[-1]",
        ("max(p[i + 1], k[i])", "0"),
        {
            "s": choice("lemon", "melon", "level", "panda", "banana"),
            "t": choice("lemon", "onion", "llama", "salsa"),
        },
    ),
    Program(
        "s t",
        "the edit distance of s and t",
        "k = list(range(len(t) + 1))\nfor c in s:\n    p, k = k, [k[0] + 1]\n"
        "    for i, d in enumerate(t):\n"
        "        k.append(min(p[i] + (c != d), p[i + 1] + 1, k[i] + 1))\nreturn k[-1]",
        ("(c != d)", "1"),
        {
            "s": choice("lemon", "melon", "level", "panda", "banana"),
            "t": choice("lemon", "onion", "llama", "salsa"),
        },
    ),
    Program(
        "s",
        "whether the brackets of s are balanced",
        "k = 0\nfor c in s:\n    k += 1 if c == '(' else -1\n"
        "    if k < 0:\n        break\nreturn k == 0",
        ("    if k < 0:\n        break\n", ""),
        {"s": choice("()", "(()", "())(", ")(", "(())", "()()", "))((", "())", "(()())", ")()(")},
    ),
    Program(
        "s",
        "how deep the brackets of s are nested",
        "k = t = 0\nfor c in s:\n    k += 1 if c == '(' else -1\n    t = max(t, k)\nreturn t",
        ("max(t, k)", "t + 1"),
        {"s": choice("()", "(())", "()()", "(()())", "((()))", "(())()", "()((()))")},
    ),
)

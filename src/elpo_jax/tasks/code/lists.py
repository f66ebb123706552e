"""Programs about lists of numbers."""

from elpo_jax.tasks.code.inputs import ascending, integer, numbers
from elpo_jax.tasks.code.program import Program

_FEW = integer(2, 4)
_REPEATS = {"x": numbers(5, 8, 1, 5)}

NUMBER_LISTS = (
    Program("x", "the sum of x", "return sum(x)", ("sum", "max")),
    Program(
        "x",
        "the product of x",
        "p = 1\nfor v in x:\n    p *= v\nreturn p",
        ("p = 1", "p = 0"),
    ),
    Program(
        "x",
        "the largest of x less the smallest",
        "return max(x) - min(x)",
        ("max(x) - min(x)", "x[-1] - x[0]"),
    ),
    Program("x", "the sum of the squares of x", "return sum(v * v for v in x)", ("v * v", "2 * v")),
    Program(
        "x",
        "the sum of the multiples of {k} in x",
        "return sum(v for v in x if v % {k} == 0)",
        ("== 0", "!= 0"),
        {"k": _FEW},
    ),
    Program(
        "x",
        "how many of x are above {k}",
        "return sum(v > {k} for v in x)",
        (">", ">="),
    ),
    Program("x", "the even numbers of x", "return [v for v in x if v % 2 == 0]", ("== 0", "== 1")),
    Program("x", "the odd numbers of x", "return [v for v in x if v % 2 == 1]", ("== 1", "== 0")),
    Program("x", "the numbers of x below {k}", "return [v for v in x if v < {k}]", ("<", "<=")),
    Program("x", "how many of x are even", "return sum(v % 2 == 0 for v in x)", ("== 0", "== 1")),
    Program("x", "x in order", "return sorted(x)", ("sorted(x)", "x")),
    Program("x", "x from large to small", "return sorted(x, reverse=True)", (", reverse=True", "")),
    Program("x", "x from last to first", "return x[::-1]", ("x[::-1]", "sorted(x)[::-1]")),
    Program(
        "x",
        "the second largest of the distinct numbers of x",
        "return sorted(set(x))[-2]",
        ("set(x)", "x"),
        {"x": lambda rng, small: [1, *numbers(4, 7, 2, 5)(rng, small)]},
    ),
    Program(
        "x",
        "number {k} of x in order, the first is 1",
        "return sorted(x)[{k} - 1]",
        ("{k} - 1", "{k}"),
        {"k": _FEW, "x": numbers(5, 8)},
    ),
    Program(
        "x",
        "the running sums of x",
        "t = 0\ny = []\nfor v in x:\n    t += v\n    y.append(t)\nreturn y",
        ("    t += v\n    y.append(t)", "    y.append(t)\n    t += v"),
    ),
    Program(
        "x",
        "the differences of neighbours in x",
        "return [b - a for a, b in zip(x, x[1:])]",
        ("b - a", "a - b"),
    ),
    Program(
        "x",
        "the largest so far at each place of x",
        "return [max(x[:i + 1]) for i in range(len(x))]",
        ("x[:i + 1]", "x[i:]"),
    ),
    Program(
        "x",
        "x with its first {k} numbers moved to the end",
        "return x[{k}:] + x[:{k}]",
        ("x[{k}:] + x[:{k}]", "x[:{k}] + x[{k}:]"),
        {"k": _FEW, "x": numbers(5, 8)},
    ),
    Program(
        "x",
        "the numbers of x at multiples of {k}",
        "return x[::{k}]",
        ("[::{k}]", "[{k}::]"),
        {"k": _FEW, "x": numbers(4, 8)},
    ),
    Program("x", "the mean of x, rounded down", "return sum(x) // len(x)", ("//", "%")),
    Program(
        "x",
        "the middle one of x in order",
        "return sorted(x)[len(x) // 2]",
        ("sorted(x)", "x"),
        {"x": lambda rng, small: numbers(3, 3)(rng, small) if small else numbers(5, 5)(rng, small)},
    ),
    Program("x", "the index of the largest of x", "return x.index(max(x))", ("max", "min")),
    Program(
        "x", "the numbers of x times {k}", "return [v * {k} for v in x]", ("v * {k}", "v + {k}")
    ),
    Program(
        "x", "the numbers of x plus {k}", "return [v + {k} for v in x]", ("v + {k}", "v * {k}")
    ),
    Program("x", "x {k} times in a row", "return x * {k}", ("x * {k}", "[v * {k} for v in x]")),
    Program(
        "x",
        "the numbers of x modulo {k}",
        "return [v % {k} for v in x]",
        ("%", "//"),
    ),
    Program(
        "x",
        "the first of x above {k}, or 0",
        "return next((v for v in x if v > {k}), 0)",
        (">", ">="),
        {"k": integer(3, 8)},
    ),
    Program(
        "x",
        "the sum of x with signs in turn, first plus",
        "return sum(x[::2]) - sum(x[1::2])",
        ("x[::2]", "x"),
    ),
    Program(
        "x",
        "the numbers of x cut to {k} at most",
        "return [min(v, {k}) for v in x]",
        ("min", "max"),
    ),
    Program("x", "x with {k} in front", "return [{k}] + x", ("[{k}] + x", "x + [{k}]")),
    Program(
        "x",
        "x without its {k}s",
        "return [v for v in x if v != {k}]",
        ("!=", "=="),
        {"x": numbers(5, 8, 1, 5), "k": integer(2, 5)},
    ),
    Program(
        "x",
        "whether x is in order",
        "return x == sorted(x)",
        ("x == sorted(x)", "x[0] < x[-1]"),
        {"x": lambda rng, small: (ascending() if rng.random() < 0.5 else numbers())(rng, small)},
    ),
    Program(
        "x",
        "x without repeats, in its order",
        "return list(dict.fromkeys(x))",
        ("list(dict.fromkeys(x))", "sorted(set(x))"),
        _REPEATS,
    ),
    Program(
        "x",
        "the distinct numbers of x that are there twice or more, in order",
        "return sorted(v for v in set(x) if x.count(v) > 1)",
        ("> 1", "> 2"),
        _REPEATS,
    ),
    Program(
        "x",
        "the first of the most frequent numbers of x",
        "return max(x, key=x.count)",
        ("max(x, key=x.count)", "max(x)"),
        _REPEATS,
    ),
    Program(
        "x",
        "the even numbers of x, then the odd",
        "return sorted(x, key=lambda v: v % 2)",
        ("v % 2", "v"),
    ),
    Program(
        "x",
        "x with its zeros moved to the end",
        "return sorted(x, key=lambda v: v == 0)",
        ("v == 0", "v != 0"),
        {"x": numbers(4, 8, 0, 2)},
    ),
    Program(
        "x y",
        "the sum of the products of x and y",
        "return sum(a * b for a, b in zip(x, y))",
        ("*", "+"),
    ),
    Program(
        "x y",
        "the sums of x and y, place by place",
        "return [a + b for a, b in zip(x, y)]",
        ("a + b", "a * b"),
    ),
    Program(
        "x y",
        "the distinct numbers in both x and y, in order",
        "return sorted(set(x) & set(y))",
        ("&", "|"),
    ),
    Program(
        "x y",
        "the numbers of x that are not in y",
        "return [v for v in x if v not in y]",
        ("not in", "in"),
    ),
    Program(
        "x y",
        "the numbers of x and y, all in order",
        "return sorted(x + y)",
        ("sorted(x + y)", "sorted(x) + y"),
    ),
)

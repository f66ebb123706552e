"""Programs about whole numbers."""

from elpo_jax.tasks.code.inputs import choice, integer
from elpo_jax.tasks.code.program import Program

_FEW = integer(2, 4)
_SMALL = {"n": integer(1, 12)}
_MEDIUM = {"n": integer(2, 60)}
_LARGE = {"n": integer(10, 999)}

ARITHMETIC = (
    Program(
        "n",
        "the factorial of n",
        "p = 1\nfor i in range(n):\n    p *= i + 1\nreturn p",
        ("i + 1", "i"),
        _SMALL,
    ),
    Program(
        "n",
        "Fibonacci number n, after 0 and 1",
        "a, b = 0, 1\nfor i in range(n):\n    a, b = b, a + b\nreturn a",
        ("return a", "return b"),
        {"n": integer(1, 20)},
    ),
    Program(
        "m n",
        "the greatest common divisor of m and n",
        "while n:\n    m, n = n, m % n\nreturn m",
        ("return m", "return n"),
    ),
    Program(
        "m n",
        "the least common multiple of m and n",
        "from math import gcd\nreturn m * n // gcd(m, n)",
        (" // gcd(m, n)", ""),
        {"m": integer(2, 24), "n": integer(2, 24)},
    ),
    Program(
        "n",
        "whether n is prime",
        "return n > 1 and all(n % i for i in range(2, n))",
        ("range(2, n)", "range(3, n)"),
        {"n": choice(2, 3, 4, 5, 7, 8, 9, 11, 16, 13, 32, 64, 21, 1)},
    ),
    Program(
        "n",
        "the primes below n",
        "return [p for p in range(2, n) if all(p % i for i in range(2, p))]",
        ("range(2, n)", "range(1, n)"),
        {"n": integer(5, 20)},
    ),
    Program(
        "n",
        "the divisors of n",
        "return [i for i in range(1, n + 1) if n % i == 0]",
        ("n + 1", "n"),
        _MEDIUM,
    ),
    Program(
        "n",
        "the number of divisors of n",
        "return sum(n % i == 0 for i in range(1, n + 1))",
        ("n + 1", "n"),
        _MEDIUM,
    ),
    Program(
        "n",
        "the sum of the divisors of n below n",
        "return sum(i for i in range(1, n) if n % i == 0)",
        ("n)", "n + 1)"),
        _MEDIUM,
    ),
    Program(
        "n",
        "the prime factors of n",
        "p, y = 2, []\nwhile n > 1:\n    if n % p == 0:\n        y.append(p)\n        n //= p\n"
        "    else:\n        p += 1\nreturn y",
        ("        n //= p", "        n -= p"),
        {"n": choice(4, 6, 8, 9, 10, 12, 15, 18, 20, 24, 27, 28, 30, 36, 45, 50, 60)},
    ),
    Program(
        "n", "the sum of the digits of n", "return sum(map(int, str(n)))", ("sum", "max"), _LARGE
    ),
    Program("n", "the largest digit of n", "return int(max(str(n)))", ("max", "min"), _LARGE),
    Program(
        "n",
        "the number of digits of n",
        "return len(str(n))",
        ("str(n)", "str(n)[1:]"),
        {"n": choice(3, 12, 345, 6789, 20, 77, 100, 9999)},
    ),
    Program(
        "n",
        "the digits of n backwards as a number",
        "return int(str(n)[::-1])",
        ("[::-1]", "[-1]"),
        _LARGE,
    ),
    Program(
        "n",
        "how often the digit {k} is in n",
        "return str(n).count('{k}')",
        ("count", "find"),
        {
            "n": choice(22, 33, 44, 55, 232, 343, 565, 667, 788, 989, 272, 858, 494),
            "k": integer(2, 9),
        },
    ),
    Program(
        "n",
        "the digit sum of n, again and again down to one digit",
        "while n > 9:\n    n = sum(map(int, str(n)))\nreturn n",
        ("while", "if"),
        {"n": choice(29, 38, 49, 57, 78, 99, 199, 289, 888, 12, 68, 77)},
    ),
    Program("n", "n in binary", "return bin(n)[2:]", ("[2:]", "[1:]")),
    Program("n", "the number of ones in n in binary", "return bin(n).count('1')", ("'1'", "'0'")),
    Program(
        "n",
        "the digits of n in base {k}, last first",
        "y = []\nwhile n:\n    y.append(n % {k})\n    n //= {k}\nreturn y",
        ("n % {k}", "n // {k}"),
    ),
    Program(
        "n",
        "how many steps n takes to 1, halved if even, else tripled plus 1",
        "k = 0\nwhile n > 1:\n    n = 3 * n + 1 if n % 2 else n // 2\n    k += 1\nreturn k",
        ("k = 0", "k = 1"),
        _SMALL,
    ),
    Program(
        "n",
        "whether n is the sum of its divisors below n",
        "return sum(i for i in range(1, n) if n % i == 0) == n",
        ("range(1, n)", "range(2, n)"),
        {"n": choice(6, 28, 6, 28, 12, 8, 496, 20)},
    ),
    Program(
        "n",
        "whether n is a square",
        "return int(n ** 0.5) ** 2 == n",
        ("** 2", "* 2"),
        {"n": choice(4, 9, 16, 25, 36, 12, 20, 50, 81, 8)},
    ),
    Program(
        "n", "the square root of n, rounded down", "return int(n ** 0.5)", ("0.5", "2"), _LARGE
    ),
    Program(
        "n",
        "the last digit of {k} to the power n",
        "return pow({k}, n, 10)",
        ("pow({k}, n, 10)", "{k} * n % 10"),
        {"k": choice(2, 3, 4, 7, 8)},
    ),
    Program(
        "n", "the sum of the numbers from 1 to n", "return n * (n + 1) // 2", ("n + 1", "n - 1")
    ),
    Program(
        "n",
        "the sum of the squares from 1 to n",
        "return sum(i * i for i in range(n + 1))",
        ("n + 1", "n"),
        _SMALL,
    ),
    Program(
        "n",
        "the sum of the multiples of {k} below n",
        "return sum(range(0, n, {k}))",
        ("0, n, {k}", "n"),
        {"n": integer(10, 40)},
    ),
    Program(
        "n",
        "the numbers from 1 to n, with 0 for multiples of {k}",
        "return [i if i % {k} else 0 for i in range(1, n + 1)]",
        ("n + 1", "n"),
        {"n": integer(6, 12), "k": _FEW},
    ),
    Program(
        "n",
        "{c} if n is a multiple of {k}, else {d}",
        "return {d} if n % {k} else {c}",
        ("{d} if n % {k} else {c}", "{c} if n % {k} else {d}"),
    ),
    Program(
        "n",
        "the first {k} multiples of n",
        "return [n * i for i in range(1, {k} + 1)]",
        ("{k} + 1", "{k}"),
        _SMALL,
    ),
    Program(
        "n",
        "row n of Pascal's triangle, row 0 is 1",
        "y = [1]\nfor i in range(n):\n    y = [a + b for a, b in zip([0] + y, y + [0])]\nreturn y",
        ("y + [0]", "y"),
        {"n": integer(1, 7)},
    ),
    Program(
        "n",
        "whether n is a power of 2",
        "return n & (n - 1) == 0",
        ("n & (n - 1)", "n % 2"),
        {"n": choice(4, 8, 16, 32, 64, 6, 12, 10, 20, 48)},
    ),
    Program(
        "n",
        "n as a Roman numeral",
        "y = ''\nfor v, c in (10, 'X'), (9, 'IX'), (5, 'V'), (4, 'IV'), (1, 'I'):\n"
        "    while n >= v:\n        y += c\n        n -= v\nreturn y",
        ("n >= v", "n > v"),
        {"n": integer(1, 29)},
    ),
    Program(
        "n",
        "whether n is a leap year",
        "return n % 4 == 0 and (n % 100 != 0 or n % 400 == 0)",
        (" and (n % 100 != 0 or n % 400 == 0)", ""),
        {"n": choice(1900, 2000, 2004, 2100, 1999, 1600, 1700, 2024)},
    ),
    Program(
        "m n",
        "the number of shortest ways over a grid of m by n",
        "t = [1] * (n + 1)\nfor i in range(m):\n    for j in range(n):\n"
        "        t[j + 1] += t[j]\nreturn t[n]",
        ("t[j + 1] += t[j]", "t[j + 1] += 1"),
        {"m": integer(2, 6), "n": integer(2, 6)},
    ),
    Program(
        "n",
        "the number of ways up n stairs, 1 to {k} at a time",
        "t = [1]\nfor i in range(n):\n    t.append(sum(t[-{k}:]))\nreturn t[n]",
        ("t[-{k}:]", "t[:{k}]"),
        {"n": integer(4, 9), "k": _FEW},
    ),
    Program(
        "n",
        "who of 0 to n - 1 in a circle is left when counting out by {k}",
        "k = 0\nfor i in range(1, n):\n    k = (k + {k}) % (i + 1)\nreturn k",
        ("% (i + 1)", "% i"),
        {"n": integer(3, 12), "k": _FEW},
    ),
    Program(
        "n", "the moves that a tower of n discs takes", "return 2 ** n - 1", (" - 1", ""), _SMALL
    ),
    Program(
        "m n",
        "m to the power of n",
        "return m ** n",
        ("m ** n", "m * n"),
        {"m": integer(2, 6), "n": integer(2, 6)},
    ),
    Program(
        "m n",
        "the remainder of m by n",
        "return m % n",
        ("%", "//"),
        {"m": integer(10, 60), "n": integer(3, 9)},
    ),
    Program(
        "m n",
        "how often n goes into m, and the rest, as a list",
        "return [m // n, m % n]",
        ("m // n, m % n", "m % n, m // n"),
        {"m": integer(10, 60), "n": integer(3, 9)},
    ),
    Program("m n", "the distance of m and n", "return abs(m - n)", ("abs(m - n)", "m - n")),
    Program(
        "m n",
        "the numbers from m to n",
        "return list(range(m, n + 1))",
        ("n + 1", "n"),
        {"m": integer(1, 9), "n": integer(10, 15)},
    ),
    Program(
        "m n",
        "the sum of the numbers from m to n",
        "return sum(range(m, n + 1))",
        ("n + 1", "n"),
        {"m": integer(1, 9), "n": integer(10, 30)},
    ),
)

"""The sandbox from the outside: snippets that mean no harm, many callers, broken zygotes."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from sandboxes import LIMITS, TIERS, opened, why_not

from elpo_jax.errors import UsageError
from elpo_jax.sandbox import Limits, Sandbox, Sandboxes, Snippet, Status, Tier, described, probe
from elpo_jax.sandbox.zygotes import Zygote, ZygoteFailure
from elpo_jax.tools.base import ToolFailure

BEST = next((tier for tier in TIERS if not why_not(tier)), None)
pytestmark = pytest.mark.skipif(BEST is None, reason="no tier holds here")


@pytest.fixture(scope="module")
def sandbox():
    with opened(BEST, preload=("numpy", "sympy")) as sandbox:
        yield sandbox


def output(sandbox, *cells, **fields):
    result = sandbox.run(Snippet(cells, **fields))
    assert result.status is Status.OK, result.stderr.decode()
    return result.stdout.decode()


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        ("1 + 1", "2\n"),
        ("print(1)", "1\n"),
        ("x = 3", ""),
        ("x = 3\nx", "3\n"),
        ("None", ""),
        ("'a'", "'a'\n"),
        ("print(1); 2", "1\n2\n"),
        ("if True:\n    3", ""),
        ("def f(x):\n    return x * 2\nf(4)", "8\n"),
        ("# nothing", ""),
        ("", ""),
        ("'ü' + '\U0001f600'", "'ü\U0001f600'\n"),
        ("import sympy\nx = sympy.symbols('x')\nsympy.diff(x**3)", "3*x**2\n"),
        ("import numpy as np\nnp.eye(2)", "array([[1., 0.],\n       [0., 1.]])\n"),
        ("import sys\nsys.exit(0)", ""),
        ("import colorsys, wave\n1", "1\n"),  # of the library, and not loaded yet
        ("open('file', 'w').write('abc'); open('file').read()", "'abc'\n"),
        ("import asyncio\nasync def f(): return 1\nasyncio.run(f())", "1\n"),
        ("import tempfile; tempfile.gettempdir() == __import__('os').getcwd()", None),
        ("__name__", "'__main__'\n"),
        ("{1, 'a', 'b'}", None),
    ],
)
def test_snippets(sandbox, code, printed):
    first = output(sandbox, code)
    assert printed is None or first == printed
    assert output(sandbox, code) == first


def test_no_echo(sandbox):
    assert output(sandbox, "1 + 1", echo=False) == ""
    assert output(sandbox, "print(2)\n3", echo=False) == "2\n"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("1/0", "ZeroDivisionError: division by zero"),
        ("x = (", "SyntaxError"),
        ("raise ValueError('no\\nmore')", "ValueError: no"),
        ("import nothing_like_it", "ModuleNotFoundError"),
        ("class E(BaseException): pass\nraise E", "E"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise SystemExit('bye')", "bye"),
        ("\ud800", "UnicodeEncodeError"),
        ("x\0y", "source code string cannot contain null bytes"),
        ("print('\\ud800')", "UnicodeEncodeError"),
    ],
)
def test_errors(sandbox, code, error):
    result = sandbox.run(Snippet((code,)))
    assert result.status is Status.ERROR
    text = result.stderr.decode()
    assert error in text
    assert "elpo_jax" not in text


def test_a_syntax_error_shows_the_snippet_alone(sandbox):
    result = sandbox.run(Snippet(("x = 1\nx = (",)))
    assert result.stderr.decode().splitlines()[:2] == ['  File "<cell 1>", line 2', "    x = ("]
    assert b"ast.py" not in result.stderr


ENDS = {
    "thread": "threading.Thread(target=lambda: (time.sleep(0.1), print(1))).start()",
    "deep thread": (
        "sys.setrecursionlimit(10**6); threading.stack_size(1 << 27)\n"
        "def f(n): return n and f(n - 1)\n"
        "threading.Thread(target=lambda: print(1 + f(20000))).start()"
    ),
    "pool": "concurrent.futures.ThreadPoolExecutor(1).submit(lambda: (time.sleep(0.1), print(1)))",
    "exit handler": "atexit.register(print, 1)",
    "after leaving": "atexit.register(print, 1); sys.exit()",
    "buffer": (
        "real, sys.stdout = sys.stdout, io.StringIO()\n"
        "atexit.register(lambda: real.write(sys.stdout.getvalue()))\nprint(1)"
    ),
    "file": "file = open(1, 'w'); file.write('1\\n')",
    "bytes": "files = [os.fdopen(1, 'wb')]; files[0].write(b'1\\n')",
    "own class": "class F(io.FileIO): pass\nio.TextIOWrapper(io.BufferedWriter(F(1, 'w')))"
    ".write('1\\n')",
}


@pytest.mark.parametrize("way", ENDS)
def test_a_program_ends_as_under_the_interpreter(sandbox, way):
    code = f"import atexit, concurrent.futures, io, os, sys, threading, time\n{ENDS[way]}"
    assert output(sandbox, code, echo=False) == "1\n"
    program = [sys.executable, "-c", code]
    assert subprocess.run(program, capture_output=True, check=True).stdout == b"1\n"


def test_what_follows_the_end_of_a_program_is_limited_too(sandbox):
    endless = "import threading\ndef f():\n    while True: pass\n"
    for start in ("threading.Thread(target=f).start()", "import atexit; atexit.register(f)"):
        result = sandbox.run(Snippet((f"{endless}print(1)\n{start}",), echo=False))
        assert (result.status, result.stdout) == (Status.TIMEOUT, b"1\n")
    daemon = f"{endless}threading.Thread(target=f, daemon=True).start()\nprint(2)"
    assert output(sandbox, daemon) == "2\n"


def test_a_traceback_shows_the_snippets_lines_alone(sandbox):
    result = sandbox.run(Snippet(("def f(x):\n    return 1 / x\n\nf(0)",)))
    lines = result.stderr.decode().splitlines()
    assert lines[:3] == [
        "Traceback (most recent call last):",
        '  File "<cell 1>", line 4, in <module>',
        "    f(0)",
    ]
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_cells_share_a_namespace_and_the_last_one_is_heard(sandbox):
    cells = ("print('old'); x = 1", "x += 1\n1/0", "import os; os.write(1, b'raw')", "print(x)\nx")
    assert output(sandbox, *cells) == "2\n2\n"


def test_equal_seeds_give_equal_draws(sandbox):
    code = "import random, numpy\n(random.random(), numpy.random.rand(), hash('a'))"
    assert output(sandbox, code, seed=3) == output(sandbox, code, seed=3)
    assert output(sandbox, code, seed=3) != output(sandbox, code, seed=4)
    # A branch stands where its prefix stood: what was drawn before is drawn again.
    draw = "import random\nx = random.random()"
    assert output(sandbox, draw, "x", seed=5) == output(sandbox, draw, "1", "x", seed=5)


def test_equal_seeds_give_equal_draws_in_every_zygote(sandbox):
    code = "import random, numpy, sympy\n(random.random(), numpy.random.rand(), "
    code += "sympy.randprime(10**8, 10**9), [sympy.core.random.random() for i in range(3)])"
    with opened(BEST, preload=("numpy", "sympy")) as other:
        assert output(other, code, seed=7) == output(sandbox, code, seed=7)
    assert output(sandbox, code, seed=7) != output(sandbox, code, seed=8)


def test_stdin_is_bytes_of_any_length(sandbox):
    stdin = os.urandom(3 << 20)
    code = "import sys, hashlib; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())"
    expected = __import__("hashlib").sha256(stdin).hexdigest()
    assert output(sandbox, code, stdin=stdin) == expected + "\n"


def test_many_callers_share_a_few_workers():
    """Each gets its own answer, and no more zygotes start than there are workers."""
    config = replace(LIMITS, workers=2)
    others = set(zygote_pids())
    with opened(BEST, preload=(), config=config) as sandbox:
        answers = {}

        def ask(number):
            for i in range(5):
                answers[number, i] = output(sandbox, f"{number} * 100 + {i}")

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == {(n, i): f"{n * 100 + i}\n" for n in range(16) for i in range(5)}
        assert sandbox.counters.restarts == 0
        assert len(set(zygote_pids()) - others) <= 2
        assert sandbox.counters.snippets == 80


def zygote_pids():
    found = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "elpo_jax.sandbox.inside.zygote"],
        capture_output=True,
        text=True,
        check=False,
    )
    return [int(line) for line in found.stdout.split()]


def test_a_killed_zygote_is_replaced():
    with opened(BEST, preload=()) as sandbox:
        others = set(zygote_pids())
        assert output(sandbox, "1") == "1\n"
        (pid,) = set(zygote_pids()) - others
        os.kill(pid, signal.SIGKILL)
        assert output(sandbox, "2") == "2\n"
        assert sandbox.counters.restarts == 1
        # In the middle of a snippet too.
        timer = threading.Timer(0.3, lambda: [os.kill(p, 9) for p in set(zygote_pids()) - others])
        timer.start()
        assert output(sandbox, "import time; time.sleep(0.6); 3") == "3\n"
        timer.join()
        assert sandbox.counters.restarts == 2


def test_a_sandbox_that_stays_broken_is_a_failure_of_the_tool(monkeypatch):
    with opened(BEST, preload=()) as sandbox:
        sandbox.start()

        def broken(self, snippet, limits):
            raise ZygoteFailure("it broke")

        monkeypatch.setattr(Zygote, "run", broken)
        with pytest.raises(ToolFailure, match=r"^sandbox: it broke$"):
            output(sandbox, "1")
        monkeypatch.undo()
        assert output(sandbox, "1") == "1\n"


def test_closing():
    sandbox = Sandbox(replace(LIMITS, tier=str(BEST)), preload=())
    others = set(zygote_pids())
    running = threading.Thread(target=lambda: output(sandbox, "import time; time.sleep(0.5)"))
    running.start()
    while not set(zygote_pids()) - others:
        time.sleep(0.01)
    time.sleep(0.2)
    sandbox.close()
    sandbox.close()
    running.join()
    deadline = time.monotonic() + 10
    while set(zygote_pids()) - others and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(zygote_pids()) - others
    with pytest.raises(ToolFailure, match="closed"):
        output(sandbox, "1")


KILLED = """
import sys, threading
from elpo_jax.config import SandboxConfig
from elpo_jax.sandbox import Sandbox, Snippet
sandbox = Sandbox(SandboxConfig(workers=1), preload=())
sandbox.start()
threading.Thread(target=lambda: sandbox.run(Snippet(("import time; time.sleep(60)",)))).start()
print("started", flush=True)
"""


def test_nothing_outlives_a_killed_trainer():
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    time.sleep(0.5)
    found = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    (zygote,) = map(int, found.stdout.split())
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{zygote}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{zygote}")


def test_a_module_that_isnt_there_is_named():
    sandbox = Sandbox(replace(LIMITS, tier="auto"), preload=("nothing_like_it",))
    with pytest.raises(UsageError, match="module nothing_like_it isn't installed"):
        sandbox.start()


# --- The ladder -----------------------------------------------------------------------------------


def test_the_strongest_tier_is_taken(monkeypatch):
    """Where the stronger ones can't be set up, or don't hold, the next is."""
    real, broken = probe.Zygote, set()

    def zygote(tier, preload):
        if tier in broken:
            raise ZygoteFailure("not allowed")
        return real(tier, preload)

    monkeypatch.setattr(probe, "Zygote", zygote)
    allowed = [tier for tier in TIERS if not why_not(tier)]
    for expected in allowed:
        chosen, tier, failures = probe.choose(None, False, ())
        chosen.close()
        assert tier == expected
        assert failures[: len(broken)] == [f"{one}: not allowed" for one in TIERS if one in broken]
        line = described(tier, failures)
        assert line.startswith("WARNING" if failures else "the policy's code runs in")
        assert all(failure in line for failure in failures)
        broken.add(expected)
    broken.update(TIERS)
    with pytest.raises(UsageError) as caught:
        probe.choose(None, False, ())
    (line,) = caught.value.problems
    assert line == (
        "sandbox: nothing here keeps the policy's code from the host (T1: not allowed; T2: not "
        "allowed; T3: not allowed); --config.sandbox.allow_unsafe=true runs it all the same"
    )
    with pytest.raises(UsageError, match=r"^sandbox.tier: expected one that holds on this machine"):
        probe.choose(Tier.T2, True, ())
    unsafe, tier, failures = probe.choose(None, True, ())
    assert failures == ["T1: not allowed", "T2: not allowed", "T3: not allowed"]
    try:
        assert tier is Tier.UNSAFE
        result, _ = unsafe.run(Snippet(("1 + 1",)), Limits())
        assert result.stdout == b"2\n"
    finally:
        unsafe.close()


def test_a_run_says_why_a_stronger_tier_wasnt_taken(monkeypatch):
    if why_not(Tier.T2):
        pytest.skip("T2 doesn't hold here")
    real = probe.Zygote

    def zygote(tier, preload):
        if tier is Tier.T1:
            raise ZygoteFailure("ended, or hung, while it was starting")
        return real(tier, preload)

    monkeypatch.setattr(probe, "Zygote", zygote)
    sandboxes = Sandboxes(replace(LIMITS, tier="auto"))
    try:
        sandboxes.get(())
        sandboxes.get(("json",))
        tier = sandboxes.start()
        assert described(tier, sandboxes.failures) == (
            "WARNING: the policy's code runs in sandbox tier T2: Landlock and seccomp, without "
            "namespaces; names and sizes of this machine's files can be seen (what is stronger "
            "doesn't hold here: T1: ended, or hung, while it was starting)"
        )
    finally:
        sandboxes.close()


def test_a_tier_that_doesnt_hold_is_found_out(monkeypatch):
    """Each attack gets through without a lock."""
    monkeypatch.setattr(probe, "Zygote", lambda tier, preload: Zygote(Tier.UNSAFE, preload))
    with pytest.raises(UsageError, match="T1: reading a file isn't prevented; T2: reading a file"):
        probe.choose(None, False, ())
    unsafe = Zygote(Tier.UNSAFE, ())
    try:
        with probe._host_file() as file:
            for attack in probe.ATTACKS:
                if attack.name == "memory":  # the one thing that limits alone prevent
                    continue
                source = attack.source.format(file=str(file), pid=os.getpid())
                result, _ = unsafe.run(Snippet((source,), echo=False), probe._LIMITS)
                assert result.stdout != b"held\n", attack.name
    finally:
        unsafe.close()

"""Ways round single walls of the sandbox, each of which once led out: on every tier."""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sandboxes import LIMITS, TIERS, opened, replace_tier, why_not

from elpo_jax.sandbox import Limits, Sandbox, Snippet, Status
from elpo_jax.sandbox.inside.isolation import empty, used
from elpo_jax.tools.code_interpreter import CodeInterpreter


@pytest.fixture(scope="module", params=TIERS)
def sandbox(request):
    problem = why_not(request.param)
    if problem:
        pytest.skip(problem)
    with opened(request.param) as sandbox:
        yield sandbox


def run(sandbox, code, stdin=b"", **limits):
    given = Limits(**{**vars(sandbox.limits), "cpu_seconds": 5, "wall_seconds": 20, **limits})
    return sandbox.run(Snippet((code,), stdin=stdin, echo=False), given)


@pytest.mark.parametrize(
    "line",
    [
        "os.chmod({file!r}, 0o777)",
        "os.fchmod(os.open({file!r}, os.O_RDONLY), 0o777)",
        "os.utime({file!r}, (1, 1))",
        "os.setxattr({file!r}, 'user.a', b'1')",
        "os.truncate({file!r}, 0)",
        "os.chown({file!r}, 0, 0)",
        "libc.syscall(452, -100, {file!r}.encode(), 0o777, 0)",  # fchmodat2
    ],
)
def test_what_isnt_opened_isnt_changed_either(sandbox, tmp_path, line):
    """Landlock doesn't know these calls; the file belongs to the user who runs snippets."""
    file = tmp_path / "file"
    file.write_text("host")
    os.chmod(file, 0o644)
    before = os.stat(file)
    run(sandbox, f"import ctypes, os\nlibc = ctypes.CDLL(None)\n{line.format(file=str(file))}")
    assert os.stat(file) == before
    assert (file.read_text(), os.listxattr(file)) == ("host", [])


def test_modes_and_times_can_be_set_in_the_work_folder(sandbox):
    code = (
        "import shutil\nopen('a', 'w').write('x'); shutil.copy2('a', 'b'); print(open('b').read())"
    )
    assert run(sandbox, code).stdout == b"x\n"


@pytest.mark.parametrize("send", ["sendto(b'hi', {0!r})", "sendmsg([b'hi'], [], 0, {0!r})"])
def test_datagrams_reach_no_socket_of_the_hosts(sandbox, tmp_path, send):
    path = str(tmp_path / "socket")
    os.chmod(tmp_path, 0o777)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as host:
        host.bind(path)
        os.chmod(path, 0o777)
        host.setblocking(False)
        pair = "import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        run(sandbox, f"{pair}a.{send.format(path)}")
        with pytest.raises(BlockingIOError):
            host.recv(2)
    # Through which asyncio wakes itself up.
    assert run(sandbox, pair + "a.send(b'hi'); print(b.recv(2))").stdout == b"b'hi'\n"


@pytest.mark.parametrize("mode", ["0o777", "0o300"])
def test_folders_too_deep_for_a_path(sandbox, mode):
    """They must neither break the zygote nor hide files from whoever counts them."""
    code = f"import os\nfor i in range(45):\n    os.mkdir('d' * 100, {mode}); os.chdir('d' * 100)\n"
    write = "import time\nfor i in range(9): open(str(i), 'wb').write(bytes(1 << 20))\n"
    result = run(sandbox, code + write + "time.sleep(9); print('room')", wall_seconds=15)
    assert (result.status, result.stdout) == (Status.ERROR, b"")
    restarts = sandbox.counters.restarts
    assert run(sandbox, "import os; print(os.listdir())").stdout == b"[]\n"
    assert sandbox.counters.restarts == restarts


@pytest.mark.slow  # a journal is slow at removing folders
def test_hostile_folders_are_looked_through_and_emptied(tmp_path):
    file = tmp_path / "kept"
    file.write_text("x")
    work = tmp_path / "work"
    work.mkdir()
    here = os.open(work, os.O_RDONLY)
    for _ in range(1001):  # deeper than paths and recursion go
        os.mkdir("d" * 50, 0o777, dir_fd=here)
        os.symlink(file, "link", dir_fd=here)
        below = os.open("d" * 50, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert min(used(str(work), 1 << 30, 10000)) > 1 << 40
    empty(str(work))
    assert (list(work.iterdir()), file.read_text()) == ([], "x")


SWAPPED = """
import ctypes, os, time
libc = ctypes.CDLL(None)
for i in range(20):
    os.mkdir(f"d{{i}}")
    os.symlink({target!r}, f"l{{i}}")
names = [(f"d{{i}}".encode(), f"l{{i}}".encode()) for i in range(20)]
end = time.monotonic() + 1.5
while time.monotonic() < end:
    for folder, link in names:
        libc.renameat2(-100, folder, -100, link, 2)  # RENAME_EXCHANGE
print("done")
"""


def test_a_link_put_in_a_folders_place_isnt_followed(sandbox, tmp_path):
    """Whoever looks through the work folder isn't locked in."""
    big = tmp_path / "big"
    big.mkdir()
    for number in range(100):
        (big / str(number)).touch()
    assert run(sandbox, SWAPPED.format(target=str(big))).stdout == b"done\n"


def test_looking_stops_once_there_is_too_much(tmp_path):
    for number in range(50):
        (tmp_path / str(number)).write_bytes(b"x" * 4096)
    assert used(str(tmp_path), 1 << 30, 10) == (11 * 4096, 11)
    assert used(str(tmp_path), 4096, 100)[1] == 2
    assert used(str(tmp_path), 1 << 30, 100) == (50 * 4096, 50)


SCAN = """
import ctypes, os, re
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
reader, writer = os.pipe()
found, seen, page = set(), 0, 4096

def look(address):
    global seen
    if libc.write(writer, ctypes.c_void_p(address), ctypes.c_size_t(page)) != page:
        return False
    seen += 1
    found.update(re.findall(rb'zq[0-9a-f]{32}', os.read(reader, page)))
    return True

end = libc.sbrk(0)
for number in range(1, 10000):
    if not look(end - number * page):
        break
for near in {id(x) >> 20 for x in (object(), [], {}, b'x' * 600, 'y' * 5000)}:
    for number in range(-(1 << 10), 1 << 10):
        look((near << 20) + number * page)
print(seen > 1000, sorted(found))
"""


def test_nothing_of_the_snippet_before_is_left_in_memory(sandbox):
    """A child is a copy of its zygote, freed memory included."""
    source, stdin, output = ("zq" + secrets.token_hex(16) for _ in range(3))
    halves = output[:10], output[10:]
    code = f"x = {source!r} * 9\nprint(input() * 9, ({halves[0]!r} + {halves[1]!r}) * 9)"
    assert run(sandbox, code, f"{stdin}\n".encode()).status is Status.OK
    # The pattern isn't one of the tokens, so that what it finds comes from elsewhere.
    assert not re.search(r"zq[0-9a-f]{32}", SCAN)
    assert run(sandbox, SCAN).stdout == b"True []\n"


def test_what_was_printed_before_the_time_was_up(sandbox):
    assert run(sandbox, "print('so far')\nwhile True: pass", cpu_seconds=1).stdout == b"so far\n"
    slow = run(sandbox, "import time\nprint('so far')\ntime.sleep(9)", wall_seconds=0.5)
    assert (slow.status, slow.stdout) == (Status.TIMEOUT, b"so far\n")


def test_a_snippets_classes_are_found_in_main(sandbox):
    code = "import pickle\nclass A: x = 1\nprint(pickle.loads(pickle.dumps(A())).x)"
    assert run(sandbox, code).stdout == b"1\n"


def test_a_call_that_was_killed_doesnt_haunt_its_session(sandbox):
    tool = CodeInterpreter(sandbox, session=True)
    state, _ = tool.call((), {"code": "x = 1"})
    for code in ("while True: pass", "import ctypes; ctypes.string_at(0)", "while 1: print('y')"):
        after, seen = tool.call(state, {"code": code})
        assert (after, seen.error) == (state, "tool_error")
    assert tool.call(state, {"code": "x"})[1].text == "1"


def test_an_interrupted_call_leaves_no_answer_for_the_next(sandbox, monkeypatch):
    alarm = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            run(sandbox, "import time; time.sleep(1); print('old')")
    finally:
        signal.signal(signal.SIGALRM, alarm)
    assert run(sandbox, "print('new')").stdout == b"new\n"


# A trainer with a child of its own that lives on and holds copies of all descriptors.
FORKED = """
import os, sys, threading, time
from elpo_jax.config import SandboxConfig
from elpo_jax.sandbox import Sandbox, Snippet
sandbox = Sandbox(SandboxConfig(workers=1, tier=sys.argv[1]), preload=())
sandbox.start()
done, say = os.pipe()
child = os.fork()
if not child:
    print(sandbox.run(Snippet(("print('mine')",))).stdout, flush=True)
    sandbox.close()
    os.close(1)
    os.write(say, b'1')
    time.sleep(60)
    os._exit(0)
os.read(done, 1)
print(sandbox.run(Snippet(("print('still there')",))).stdout, child, flush=True)
sandbox.run(Snippet(("import time; time.sleep(60)",)))
"""


def children(pid):
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


@pytest.mark.parametrize("tier", TIERS)
def test_a_fork_of_the_trainer_has_its_own_and_keeps_nothing_alive(tier, tmp_path):
    problem = why_not(tier)
    if problem:
        pytest.skip(problem)
    trainer = subprocess.Popen(
        [sys.executable, "-c", FORKED, str(tier)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    try:
        assert trainer.stdout.readline() == "b'mine\\n'\n"
        answer, child = trainer.stdout.readline().rsplit(" ", 1)
        assert answer == "b'still there\\n'"
        (zygote,) = set(children(trainer.pid)) - {int(child)}
        inner = children(zygote)
        time.sleep(0.3)
    finally:
        trainer.kill()
        trainer.wait()
    try:
        os.kill(int(child), 0)  # the fork is there, and with it the other end of the sockets
        deadline = time.monotonic() + 10
        left = [zygote, *inner]
        while left and time.monotonic() < deadline:
            time.sleep(0.05)
            left = [pid for pid in left if Path(f"/proc/{pid}").exists()]
        assert not left
        assert not list(tmp_path.glob("elpo_jax_sandbox_*"))
    finally:
        os.kill(int(child), signal.SIGKILL)
        trainer.stdout.close()


def test_closing_a_sandbox_that_never_ran():
    Sandbox(replace_tier(LIMITS, "auto")).close()

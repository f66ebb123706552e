"""Makes the report of a run: `python -m elpo_jax.report --workdir DIR [--pages N]`.

DIR may be of a run that is going on, ended or was killed. Training makes the same at its end.
"""

from collections.abc import Sequence
from pathlib import Path

from elpo_jax.cli import Option, parse_options, run
from elpo_jax.errors import UsageError
from elpo_jax.report.report import PAGES, write_report
from elpo_jax.workdir import WorkDir

OPTIONS = [
    Option("workdir", "the folder of the run"),
    Option("pages", "files of training trees that get a page, spread evenly", str(PAGES)),
]


def main(argv: Sequence[str]) -> None:
    options = parse_options(argv, OPTIONS)
    if not options["pages"].isdecimal():
        raise UsageError([f"--pages: expected a number, got {options['pages']!r}"])
    print(write_report(WorkDir(Path(options["workdir"])), int(options["pages"])))


if __name__ == "__main__":
    run(main)

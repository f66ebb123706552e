"""Templates to pages: everything a run or a policy wrote is escaped, and nothing is fetched.

A page holds its styles and its script. Its content security policy lets only that script run, by
its hash, and nothing load from anywhere.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from elpo_jax.report import charts, layout, words
from elpo_jax.report.failures import mode_words

TEMPLATES = Path(__file__).parent / "templates"


def render(name: str, **values: Any) -> str:
    """The page of `templates/NAME.html.jinja`; `templates/NAME.js` is its script."""
    script = _read(f"{name}.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _ENVIRONMENT.get_template(f"{name}.html.jinja").render(
        **values,
        style=Markup(_read("style.css")),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    )


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": words.percent,
        "points": words.points,
        "signed": words.signed,
        "number": words.number,
        "clip": words.clip,
        "short": words.short,
        "mode": mode_words,
    }
    environment.globals |= {"charts": charts, "layout": layout}
    return environment


_ENVIRONMENT = _environment()

"""Folders of runs for tests of the report: config, metrics and trees as training writes them."""

import json
from dataclasses import replace
from html.parser import HTMLParser

from worlds import answer_step, call_step, empty_tree, rollout

from elpo_jax.config import Config, to_dict
from elpo_jax.credit import tree_advantages
from elpo_jax.rollout.tree import ROOT, Localization, Probe
from elpo_jax.rollout.tree_json import to_json
from elpo_jax.workdir import WorkDir, write_json

KINDS = ("mass", "ratio")
CALLS = (2, 3)


def searched_tree(task="train/0"):
    """Rollout 0 (nodes 0-2) fails; suffixes after its steps 1 (node 3, right) and 2 (node 4)."""
    tree = empty_tree()
    tree.task = replace(tree.task, id=task)
    tree.add(rollout(0, ROOT, [call_step(), call_step(), answer_step()], False))
    tree.add(rollout(1, 0, [answer_step()], True))
    tree.add(rollout(2, 1, [answer_step()], False))
    tree.add(rollout(3, ROOT, [call_step(error="tool_error"), answer_step()], False, end="length"))
    tree.localizations += [
        Localization(2, 2, 2, True, (Probe(1, 1, 1), Probe(2, 1, 0)), 1, True),
        Localization(6, 1, 2, False, (), 5, False),
    ]
    return tree


def document(tree, decode=lambda ids: f"{len(ids)} tokens", credit=True):
    advantages = tree_advantages(tree, Config().credit)._asdict() if credit else None
    return to_json(tree, advantages, decode=decode)


def evaluation(success, kinds=KINDS, samples=2):
    """One tree a kind; `success(kind, number, sample)` says what came of the samples."""
    documents = []
    for number, kind in enumerate(kinds):
        tree = empty_tree()
        tree.task = replace(tree.task, id=f"held_out/{number}", kind=kind, question=f"{kind}?")
        for sample in range(samples):
            right = success(kind, number, sample)
            tree.add(rollout(sample, ROOT, [call_step(), call_step(), answer_step()], right))
        documents.append(document(tree, credit=False))
    return documents


def evaluation_row(successes, trials=20, answered=1.0):
    """Metrics of an evaluation of half as many tasks of each kind, all of the same success."""
    share = successes / trials
    row = {
        "eval/success": share,
        "eval/tasks": float(trials),
        "eval/reward": 2 * share - 1,
        "eval/response_length": 70.0,
        "eval/calls": 3.0,
        "eval/error_share": 0.05,
        "eval/end_answer": answered,
        "eval/end_length": 1 - answered,
        "time/eval": 2.0,
    }
    for kind in KINDS:
        row |= {f"eval/success/{kind}": share, f"eval/trials/{kind}": trials / 2}
    for calls in CALLS:
        row |= {
            f"eval/success_by_calls/{calls}": share,
            f"eval/trials_by_calls/{calls}": trials / 2,
        }
    return row


def step_row(step, steps):
    part = step / steps
    return {
        "reward/mean": part - 0.5,
        "success/unaided": part,
        "rollout/tasks": 16.0,
        "success/mean": part / 2,
        "episode/end_answer": 0.5 + part / 2,
        "episode/error_share": 0.2 - part / 10,
        "episode/drops": 0,
        "bel/searches": 2.0,
        "bel/localized_frac": 0.5,
        "bel/relative_position": 0.4,
        "bel/probes": 1.5,
        "bel/suffixes": 3.0,
        "policy/clip_frac_low": 0.011,
        "policy/clip_frac_low_plain": 0.0125,
        "policy/clip_frac_low_elc": 0.00375,
        "policy/clip_frac_high": 0.02,
        "policy/clip_frac_high_plain": 0.0225,
        "policy/clip_frac_high_elc": 0.00625,
        "policy/entropy": 0.3,
        "policy/kl_old": 1e-4,
        "policy/grad_norm": 0.5,
        "policy/trained_rows_frac": 0.6,
        "sampler/saved_tokens": 300,
        "sampler/prefill_tokens": 100,
        "sampler/decode_tokens": 500,
        "sampler/tokens_per_s": 166.7,
        "update/tokens_per_s": 987.6,
        "time/rollout": 3.0,
        "time/update": 2.0,
        "time/step": 6.0,
    }


def make_run(path, before=4, after=16, steps=4):
    """A finished run whose evaluations solve `before` and `after` of 20; returns its `WorkDir`."""
    folder = WorkDir(path)
    path.mkdir(parents=True, exist_ok=True)
    config = Config()
    config = replace(config, train=replace(config.train, steps=steps))
    write_json(folder.config, to_dict(config))
    rows = [{"step": 0} | evaluation_row(before, answered=0.5)]
    rows += [{"step": step} | step_row(step, steps) for step in range(1, steps + 1)]
    rows[-1] |= evaluation_row(after)
    write_rows(folder, rows)
    folder.trees.mkdir(exist_ok=True)
    for step in range(1, steps + 1):
        write_trees(folder.step_trees(step), [document(searched_tree(f"train/{step}"))])
    write_trees(folder.evaluation_trees(0), evaluation(lambda kind, n, s: kind == "mass"))
    write_trees(folder.evaluation_trees(steps), evaluation(lambda kind, n, s: s == 0))
    return folder


def write_rows(folder, rows):
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_trees(file, documents):
    file.write_text(json.dumps(documents))


class Page(HTMLParser):
    """What a browser would make of a page: tags, attributes, text outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.scripts = [], [], [], []
        self._raw = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.texts.append("" if tag in ("a", "b", "code", "span", "strong") else " ")
        self.attributes += [(name, value or "") for name, value in attributes]
        self._raw = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._raw = None

    def handle_data(self, data):
        if self._raw == "script":
            self.scripts.append(data)
        elif self._raw is None:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join("".join(self.texts).split())


def read_page(path):
    return Page(path.read_text(encoding="utf-8"))

"""Search against BM25 worked out slowly; its cache, its files, and the suite that uses it."""

import json
import math
import random
from collections import Counter

import pytest

from elpo_jax.config import SandboxConfig, SuiteConfig
from elpo_jax.errors import RunFault, UsageError
from elpo_jax.sandbox import Sandbox
from elpo_jax.tasks import make_suite
from elpo_jax.tasks.base import HELD_OUT, TRAIN
from elpo_jax.tasks.question import Question
from elpo_jax.tasks.science import facts
from elpo_jax.tasks.science.elements import Element, elements
from elpo_jax.tasks.science.suite import ScienceSuite
from elpo_jax.tools import search
from elpo_jax.tools.corpus import MAX_PASSAGE, passages_of, read_corpus
from elpo_jax.tools.search import MAX_QUERY, Search, words_of

SMALL = ("Iron rusts.", "Gold never rusts.", "Rust eats iron, and iron feeds rust.", "Gold is 19.3")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def answer(tool, query, **more):
    return tool.call(None, {"query": query, **more})[1]


def bm25(passages, query, k1=1.5, b=0.75):
    """Scores as in https://dl.acm.org/doi/10.1561/1500000019, with Lucene's idf."""
    documents = [Counter(words_of(passage)) for passage in passages]
    lengths = [sum(document.values()) for document in documents]
    mean = sum(lengths) / len(lengths)
    scores = []
    for document, length in zip(documents, lengths, strict=True):
        score = 0.0
        for word in set(words_of(query)):
            n = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
            f = document[word]
            score += idf * f / (f + k1 * (1 - b + b * length / mean))
        scores.append(score)
    return scores


def test_scores_and_order_are_those_of_the_formula():
    rng = random.Random(0)
    vocabulary = [f"w{i}" for i in range(40)]
    passages = [" ".join(rng.choices(vocabulary, k=rng.randint(1, 12))) for _ in range(200)]
    tool = Search(passages, None)
    for _ in range(50):
        query = " ".join(rng.choices([*vocabulary, "unheard"], k=rng.randint(1, 5)))
        scores = bm25(passages, query)
        best = tool.best(words_of(query), 10)
        expected = sorted(-score for score in scores if score > 0)[:10]
        assert [-scores[i] for i in best] == pytest.approx(expected, rel=1e-5)
        assert all(scores[i] > 0 for i in best)


def test_of_equal_passages_the_first_come_first():
    tool = Search(["gold", "iron ore"] * 20, None)
    assert tool.best(["iron"], 3) == [1, 3, 5]
    assert tool.best(["gold"], 25) == list(range(0, 40, 2))


def test_answers_are_passages_a_line_each():
    tool = Search(SMALL, None, results=2)
    assert answer(tool, "iron").text == "Iron rusts.\nRust eats iron, and iron feeds rust."
    assert answer(tool, "IRON!", k=1).text == "Iron rusts."
    assert answer(tool, "what is 19.3?", k=1).text == "Gold is 19.3"
    assert answer(tool, "iron iron iron") == answer(tool, "iron")
    assert answer(tool, "silver").text == "no results"
    assert answer(tool, "silver").error is None


@pytest.mark.parametrize("query", ["", "  \n", "?!", "\x00", "___", "\ud800"])
def test_queries_without_words_are_errors(query):
    observation = answer(Search(SMALL, None), query)
    assert observation.text == "error: no word in the query"
    assert observation.error == "tool_error"


@pytest.mark.parametrize("query", ["gold " * 250_000, "x" * 1_000_001, "a" * (MAX_QUERY + 1)])
def test_long_queries_are_errors(query):
    assert answer(Search(SMALL, None), query).error == "tool_error"


def test_a_corpus_needs_a_word():
    with pytest.raises(ValueError, match="a passage with a word"):
        Search(["...", ""], None)


def test_an_index_is_built_once_for_a_corpus(tmp_path, monkeypatch):
    first = Search(SMALL, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(search, "_build", None)
        again = Search(SMALL, tmp_path)
    assert answer(again, "iron gold") == answer(first, "iron gold")
    Search([*SMALL, "One more."], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(search, "version", lambda name: "another")
    Search(SMALL, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", ["bits", "cut", "missing", "digests"])
def test_a_damaged_index_is_built_again(tmp_path, damage):
    good = answer(Search(SMALL, tmp_path), "iron")
    (folder,) = tmp_path.iterdir()
    file = folder / ("digests.json" if damage == "digests" else "data.csc.index.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 255
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:9] if damage == "cut" else content)
    assert answer(Search(SMALL, tmp_path), "iron") == good
    assert file.read_bytes() != bytes(content)  # it was replaced


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    assert answer(Search(SMALL, tmp_path / "file" / "cache"), "silver").text == "no results"


def test_nothing_is_printed(tmp_path, capfd):
    Search(SMALL, tmp_path)
    answer(Search(SMALL, tmp_path), "iron")
    assert capfd.readouterr() == ("", "")


def test_long_texts_are_cut_between_words():
    assert passages_of("", " a\n b ") == ["a b"]
    assert passages_of("T", "aa bb cc", 8) == ["T: aa bb", "T: cc"]
    assert passages_of("", "abcdefg hi", 3) == ["abc", "def", "g", "hi"]
    text = " ".join(f"word{i}" for i in range(1000))
    cut = passages_of("A title", text)
    assert max(map(len, cut)) <= MAX_PASSAGE
    assert " ".join(part.removeprefix("A title: ") for part in cut) == text
    assert max(map(len, passages_of("t" * 10_000, text))) <= MAX_PASSAGE


def test_bad_rows_are_named_and_left_out(tmp_path):
    file = tmp_path / "corpus.jsonl"
    rows = [
        {"id": 7, "title": "Iron", "text": "It rusts."},
        {"title": "None"},
        {"title": 3, "text": "x"},
        {"text": " "},
        {"text": "Gold doesn't."},
    ]
    file.write_text("\n".join([*map(json.dumps, rows), "{"]))
    corpus = read_corpus(str(file), "suite.corpus")
    assert corpus.passages == ("Iron: It rusts.", "Gold doesn't.")
    assert corpus.notes == (
        f"{file}:2: text: expected this field, got 'title'",
        f"{file}:3: title: expected a text, got int",
        f"{file}:4: text: expected a text, got ' '",
        f"{file}:6: expected JSON, got '{{'",
        f"suite.corpus: {file}: texts: 2, passages: 2, bad rows: 4",
    )


def test_a_corpus_without_texts_is_an_error(tmp_path):
    file = tmp_path / "corpus.jsonl"
    file.write_text("[]")
    with pytest.raises(UsageError, match="expected a row with a text, got none"):
        read_corpus(str(file), "suite.corpus")
    with pytest.raises(UsageError, match=r"suite\.corpus: .*expected a file to read"):
        read_corpus(str(tmp_path / "missing"), "suite.corpus")


def test_every_fact_is_found_by_symbol_name_and_number():
    tool = facts.search_tool(None)
    for element in elements():
        for name in Element.__dataclass_fields__:
            value = element.shown(name)
            references = {element.symbol, element.name, str(element.number)}
            for reference in sorted(references - {str(getattr(element, name))}):
                call = facts.search_call(reference, name)
                found = tool.call(None, call.arguments)[1].text
                if value is not None:
                    assert found.startswith(f"The {name.replace('_', ' ')} of ")
                    assert found.endswith(f" is {value}.")


def test_compounds_are_found():
    found = answer(facts.search_tool(None), "atoms of Fe2O3").text
    assert found == "A unit of Fe2O3 has these atoms: iron 2, oxygen 3."


@pytest.mark.parametrize("length", ["short", "long"])
def test_solvers_search_and_answer_as_those_that_look_up(length):
    searching, looking = ScienceSuite(length, search=True), ScienceSuite(length)
    for index in range(60):
        for split in (TRAIN, HELD_OUT):
            task = searching.task(split, index)
            assert task == looking.task(split, index)
            turns = searching.demonstration(task, 0.5)
            assert turns[-1] == looking.demonstration(task)[-1]
            assert searching.verify(task, turns[-1]["content"]).success
            calls = [turn["tool_calls"][0]["function"] for turn in turns if "tool_calls" in turn]
            assert {call["name"] for call in calls} <= {"search", "calculator"}


def test_detours_are_needless_searches():
    call = facts.search_call("Zn", "density")
    assert facts.detour(call, "number").arguments == {"query": "number Zn"}
    assert facts.detour(facts.search_call("30", "symbol"), "number").arguments == {
        "query": "number Z30"
    }
    assert facts.detour(facts.search_call("Zn", "number"), "number") is None


def test_a_users_corpus_takes_the_place_of_the_facts():
    mine = (*facts.facts(), "Everything about gold.")
    suite = make_suite(SuiteConfig(search=True), corpus=mine)
    tool = {tool.name: tool for tool in suite.tools}["search"]
    assert answer(tool, "everything gold").text == "Everything about gold."
    bare = make_suite(SuiteConfig(search=True), corpus=["Everything about gold."])
    index = next(i for i in range(20) if suite.task(TRAIN, i).kind == "molar_mass")
    with pytest.raises(RunFault, match=r"suite\.corpus: expected a passage 'The atomic weight"):
        bare.task(TRAIN, index)


def test_settings_that_nothing_reads_are_refused():
    with pytest.raises(UsageError, match=r"suite\.search: expected false, suite math"):
        make_suite(SuiteConfig("math", search=True))
    with pytest.raises(UsageError, match=r"suite\.corpus: expected none without suite\.search"):
        make_suite(SuiteConfig(), corpus=["x"])


def test_questions_from_files_search_a_users_corpus():
    config = SuiteConfig("questions", search=True)
    sandbox = Sandbox(SandboxConfig())  # never started
    questions = {key: [Question("gold", "What is gold?", "79")] for key in (TRAIN, HELD_OUT)}
    suite = make_suite(config, questions, sandbox, ["Everything about gold."])
    assert [tool.name for tool in suite.tools] == ["code_interpreter", "search"]
    with pytest.raises(UsageError, match=r"suite\.corpus: expected a file to search, got none"):
        make_suite(config, questions, sandbox)

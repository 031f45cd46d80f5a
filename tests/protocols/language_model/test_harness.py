"""The decoder as a model of lm-eval: log-likelihoods against direct sums, prompts and accuracy against lm-eval's own."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lm_eval.tasks
import numpy as np
import pytest
import torch
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from moebench.errors import MoebenchError
from moebench.files import read_jsonl
from moebench.models import shapes
from moebench.models.decoder import Decoder
from moebench.moe.experts import SwiGLUExperts
from moebench.moe.layers.dense import Dense
from moebench.protocols.language_model.config import HARNESS_TASKS, XNLI_TASKS
from moebench.protocols.language_model.harness import Examinee, examine, harness_tasks, local_tasks, write_tasks
from moebench.protocols.language_model.scoring import chosen

CONTEXT = 24


class Characters:
    """A tokenizer of which every character of a small alphabet is a piece; what else there is becomes the last of them."""

    letters = " abcdefghijklmnopqrstuvwxyz.?\n"
    bos, eos, pad = len(letters), len(letters) + 1, len(letters) + 2
    size = len(letters) + 3

    def encode(self, text):
        return [self.letters.find(character) % len(self.letters) for character in text]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        return "".join(self.letters[place] for place in ids if place < len(self.letters))


PIECES = Characters()


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    shape = shapes.Decoder(layers=2, width=16, heads=2, inner=24, context=CONTEXT, initial_std=0.3)
    decoder = Decoder(shape, PIECES.size, lambda index: Dense(16, SwiGLUExperts(1, 16, 24), f"block {index}"))
    with torch.no_grad():
        decoder.embedding.weight[-3:] *= 0.1  # so that it goes on with letters
    return decoder.eval()


@pytest.fixture(scope="module")
def examinee(decoder):
    return Examinee(decoder, PIECES, batch=3)


def requests(*arguments):
    return [SimpleNamespace(args=args) for args in arguments]


@torch.no_grad()
def direct(decoder, ids, count):
    """Sum of the log-probabilities of the last ``count`` of the ids, one forward pass a token, without padding; and the likeliest ids."""
    total, likeliest = 0.0, []
    for end in range(len(ids) - count, len(ids)):
        states_BSD, _ = decoder(torch.tensor([ids[:end]][-CONTEXT:]))
        logprobs_V = decoder.logits(states_BSD[0, -1]).double().log_softmax(-1)
        total += logprobs_V[ids[end]].item()
        likeliest.append(int(logprobs_V.argmax()))
    return total, likeliest == ids[len(ids) - count :]


PAIRS = [("the cat", " sat"), ("a", "b"), ("a longer one", " x"), ("", "alone"), ("the cat", " sat on"), ("dog.", "?"), ("", "a")]


def test_loglikelihood_is_the_sum_of_the_log_softmax(decoder, examinee):
    for (context, continuation), (value, greedy) in zip(PAIRS, examinee.loglikelihood(requests(*PAIRS)), strict=True):
        ids = [PIECES.bos, *PIECES.encode(context + continuation)]
        expected, best = direct(decoder, ids, len(continuation))
        assert value == pytest.approx(expected, abs=1e-4)
        assert greedy == best


def test_texts_are_parted_as_lm_eval_parts_them(examinee):
    arguments = [*PAIRS, ("the cat ", "sat"), ("a  ", ""), (" ", "b")]
    for (context, continuation), pair in zip(arguments, examinee.pairs(arguments), strict=True):
        assert pair == (examinee._encode_pair(context, continuation) if context else ([PIECES.bos], PIECES.encode(continuation)))


def test_the_likeliest_continuation_is_greedy(decoder, examinee):
    (text,) = examinee.generate_until(requests(("the", {"until": [], "max_gen_toks": 3})))
    ids = [PIECES.bos, *PIECES.encode("the" + text)]
    assert direct(decoder, ids, len(text))[1]
    other = "q" if text[-1] != "q" else "z"
    assert [best for _, best in examinee.loglikelihood(requests(("the", text), ("the", text[:-1] + other)))] == [True, False]


def test_empty_continuation_is_certain(examinee):
    assert examinee.loglikelihood(requests(("a", ""), ("", ""))) == [(0.0, True), (0.0, True)]


def test_a_space_at_the_end_of_the_context_counts_with_the_continuation(examinee):
    (one, _), (other, _) = examinee.loglikelihood(requests(("the cat ", "sat"), ("the cat", " sat")))
    assert one == other


def test_a_context_beyond_the_window_keeps_its_end(decoder, examinee):
    context, continuation = "many words stand here before the end", " of it"
    ids = [PIECES.bos, *PIECES.encode(context + continuation)]
    ((value, _),) = examinee.loglikelihood(requests((context, continuation)))
    states_BSD, _ = decoder(torch.tensor([ids[:-1][-CONTEXT:]]))
    logprobs_SV = decoder.logits(states_BSD[0, -len(continuation) :]).log_softmax(-1)
    assert value == pytest.approx(sum(logprobs_SV[i, token].item() for i, token in enumerate(ids[-len(continuation) :])), abs=1e-4)


@pytest.mark.parametrize("context", ["", "a dog"])
def test_a_continuation_beyond_the_window_goes_through_in_windows(decoder, examinee, context):
    text = (" a long continuation of many letters." * 3)[: 2 * CONTEXT + 7]
    ((value, greedy),) = examinee.loglikelihood(requests((context, text)))
    ids = [PIECES.bos, *PIECES.encode(context + text)][-len(text) - 1 :]  # one piece before the text
    windows = [(ids[begin : begin + CONTEXT + 1], CONTEXT) for begin in (0, CONTEXT)] + [(ids[-CONTEXT - 1 :], 7)]
    assert value == pytest.approx(sum(direct(decoder, window, count)[0] for window, count in windows), abs=1e-4)
    assert not greedy
    if not context:
        assert value == examinee.loglikelihood_rolling(requests((text,)))[0]


@pytest.mark.parametrize("length", [0, 1, CONTEXT - 1, CONTEXT, CONTEXT + 1, 3 * CONTEXT + 5])
def test_rolling_windows_predict_each_token_once(decoder, examinee, length):
    text = ("a long text of many letters. " * 4)[:length]
    ids = [PIECES.bos, *PIECES.encode(text)]
    expected, start = 0.0, 1
    while start < len(ids):  # windows of CONTEXT predictions, from one token of context on; the last one has the full context
        end = min(start + CONTEXT, len(ids))
        window = ids[max(0, end - 1 - CONTEXT) : end]
        states_BSD, _ = decoder(torch.tensor([window[:-1]]))
        logprobs_SV = decoder.logits(states_BSD[0]).log_softmax(-1)
        expected += sum(logprobs_SV[len(window) - 1 - (end - place), ids[place]].item() for place in range(start, end))
        start = end
    (value,) = examinee.loglikelihood_rolling(requests((text,)))
    assert value == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_the_batch_does_not_change_results(decoder, examinee, batch):
    other = Examinee(decoder, PIECES, batch)
    values = [[value for value, _ in one.loglikelihood(requests(*PAIRS))] for one in (examinee, other)]
    np.testing.assert_allclose(values[0], values[1], atol=1e-4)
    texts = [("a text of " * 7)[:length] for length in (1, 30, 66)]
    rolling = [one.loglikelihood_rolling(requests(*((text,) for text in texts))) for one in (examinee, other)]
    np.testing.assert_allclose(rolling[0], rolling[1], atol=1e-4)
    prompts = [(context, {"until": ["."], "max_gen_toks": 6}) for context, _ in PAIRS]
    assert examinee.generate_until(requests(*prompts)) == other.generate_until(requests(*prompts))


def test_generation_is_token_by_token_and_ends_before_the_first_stop_string(decoder, examinee):
    ids, made = [PIECES.bos, *PIECES.encode("the cat")], []
    with torch.no_grad():
        for _ in range(8):
            made.append(int(decoder.logits(decoder(torch.tensor([ids + made]))[0][0, -1]).argmax()))
            if made[-1] == PIECES.eos:
                break
    whole = PIECES.decode(made)
    assert len(whole) >= 3, "choose another seed: the generation should not be empty"
    settings = [{"max_gen_toks": 8}, {"until": [whole[2]], "max_gen_toks": 8}, {"until": whole[1], "max_gen_toks": 8}, {"max_gen_toks": 2}]
    texts = examinee.generate_until(requests(*(("the cat", one) for one in settings)))
    assert texts == [whole, whole[: whole.index(whole[2])], whole[: whole.index(whole[1])], whole[:2]]
    long = "a" * 50 + "the cat"
    assert examinee.generate_until(requests((long, {}))) == examinee.generate_until(requests((long[-CONTEXT // 2 :], {})))
    with pytest.raises(MoebenchError, match="do_sample"):
        examinee.generate_until(requests(("a", {"do_sample": True})))


# ------------------------------------------------------------------------------------------------------------------ tasks

WORDS = ("the cat", "a dog", "some bird", "one fish")
ITEMS = [
    {"id": f"item {n}", "context": f"{WORDS[n % 4]} sees", "choices": [WORDS[(n + k) % 4] + "." for k in (1, 2, 3)], "label": n * 7 % 3}
    for n in range(20)
]


@pytest.fixture
def folder(tmp_path):
    write_tasks(
        tmp_path / "tasks",
        {"sees": ITEMS, "two": [item | {"choices": item["choices"][:2], "label": n % 2} for n, item in enumerate(ITEMS)]},
    )
    return tmp_path / "tasks"


def test_files_give_the_accuracy_that_lm_eval_reports(decoder, folder, tmp_path):
    found = examine(decoder, PIECES, folder, tmp_path)
    assert sorted(found) == ["sees", "two"]
    for name, metrics in found.items():
        rows = read_jsonl(tmp_path / "choices" / f"{name}.jsonl")
        assert [row["id"] for row in rows] == [item["id"] for item in ITEMS]
        assert sorted(rows[0]) == ["id", "label", "lengths_bytes", "lengths_characters", "lengths_tokens", "loglikelihoods"]
        accuracy = np.mean([np.argmax(row["loglikelihoods"]) == row["label"] for row in rows])
        normed = np.mean([np.argmax(np.divide(row["loglikelihoods"], row["lengths_characters"])) == row["label"] for row in rows])
        assert metrics == {
            "acc": pytest.approx(accuracy),
            "acc_norm": pytest.approx(normed),
            **{k: v for k, v in metrics.items() if k not in ("acc", "acc_norm")},
        }
        assert 0 < accuracy < 1


def test_rows_hold_what_the_decoder_says(decoder, examinee, folder, tmp_path):
    examine(decoder, PIECES, folder, tmp_path, batch=5)
    for item, row in zip(ITEMS, read_jsonl(tmp_path / "choices" / "sees.jsonl"), strict=True):
        asked = examinee.loglikelihood(requests(*((item["context"], f" {choice}") for choice in item["choices"])))
        np.testing.assert_allclose(row["loglikelihoods"], [value for value, _ in asked], atol=1e-4)
        assert row["label"] == item["label"]
        assert row["lengths_bytes"] == [len(choice) for choice in item["choices"]]
        assert row["lengths_tokens"] == [len(choice) + 1 for choice in item["choices"]]  # with the space before it


def test_the_same_bytes_twice(decoder, folder, tmp_path):
    for place in ("one", "two"):
        examine(decoder, PIECES, folder, tmp_path / place)
    assert (tmp_path / "one/choices/sees.jsonl").read_bytes() == (tmp_path / "two/choices/sees.jsonl").read_bytes()


def test_few_shot_prompts_are_those_that_the_harness_builds(folder):
    task = local_tasks(folder)["sees"]
    task.set_config("num_fewshot", 2)
    task.set_fewshot_seed(1234)
    task.build_all_requests()
    prompts = [instance.args[0] for instance in task.instances[::3]]
    for item, prompt in zip(ITEMS, prompts, strict=True):
        *shots, last = prompt.split("\n\n")
        assert last == item["context"]
        assert len(shots) == 2
        solved = {f"{other['context']} {other['choices'][other['label']]}" for other in ITEMS if other != item}
        assert set(shots) <= solved


def test_lm_eval_itself_reads_the_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    found = TaskManager(include_path=".", include_defaults=False).load(["sees"])["tasks"]["sees"]
    task = local_tasks(folder)["sees"]
    for one in (found, task):
        one.build_all_requests()
    assert [instance.args for instance in found.instances] == [instance.args for instance in task.instances]
    assert list((tmp_path / "cache").iterdir())  # what the other way of reading does without


PAIRS_OF_XNLI = [
    {"id": f"dev:{n}", "premise": f"{WORDS[n % 4]} sees", "hypothesis": f"{WORDS[(n + 1) % 4]}.", "label": n % 3} for n in range(9)
]


@pytest.mark.parametrize("name", XNLI_TASKS)
def test_xnli_from_files_is_asked_as_the_harness_asks_it(name, tmp_path, monkeypatch):
    """Its own task, read as it reads it, over the same rows as the data set's validation split."""
    write_tasks(tmp_path, {name: PAIRS_OF_XNLI})
    task = local_tasks(tmp_path)[name]

    def download(self, *args, **kwargs):
        assert self.DATASET_PATH == "facebook/xnli"
        assert f"xnli_{self.DATASET_NAME}" == name
        rows = Dataset.from_list([{key: row[key] for key in row if key != "id"} for row in PAIRS_OF_XNLI])
        self.dataset = {"train": rows, "validation": rows}

    monkeypatch.setattr(ConfigurableTask, "download", download)
    own = TaskManager(include_path=Path(lm_eval.tasks.__file__).parent / "xnli", include_defaults=False).load([name])["tasks"][name]
    for one in (own, task):
        one.build_all_requests()
    assert [instance.args for instance in task.instances] == [instance.args for instance in own.instances]
    assert [task.doc_to_target(row) for row in task.test_docs()] == [row["label"] for row in PAIRS_OF_XNLI]
    assert len({instance.args[1] for instance in task.instances[:3]}) == 3
    assert all(instance.args[1].startswith(f" {PAIRS_OF_XNLI[0]['premise']}, ") for instance in task.instances[:3])
    assert task.config.num_fewshot == 0


def test_the_words_of_xnli_are_those_of_its_labels(tmp_path):
    write_tasks(tmp_path, {"xnli_en": PAIRS_OF_XNLI})
    task = local_tasks(tmp_path)["xnli_en"]
    words = {0: "Yes", 1: "Also", 2: "No"}  # entailment, neutral, contradiction
    for row in task.test_docs():
        assert task.doc_to_choice(row)[row["label"]] == f"{row['premise']}, right? {words[row['label']]}, {row['hypothesis']}"


def test_files_of_xnli_give_the_accuracy_that_lm_eval_reports(decoder, tmp_path):
    write_tasks(tmp_path / "tasks", {"xnli_de": PAIRS_OF_XNLI, "xnli_en": PAIRS_OF_XNLI})
    found = examine(decoder, PIECES, tmp_path / "tasks", tmp_path)
    for name, metrics in found.items():
        rows = read_jsonl(tmp_path / "choices" / f"{name}.jsonl")
        assert [(row["id"], row["label"]) for row in rows] == [(row["id"], row["label"]) for row in PAIRS_OF_XNLI]
        assert min(min(row["lengths_tokens"]) for row in rows) > CONTEXT  # so that windows are at work
        (score,) = [row for row in chosen(name, tmp_path / "choices" / f"{name}.jsonl") if row["metric"] == "accuracy"]
        assert score["value"] == pytest.approx(100 * metrics["acc"])
        assert (score["task"], score["language"], score["n"]) == ("xnli", name[-2:], 9)


def test_where_several_choices_are_right_their_probability_counts_as_lm_eval_has_it(decoder, tmp_path, monkeypatch):
    rows = [
        {
            "question": f"what sees {WORDS[n % 4]}?",
            "mc2_targets": {"choices": [*WORDS, "none"][n % 2 :], "labels": [1, n % 3 % 2, 0, 1, 0][n % 2 :]},
        }
        for n in range(8)
    ]
    rows = [row | {"mc1_targets": row["mc2_targets"]} for row in rows]
    monkeypatch.setattr(
        ConfigurableTask, "download", lambda self, *args, **kwargs: setattr(self, "dataset", {"validation": Dataset.from_list(rows)})
    )
    manager = TaskManager(include_path=Path(lm_eval.tasks.__file__).parent / "truthfulqa", include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda: manager)
    found = examine(decoder, PIECES, {"truthfulqa_mc2": 0, "truthfulqa_mc1": 0}, tmp_path)
    (score,) = chosen("truthfulqa_mc2", tmp_path / "choices" / "truthfulqa_mc2.jsonl")
    assert (score["task"], score["language"], score["metric"]) == ("truthfulqa_mc2", "", "accuracy")
    assert score["value"] == pytest.approx(100 * found["truthfulqa_mc2"]["acc"])
    assert 0 < found["truthfulqa_mc2"]["acc"] < 1
    assert len(chosen("truthfulqa_mc1", tmp_path / "choices" / "truthfulqa_mc1.jsonl")) == 5


@pytest.mark.slow
def test_nothing_is_cached_and_no_hub_is_asked(folder, tmp_path):
    """In a process whose home is an empty folder and whose sockets are refused."""
    code = """
import socket, sys
from pathlib import Path
def refuse(*args, **kwargs): raise AssertionError("the network is asked")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from moebench.protocols.language_model.harness import local_tasks
for task in local_tasks(Path(sys.argv[1])).values():
    task.build_all_requests()
"""
    home = tmp_path / "home"
    home.mkdir()
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_"))}
    env |= {"HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(folder)], env=env, check=True, capture_output=True)
    assert list(home.rglob("*")) == []


def test_tasks_that_are_no_multiple_choice_and_missing_ones_are_refused(decoder, folder, tmp_path):
    with pytest.raises(MoebenchError, match="no task is there"):
        examine(decoder, PIECES, tmp_path / "nothing", tmp_path)
    text = (folder / "two.yaml").read_text().replace("multiple_choice", "loglikelihood")
    (folder / "two.yaml").write_text(text)
    with pytest.raises(MoebenchError, match="'two' is no multiple choice"):
        examine(decoder, PIECES, folder, tmp_path)


@pytest.mark.slow
def test_lm_eval_knows_the_papers_tasks(monkeypatch):
    """Without their data: a task is built from its own settings and one made-up row."""
    rows = {
        "arc_easy": {"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
        "piqa": {"goal": "g", "sol1": "x", "sol2": "y", "label": 1},
        "social_iqa": {"context": "c", "question": "q", "answerA": "x", "answerB": "y", "answerC": "z", "label": "2"},
        "winogrande": {"sentence": "the _ ends", "option1": "x", "option2": "y", "answer": "2"},
        "hellaswag": {"activity_label": "l", "ctx_a": "a", "ctx_b": "b", "endings": ["x", "y", "z", "w"], "label": "1", "ind": 1},
        "mnli": {"premise": "p", "hypothesis": "h.", "label": 1},
        "qnli": {"question": "q", "sentence": "s", "label": 1},
        "sst2": {"sentence": "s", "label": 1},
        "arc_challenge": {"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
        "rte": {"sentence1": "p", "sentence2": "h", "label": 1},
        "openbookqa": {"question_stem": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
        "boolq": {"passage": "p", "question": "q", "label": 1},
        "truthfulqa_mc1": {"question": "q", "mc1_targets": {"choices": ["x", "y"], "labels": [1, 0]}},
        "truthfulqa_mc2": {"question": "q", "mc2_targets": {"choices": ["x", "y"], "labels": [1, 1]}},
    }

    def download(self, *args, **kwargs):
        row = rows[self.config.task]
        data = Dataset.from_list([row | {"sentence": f"{row['sentence']} {n}"} if "sentence" in row else row for n in range(5)])
        self.dataset = dict.fromkeys(("train", "validation", "validation_matched", "test"), data)

    monkeypatch.setattr(ConfigurableTask, "download", download)
    manager = TaskManager()  # reads thousands of files
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda: manager)
    shots = dict.fromkeys(HARNESS_TASKS, 0) | {"mnli": 3, "qnli": 3, "sst2": 3}
    tasks = harness_tasks(shots)
    assert {name: task.config.num_fewshot for name, task in tasks.items()} == shots
    assert list(tasks) == list(HARNESS_TASKS) == list(rows)
    assert {(task.OUTPUT_TYPE, bool(task.multiple_target)) for task in tasks.values()} == {("multiple_choice", False)}
    tasks["sst2"].set_fewshot_seed(0)
    tasks["sst2"].build_all_requests()
    assert tasks["sst2"].instances[0].args[0].count("Question:") == 4
    with pytest.raises(MoebenchError, match=r"no task 'arc_easi' \(did you mean 'arc_easy'\?\)"):
        harness_tasks({"arc_easi": 0})

    def offline(self, *args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(ConfigurableTask, "download", offline)
    with pytest.raises(MoebenchError, match="task 'piqa': its data cannot be had: Couldn't reach the Hub"):
        harness_tasks({"piqa": 0})

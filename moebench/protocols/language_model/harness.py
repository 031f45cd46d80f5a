"""Zero-shot and few-shot tasks: the decoder as a model of lm-eval, whose tasks, prompts and evaluator are used as they are.

B requests, S positions, D width, N predicted tokens of a batch.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
import yaml
from lm_eval.api.model import TemplateLM

from moebench.errors import MoebenchError, nearest
from moebench.files import atomic_write, read_jsonl, write_jsonl
from moebench.models.decoder import Decoder, generate
from moebench.protocols.language_model.config import SEVERAL_RIGHT, XNLI_TASKS

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask

    from moebench.data.lm_tokenizer import Pieces

Row = dict[str, Any]
Pair = tuple[list[int], list[int]]
"""Pieces of a context and of its continuation."""

FEW_SHOT_SEED = 1234
"""Draws the examples in the prompts; lm-eval's own default."""
MOST_NEW_TOKENS = 256
"""Of a generation whose task does not say."""


class Examinee(TemplateLM):
    """A decoder as lm-eval asks it: log-likelihoods of continuations and of whole texts, and greedy generation.

    Every text begins with the piece that begins a document, as in pre-training. Requests go through longest first, so that a lack of memory
    shows at once. A batch does not change results, unless experts choose tokens across the batch.

    Args:
        decoder: put into evaluation mode here.
        pieces: its tokenizer.
        batch: requests in a forward pass.
    """

    def __init__(self, decoder: Decoder, pieces: Pieces, batch: int) -> None:
        super().__init__()
        self.decoder, self.pieces, self.batch = decoder.eval(), pieces, batch
        self.window = decoder.shape.context
        self._device = next(decoder.parameters()).device

    @property
    def eot_token_id(self) -> int:
        """The piece that ends a document."""
        return self.pieces.eos

    @property
    def prefix_token_id(self) -> int:
        """The piece that begins a document."""
        return self.pieces.bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the beginning of a document and the pieces of a text."""
        return [self.pieces.bos, *self.pieces.encode(string)]

    def pairs(self, arguments: Sequence[tuple[str, str]]) -> list[Pair]:
        """Encode contexts and continuations together and part them where the context alone ends, as lm-eval does for all causal models.

        A space at the end of a context goes to the continuation; an empty context is the beginning of a document.
        """
        wholes = self.pieces.encode_batch([context + continuation for context, continuation in arguments])
        before = self.pieces.encode_batch([context.rstrip() for context, _ in arguments])
        return [([self.pieces.bos, *ids], whole[len(ids) :]) for ids, whole in zip(before, wholes, strict=True)]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) the sum of the continuation's token log-probabilities, and whether each is the likeliest.

        An empty context is the beginning of a document; an empty continuation has (0, true). A continuation longer than the decoder's
        context goes through in windows, as in `loglikelihood_rolling`, its first piece after the last one of the context.
        """
        return self._summed(
            self._windows(continuation, context[-1]) if len(continuation) > self.window else [(context, continuation)]
            for context, continuation in self.pairs([request.args for request in requests])
        )

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Return for each text the sum of all its tokens' log-probabilities, in lm-eval's windows: each token is predicted once."""
        texts = self.pieces.encode_batch([request.args[0] for request in requests])
        return [value for value, _ in self._summed(self._windows(ids, self.pieces.bos) for ids in texts)]

    def _windows(self, ids: list[int], before: int) -> list[Pair]:
        """The ids as continuations that each fit with their contexts; the piece ``before`` is the context of the first."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows = get_rolling_token_windows(ids, prefix_token=before, max_seq_len=self.window, context_len=1)
        return [make_disjoint_window(window) for window in windows]

    def _summed(self, texts: Iterable[list[Pair]]) -> list[tuple[float, bool]]:
        """Of the windows of each text the sum of their log-likelihoods, and whether all are the likeliest."""
        texts = list(texts)
        found = iter(self._loglikelihood_tokens([(("", ""), *pair) for pair in chain.from_iterable(texts)]))
        parts = [list(islice(found, len(windows))) for windows in texts]
        return [(sum((value for value, _ in part), 0.0), all(best for _, best in part)) for part in parts]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        results = [(0.0, True)] * len(requests)
        lengths = {place: len(context) + len(continuation) for place, (_, context, continuation) in enumerate(requests) if continuation}
        for places in _batches(lengths, self.batch):
            values, greedy = self._score([requests[place][1:] for place in places])
            for place, value, best in zip(places, values, greedy, strict=True):
                results[place] = value, best
        return results

    @torch.inference_mode()
    def _score(self, pairs: list[Pair]) -> tuple[list[float], list[bool]]:
        """Log-likelihood and greediness of a batch's continuations. Rows are padded on the right; logits are of predicted tokens alone."""
        inputs = [torch.tensor([*context, *continuation][:-1][-self.window :]) for context, continuation in pairs]
        ids_BS = torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True, padding_value=self.pieces.pad)
        lengths_B1 = torch.tensor([[len(ids)] for ids in inputs])
        wanted_B1 = torch.tensor([[len(continuation)] for _, continuation in pairs])
        place_S = torch.arange(ids_BS.shape[1])
        mask_BS = place_S < lengths_B1
        predicts_BS = mask_BS & (place_S >= lengths_B1 - wanted_B1)
        targets_N = torch.tensor([token for _, continuation in pairs for token in continuation], device=self._device)
        states_BSD, _ = self.decoder(ids_BS.to(self._device), mask_BS.to(self._device))
        logits_NV = self.decoder.logits(states_BSD[predicts_BS.to(self._device)]).float()
        logprobs_N = logits_NV.log_softmax(-1).gather(1, targets_N[:, None])[:, 0]
        best_N = logits_NV.argmax(-1) == targets_N
        parts = wanted_B1[:, 0].tolist()
        return [part.double().sum().item() for part in logprobs_N.cpu().split(parts)], [
            bool(part.all()) for part in best_N.cpu().split(parts)
        ]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return for each (context, settings) the greedy continuation before the first of ``until``, of ``max_gen_toks`` pieces at most.

        A prompt keeps its end: as much as leaves room for the new pieces, and never less than half of the decoder's context.

        Raises:
            MoebenchError: a task asks for samples.
        """
        results = [""] * len(requests)
        kinds: dict[int, list[int]] = {}
        for place, request in enumerate(requests):
            if request.args[1].get("do_sample"):
                raise MoebenchError("a task asks for sampled generations (generation_kwargs: do_sample); decoders are examined greedily")
            kinds.setdefault(int(request.args[1].get("max_gen_toks", MOST_NEW_TOKENS)), []).append(place)
        for most, places in kinds.items():
            kept = max(self.window - most, (self.window + 1) // 2)
            encoded = self.pieces.encode_batch([requests[place].args[0] for place in places])
            prompts = {place: [self.pieces.bos, *ids][-kept:] for place, ids in zip(places, encoded, strict=True)}
            for group in _batches({place: len(prompt) for place, prompt in prompts.items()}, self.batch):
                for place, text in zip(
                    group, self._continue([prompts[place] for place in group], min(most, self.window - kept)), strict=True
                ):
                    until = requests[place].args[1].get("until") or []
                    results[place] = _cut(text, [until] if isinstance(until, str) else until)
        return results

    def _continue(self, prompts: list[list[int]], most: int) -> list[str]:
        """Greedy continuations of one batch, padded on the left."""
        longest = max(map(len, prompts))
        ids_BS = torch.tensor([[self.pieces.pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=self._device)
        mask_BS = torch.arange(longest) >= torch.tensor([[longest - len(prompt)] for prompt in prompts])
        new_BS = generate(self.decoder, ids_BS, mask_BS.to(self._device), most, [self.pieces.eos])
        return [self.pieces.decode(_before(ids, self.pieces.eos)) for ids in new_BS.tolist()]


def _batches(lengths: Mapping[int, int], size: int) -> Iterator[list[int]]:
    """Yield places (place → length) in batches, longest first; equally long ones in their order."""
    ordered = sorted(lengths, key=lambda place: -lengths[place])
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _before(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


def _cut(text: str, until: Iterable[str]) -> str:
    """Return the text before the first of the stop strings."""
    return text[: min([len(text), *(text.index(stop) for stop in until if stop and stop in text)])]


# ------------------------------------------------------------------------------------------------------------------ tasks


OWN_SETTINGS = {
    "output_type": "multiple_choice",
    "doc_to_text": "context",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")],
    "num_fewshot": 0,
    "metadata": {"version": 1},
}
"""Of tasks that the harness does not have."""


def write_tasks(folder: Path, items: Mapping[str, list[Row]]) -> None:
    """Write multiple-choice tasks as lm-eval reads them: ``<task>.jsonl`` and ``<task>.yaml``.

    Any model can be asked them, in that folder: ``lm_eval --include_path . --tasks role --model …``.

    Args:
        folder: may hold other tasks.
        items: name → rows of id, context, choices, label; of XNLI in a language, which the harness asks in its own words: id, premise,
            hypothesis, label.
    """
    for name, rows in items.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
        place = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
            "test_split": "test",
        }
        with atomic_write(folder / f"{name}.yaml") as handle:
            settings = xnli_settings(name) if name in XNLI_TASKS else OWN_SETTINGS
            yaml.safe_dump(place | settings, handle, sort_keys=False, allow_unicode=name in XNLI_TASKS)


def xnli_settings(name: str) -> Row:
    """What the harness' own task says, its data set aside: how a pair becomes three texts, in the words of its language."""
    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent / "xnli"
    own = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    shared = yaml.safe_load((folder / own.pop("include")).read_text(encoding="utf-8"))
    data = ("task", "dataset_path", "dataset_name", "training_split", "validation_split")
    return {key: value for key, value in (shared | own).items() if key not in data} | {"num_fewshot": 0}


def local_tasks(folder: Path) -> dict[str, ConfigurableTask]:
    """Load the tasks that `write_tasks` left in a folder. Rows are read into memory: no cache is written and no hub asked.

    Raises:
        MoebenchError: there are none.
    """
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    tasks: dict[str, ConfigurableTask] = {}
    for path in sorted(folder.glob("*.yaml")):
        rows = read_jsonl(path.with_suffix(".jsonl"))
        config = yaml.safe_load(path.read_text(encoding="utf-8")) | {
            "custom_dataset": lambda rows=rows, **_: {"test": Dataset.from_list(rows)}
        }
        tasks[path.stem] = ConfigurableTask(config=config)
    if not tasks:
        raise MoebenchError(f"{folder}: no task is there (<task>.yaml beside <task>.jsonl); run 'prepare'")
    return tasks


def harness_tasks(shots: Mapping[str, int]) -> dict[str, ConfigurableTask]:
    """Load tasks that lm-eval has; their data comes from the hub or its cache.

    Args:
        shots: lm-eval's name → number of examples in the prompt.

    Raises:
        MoebenchError: no such task, or its data cannot be had.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    tasks: dict[str, ConfigurableTask] = {}
    for name, number in shots.items():
        if name not in manager.all_tasks:
            raise MoebenchError(f"lm-eval has no task {name!r}{nearest(name, manager.all_tasks)}")
        try:
            loaded = manager.load([name])["tasks"]
        except (OSError, ValueError) as error:  # what datasets raises without network, or for a data set that is gone
            raise MoebenchError(f"task {name!r}: its data cannot be had: {error}") from error
        for task in loaded.values():
            task.set_config("num_fewshot", number)
        tasks |= loaded
    return tasks


def examine(
    decoder: Decoder, pieces: Pieces, tasks: Path | Mapping[str, int], folder: Path, batch: int = 16
) -> dict[str, dict[str, float]]:
    """Examine a decoder with lm-eval and write ``choices/<task>.jsonl`` into ``folder``, a row a test item.

    A row has ``id``, ``label`` (index of the right choice), and one value a choice of ``loglikelihoods``, ``lengths_bytes``,
    ``lengths_characters`` (by which lm-eval's ``acc_norm`` divides) and ``lengths_tokens``; of `SEVERAL_RIGHT` also ``right``, 1 where a
    choice is.

    Args:
        decoder: what is examined; it is in evaluation mode afterwards.
        pieces: its tokenizer.
        tasks: a folder that `write_tasks` filled, or lm-eval's names with the number of examples in the prompt.
        folder: where ``choices`` is made.
        batch: requests in a forward pass.

    Returns:
        What lm-eval makes of it: task → metric → value.

    Raises:
        MoebenchError: see `local_tasks` and `harness_tasks`; or a task is not of lm-eval's kind ``multiple_choice``.
    """
    from lm_eval.evaluator import evaluate

    with _quiet():
        loaded = local_tasks(tasks) if isinstance(tasks, Path) else harness_tasks(tasks)
        for name, task in loaded.items():
            if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_target:
                raise MoebenchError(f"task {name!r} is no multiple choice with one right answer ({task.OUTPUT_TYPE}); leave it out")
            task.set_fewshot_seed(FEW_SHOT_SEED)
        examinee = Examinee(decoder, pieces, batch)
        found = evaluate(examinee, {"tasks": loaded}, bootstrap_iters=0, log_samples=True)
    for name, task in loaded.items():
        samples = found["samples"][name]
        asked = [tuple(arguments) for sample in samples for arguments in sample["arguments"]]
        lengths = {arguments: len(continuation) for arguments, (_, continuation) in zip(asked, examinee.pairs(asked), strict=True)}
        write_jsonl(folder / "choices" / f"{name}.jsonl", (_row(sample, task, lengths) for sample in samples))
    metrics = {
        name: {key.split(",")[0]: value for key, value in found["results"][name].items() if key.endswith(",none")} for name in loaded
    }
    return {name: {key: value for key, value in row.items() if not key.endswith("_stderr")} for name, row in metrics.items()}


def _row(sample: Row, task: ConfigurableTask, lengths: Mapping[tuple[str, str], int]) -> Row:
    document = sample["doc"]
    choices = task.doc_to_choice(document)
    label = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    return {
        "id": str(document["id"]) if "id" in document else str(sample["doc_id"]),
        "label": label if isinstance(label, int) else choices.index(label),
        "loglikelihoods": [value for value, _ in sample["filtered_resps"]],
        "lengths_bytes": [len(choice.encode()) for choice in choices],
        "lengths_characters": [len(choice) for choice in choices],
        "lengths_tokens": [lengths[tuple(arguments)] for arguments in sample["arguments"]],
        **({"right": document["mc2_targets"]["labels"]} if task.config.task == SEVERAL_RIGHT else {}),
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Show of lm-eval's messages errors alone, and no progress bars."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with mock.patch("lm_eval.api.task.tqdm", lambda items, **_: items):
            yield
    finally:
        logger.setLevel(level)

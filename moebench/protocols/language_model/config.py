"""What data, a setting and a method may say: a decoder is pre-trained on text, examined by likelihood and zero-shot. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from moebench.config import (
    BaseData,
    BaseSetting,
    Config,
    Count,
    Few,
    Optimisation,
    Positive,
    Rate,
    Share,
    Weight,
    check_memory,
    layers,
)
from moebench.data.text_settings import Constructed, Stream, TextData, check_source
from moebench.errors import MoebenchError, nearest
from moebench.experiment import Experiment
from moebench.models.feed_forward import FeedForwardMethod, looks_at_attention, sizes
from moebench.models.matching import matching_rank, widened
from moebench.models.shapes import Decoder

CONSTRUCTED_TASKS = ("agreement", "role", "entailment", "continuation")
"""Tasks in the constructed pivot language (``moebench/data/choices.py``), of equal weight in the average. The same in another constructed
language is ``<task>_<text>``, with the name of the text in it."""
HARNESS_TASKS = (
    *("arc_easy", "piqa", "social_iqa", "winogrande", "hellaswag", "mnli", "qnli", "sst2"),
    *("arc_challenge", "rte", "openbookqa", "boolq", "truthfulqa_mc1", "truthfulqa_mc2"),
)
"""Tasks of lm-evaluation-harness, by its names: those of AoE in the order of its tables, then what MH-MoE has besides."""
SEVERAL_RIGHT = "truthfulqa_mc2"
"""Its choices have several right answers: its accuracy is the probability of all of them together."""
XNLI = "xnli"
XNLI_LANGUAGES = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")
XNLI_TASKS = tuple(f"{XNLI}_{language}" for language in XNLI_LANGUAGES)
"""The harness' too, a task a language; with XNLI's own files where the section ``benchmarks`` names them, otherwise with the hub's."""
TASKS = (*CONSTRUCTED_TASKS, *HARNESS_TASKS, *XNLI_TASKS)
LIKELIHOOD = ("nll", "perplexity", "bits_per_byte")
CHOICES = ("accuracy", "accuracy_normalised", "nll", "brier", "ece")
ROUTING = (
    *("load_entropy", "router_entropy", "rank_margin", "idle", "max_violation", "experts_per_token", "coupling"),
    *("load", "macs_per_token"),
)
THRESHOLDS = (0, 0.1, 0.5, 1)
"""Times 1 / E: shares of the selections above which an expert counts as in use (`moebench.metrics.routing.activation_ratio`)."""
ACTIVATION = tuple(f"activation_{share:g}" for share in THRESHOLDS)
"""Share of a layer's experts in use, of all assignments."""
TOKEN_ACTIVATION = tuple(f"activation_of_tokens_{share:g}" for share in THRESHOLDS if share)
"""The same of whole tokens; at 0 it is the same number."""
DIVERSITY = ("diversity", "diversity_random", "diversity_first", "diversity_first_random")
"""Different experts that a token reaches, those at random, and both of first choices (`moebench.metrics.routing.assignment_diversity`)."""
WORD_CLASSES = ("content", "function", "homonym")
"""Words of a constructed text that diversity is measured on apart, as ``diversity_<class>``; homonyms are content words too."""
DIVERSITY_OF = tuple(f"diversity_{word}" for word in WORD_CLASSES)
METRICS = (
    *(*LIKELIHOOD, *(name for name in CHOICES if name != "nll"), *ROUTING),
    *(*ACTIVATION, *TOKEN_ACTIVATION, *DIVERSITY, *DIVERSITY_OF),
)
"""Metrics of the records."""


def language_of(task: str) -> tuple[str, str]:
    """What is asked, and in which language: ``("xnli", "de")``, ``("role", "second")``; in the pivot, or in English alone: ``""``."""
    kind, _, language = task.partition("_")
    return (kind, language) if kind in (*CONSTRUCTED_TASKS, XNLI) else (task, "")


Language = Annotated[str, Field(pattern="^[a-z]{2,3}$")]
Shots = Annotated[Count, Field(le=1024)]


class Docstrings(Config):
    """Documentation strings of the pinned packages and of the standard library: English."""

    source: Literal["docstrings"]
    packages: tuple[str, ...] = ()
    """Which packages; none given: all. Reading all takes most of a minute."""

    @model_validator(mode="after")
    def _packages_are_read(self) -> Docstrings:
        if self.packages:
            from moebench.data.docstrings import PACKAGES, STANDARD_LIBRARY

            known = [*PACKAGES, STANDARD_LIBRARY]
            for name in self.packages:
                if name not in known:
                    raise ValueError(f"packages names {name!r}{nearest(name, known)}; should be one of {', '.join(known)}")
        return self


class Made(Config):
    """One of the constructed languages, which the section ``constructed`` makes."""

    source: Literal["constructed"]
    language: Count = 0
    """Which: 0 is the pivot."""


class Files(Config):
    """Plain text below the folder of original files: a file, or a folder of ``*.txt``."""

    source: Literal["files"]
    path: str
    unit: Literal["file", "block", "line"] = "block"
    """What a document is: a file, lines between blank ones, or a line."""
    language: Language | None = None
    """Only the files of this language, in a folder of its name; none: all."""

    @model_validator(mode="after")
    def _path_stays_below(self) -> Files:
        if PurePosixPath(self.path).is_absolute() or ".." in PurePosixPath(self.path).parts:
            raise ValueError(f"path {self.path!r} leaves the folder; give a path below it")
        return self


class Benchmarks(Config):
    """Texts in one language out of the original benchmark files that the section ``benchmarks`` names."""

    source: Literal["benchmarks"]
    language: Language


class Streamed(Stream):
    """A corpus of the hub, or in its layout below ``data/downloads``, read as a stream until there are ``tokens`` to train on."""

    source: Literal["stream"]


class Tokens(Config):
    """Which tokenizer: byte-pair encoding trained on the training text, or a checkpoint's."""

    source: Literal["trained", "checkpoint"] = "trained"
    vocabulary: Positive | None = None
    """Number of pieces; only for ``trained``, where it is required."""
    checkpoint: str | None = None
    """A folder below ``data/downloads`` with ``tokenizer.json`` or ``tokenizer.model``; only for ``checkpoint``, where it is required."""

    @model_validator(mode="after")
    def _options_fit_the_source(self) -> Tokens:
        check_source(self.source, vocabulary=(self.vocabulary, "trained"), checkpoint=(self.checkpoint, "checkpoint"))
        return self


Text = Annotated[Docstrings | Made | Files | Benchmarks | Streamed, Field(discriminator="source")]


class Data(BaseData):
    """The texts of a profile, and what models are asked about them."""

    texts: Annotated[dict[str, Text], Field(min_length=1)]
    """Name → where it comes from; rows of all are mixed in pre-training, perplexity is measured on each."""
    constructed: Constructed | None = None
    """How the constructed languages are made; for a text with source ``constructed``, and for the tasks in it."""
    benchmarks: TextData | None = None
    """Which original files, as data of papers on texts name them; for texts with source ``benchmarks``."""
    tasks: dict[str, Shots] = Field(default_factory=dict)
    """Zero-shot task → examples shown before each question (0: none)."""
    sequence_length: Annotated[Positive, Field(ge=8)]
    """Tokens of a row."""
    validation_rows: Positive
    """At most so many held-out rows of each text."""
    tokens: Tokens

    @property
    def outside(self) -> bool:
        """Whether files outside the project are read."""
        return any(text.source in ("files", "benchmarks", "stream") for text in self.texts.values())

    @property
    def made(self) -> dict[str, int]:
        """Text → which constructed language it is in, 0 the pivot; of the constructed ones."""
        return {name: text.language for name, text in self.texts.items() if isinstance(text, Made)}

    def asked_of(self, text: str) -> list[str]:
        """The constructed tasks in the language of a text."""
        languages = ("", text) if self.made.get(text) == 0 else (text,)
        return [name for name in self.tasks if language_of(name)[0] in CONSTRUCTED_TASKS and language_of(name)[1] in languages]

    @property
    def xnli(self) -> list[str]:
        """The tasks that are asked with XNLI's own files."""
        there = self.benchmarks is not None and XNLI in self.benchmarks.tasks
        return [name for name in self.tasks if name in XNLI_TASKS and there]

    @property
    def prepared_tasks(self) -> list[str]:
        """The tasks whose items are made with the data; those of the others come from the hub."""
        return [*(name for text in self.made for name in self.asked_of(text)), *self.xnli]

    @property
    def classified(self) -> list[str]:
        """The texts whose words have known classes: those in constructed languages, where pieces are trained here."""
        return [name for name, text in self.texts.items() if isinstance(text, Made) and self.tokens.source == "trained"]

    @model_validator(mode="after")
    def _parts_fit(self) -> Data:
        numbers = self.made
        if bool(numbers) != (self.constructed is not None):
            raise ValueError("the section 'constructed' belongs to, and is required by, a text with source 'constructed'")
        for name, number in numbers.items():
            if self.constructed is not None and number >= self.constructed.languages:
                raise ValueError(f"texts.{name}.language {number}: should be below constructed.languages, {self.constructed.languages}")
        if twice := [name for name, number in numbers.items() if list(numbers.values()).count(number) > 1]:
            raise ValueError(f"texts {twice[0]!r} and {twice[1]!r} are both constructed language {numbers[twice[0]]}")
        if self.tokens.source == "trained" and any(text.source == "stream" for text in self.texts.values()):
            raise ValueError("tokens.source 'trained': should be 'checkpoint' beside a stream, which is read once")
        if any(text.source == "benchmarks" for text in self.texts.values()) != (self.benchmarks is not None):
            raise ValueError("the section 'benchmarks' belongs to, and is required by, texts with source 'benchmarks'")
        if self.benchmarks is not None:
            if self.benchmarks.source != "files":
                raise ValueError(f"benchmarks.source {self.benchmarks.source!r}: should be 'files'")
            there = sorted({"en", *self.benchmarks.corpus_files, *self.benchmarks.train_languages.values()})
            for name, text in self.texts.items():
                if isinstance(text, Benchmarks) and text.language not in there:
                    raise ValueError(f"texts.{name}.language {text.language!r}: benchmarks has texts in {', '.join(there)}")
        for name in self.texts:
            if not re.fullmatch("[a-z][a-z0-9_]*", name):
                raise ValueError(f"texts: the name {name!r} should be made of lower-case letters, digits and underscores")
        tasks = [*TASKS, *(f"{task}_{name}" for name, number in numbers.items() if number for task in CONSTRUCTED_TASKS)]
        for name, shots in self.tasks.items():
            if name not in tasks:
                raise ValueError(f"tasks names {name!r}{nearest(name, tasks)}; tasks are: {', '.join(tasks)}")
            if name in CONSTRUCTED_TASKS and 0 not in numbers.values():
                raise ValueError(f"task {name!r} is asked in the constructed pivot language, which is none of the texts")
            if shots and name in self.prepared_tasks:
                kind = "XNLI's files of one language" if name in self.xnli else "constructed tasks"
                raise ValueError(f"tasks.{name} {shots}: should be 0, as {kind} have no examples to show")
        return self


class Pretraining(Optimisation):
    """Next-token pre-training; the learning rate rises linearly and falls as ``decay`` says, to ``floor`` times its peak."""

    decay: Literal["linear", "cosine"] = "cosine"
    floor: Share = 0.0


class Setting(BaseSetting):
    """A paper under a profile: ``experiments/<paper>/profiles/<profile>.yaml``."""

    decoder: Decoder
    experts: Few
    """E of every block's layer of experts."""
    pretrain: Pretraining
    chosen: Few = 1
    """K of the baseline, which the parity of multi-head layers is with; a router's own is its option ``k``."""
    sparse_every: Few = 1
    """Blocks number n, 2n, … (from 1) have a layer of experts; the others one dense network of the decoder's inner width."""
    experts_of: dict[str, Few] = Field(default_factory=dict)
    """Method → its own E, where it is not the one that follows from its parity."""
    examine_batch: Positive = 64
    """Sequences at once in measuring."""
    beside: str = "2"
    """Number of the published table that the main table stands beside."""

    def check(self, experiment: Experiment) -> None:
        """See `_check`."""
        _check(experiment)


class Method(FeedForwardMethod):
    """One method: ``experiments/<paper>/methods/<method>.yaml``; its layer stands in the blocks that ``sparse_every`` says."""

    table: Literal["main", "selection", "removed", "heads", "components", "shared", "one_bit"] = "main"
    """In which table it is shown: the main one, that of other ways to select, that of trained models whose router is taken away; or those
    of the multi-head layer: number of heads, parts of the layer, with a shared expert, with weights of one bit."""
    one_bit: bool = False
    """All linear maps of the decoder have weights of one bit (`moebench.moe.one_bit`)."""
    rank: Annotated[str, Field(pattern=r"^\d+/\d+$")] | None = None
    """L / D, as ``256/768``: the gate of every expert is factorised, D → L → F; none: it is one matrix."""
    match: Literal["width", "rank"] = "width"
    """How an expert that is factorised keeps the parameters of one that is not: it is wider (AoE, arXiv 2501.13074, eq. 5), or its rank
    follows, r = dD / (d + D), and its width stays (arXiv 2512.23447, section 2); that takes no ``rank``."""
    coupling: Weight = 0.0
    """Coefficient of the expert-router coupling loss (arXiv 2512.23447)."""
    coupling_alpha: Rate = 1.0
    """Its α."""

    @property
    def factorised(self) -> bool:
        """Whether experts have a factorised gate."""
        return self.rank is not None or self.match == "rank"

    @model_validator(mode="after")
    def _factors_fit_the_layer(self) -> Method:
        if self.factorised and self.layer == "dense":
            raise ValueError("rank and match belong to layers of experts")
        if self.factorised and (self.split > 1 or self.multi_head):
            raise ValueError("rank and match are not for experts that are split, or take sub-tokens")
        if self.one_bit and self.layer == "aoe":
            raise ValueError("one_bit does not reach the products by which experts of layer 'aoe' choose")
        if self.rank is not None and self.match == "rank":
            raise ValueError(f"rank {self.rank}: with match 'rank' it follows from the width")
        if self.rank is not None and not 0 < self.share < 1:
            raise ValueError(f"rank {self.rank}: should be above 0 and below 1, as a share of the width")
        if self.coupling and self.layer != "moe":
            raise ValueError(f"coupling {self.coupling:g} is a loss of router and experts, which layer {self.layer!r} has not")
        if (self.table == "removed") != (self.pretrain_as is not None):
            raise ValueError("table 'removed' and pretrain_as belong together: such a method is the trained model of another")
        if self.pretrain_as and self.losses and any(self.losses.values()):
            raise ValueError("losses belong to training, and a method with pretrain_as trains nothing: give 0")
        return self

    @property
    def share(self) -> Fraction:
        """`rank` as a number; 0 where it is none, or divides by 0."""
        above, below = map(int, (self.rank or "0/1").split("/"))
        return Fraction(above, below) if below else Fraction(0)


def shape_of(setting: Setting, method: Method, name: str) -> dict[str, int]:
    """The experts of a method: ``experts`` E, ``inner`` F, and ``low`` L, 0 where the gate is one matrix.

    Raises:
        ValueError: widths do not divide, or nothing is left for experts.
    """
    found = _shape_of(setting, method)
    return found | {"experts": setting.experts_of.get(name, found["experts"])}


def _shape_of(setting: Setting, method: Method) -> dict[str, int]:
    width, inner = setting.decoder.width, setting.decoder.inner
    if method.match == "rank":
        return {"experts": setting.experts, "inner": inner, "low": matching_rank(width, inner)}
    if low := round(width * method.share):
        return {"experts": setting.experts, "inner": matched(width, inner, low), "low": low}
    return sizes(method, width, inner, setting.experts, setting.chosen) | {"low": 0}


def matched(width: int, inner: int, low: int) -> int:
    """F of an expert with as many parameters as one of inner width ``inner`` whose gate is one matrix; itself where ``low`` is 0."""
    return widened(width, inner, low) if low else inner


def _check(experiment: Experiment) -> None:
    """Check that data, setting and methods fit together.

    Raises:
        MoebenchError: they do not; the message names the file, the key and what would be right.
    """
    setting: Setting = experiment.setting
    data: Data = experiment.data
    shape, path = setting.decoder, experiment.setting_file
    if shape.context < data.sequence_length:
        raise MoebenchError(
            f"{path}: key 'decoder.context' has the value {shape.context}; {experiment.data_file} has sequence_length"
            f" {data.sequence_length}"
        )
    tables = experiment.published.tables
    if tables and setting.beside not in tables:
        raise MoebenchError(f"{path}: key 'beside' has the value {setting.beside!r}; published tables are: {', '.join(tables)}")
    weights = setting.experts * shape.layers * 3 * shape.width * shape.inner
    check_memory(path, {"decoder": shape.weights, "experts": weights})
    check_memory(experiment.data_file, {"tokens.vocabulary": (data.tokens.vocabulary or 0) * shape.width})
    rows = setting.pretrain.batch * data.sequence_length * shape.width / (setting.devices * setting.nodes * setting.pretrain.accumulate)
    check_memory(path, {"pretrain.batch' x 'sequence_length": rows})
    for name in setting.experts_of:
        if name not in experiment.methods:
            raise MoebenchError(f"{path}: key 'experts_of' names {name!r}{nearest(name, experiment.methods)}, which is no method here")
    if setting.sparse_every > shape.layers:
        raise MoebenchError(f"{path}: key 'sparse_every' has the value {setting.sparse_every}; there are {shape.layers} blocks")
    for name, method in experiment.methods.items():
        _check_method(experiment, name, method)


def _check_method(experiment: Experiment, name: str, method: Method) -> None:
    path, setting = experiment.method_file(name), experiment.setting
    if method.layer not in layers():
        raise MoebenchError(
            f"{path}: key 'layer' has the value {method.layer!r}{nearest(method.layer, layers())}; layers are: {', '.join(layers())}"
        )
    if method.router is not None and looks_at_attention(method.router):
        raise MoebenchError(
            f"{path}: key 'router' has the value {method.router!r}, which looks at attention probabilities; a decoder does not compute them"
        )
    try:
        found = shape_of(setting, method, name)
    except ValueError as error:
        raise MoebenchError(f"{path}: what follows from keys 'split', 'multi_head' and 'options.k' cannot be: {error}") from error
    if method.factorised and (found["low"] < 1 or found["inner"] < 1):
        raise MoebenchError(f"{path}: key 'rank' has the value {method.rank}; of width {setting.decoder.width} that leaves {found}")
    experiment.check_options(name, setting.decoder.width // method.heads, found["experts"])
    if method.layer == "aoe" and method.options["node"] == "reduced" and not method.factorised:
        raise MoebenchError(f"{path}: key 'rank' is missing: experts select themselves by what the first factor of their gate gives")
    if method.pretrain_as is not None:
        _check_start(path, method, experiment.method(method.pretrain_as, f"{path}: key 'pretrain_as': "))


def _check_start(path: Path, method: Method, start: Method) -> None:
    if start.pretrain_as:
        raise MoebenchError(f"{path}: key 'pretrain_as' names {method.pretrain_as!r}, which is not trained by itself")
    for key in ("wide", "rank", "match", "split", "multi_head", "shared", "one_bit"):
        if (mine := getattr(method, key)) != (theirs := getattr(start, key)):
            raise MoebenchError(f"{path}: key {key!r} has the value {mine!r}, but {method.pretrain_as!r} was pre-trained with {theirs!r}")


def shown_in(table: str, methods: Mapping[str, Method]) -> list[str]:
    """Names of the methods of a table, in their order."""
    return [name for name, method in methods.items() if method.table == table]

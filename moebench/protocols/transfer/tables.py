"""How it is shown: zero-shot transfer, perplexity, routers under the protocol, calibration under language shift."""

from __future__ import annotations

from dataclasses import replace

from moebench.data.text_settings import tasks
from moebench.errors import MoebenchError
from moebench.protocols.transfer import layout, numbers
from moebench.protocols.transfer.calibration import table4_blocks, table4_uncertainty
from moebench.protocols.transfer.routers import costs_blocks, table3_blocks, table3_routers
from moebench.results.tables import Document, Expected, Figure, Measured, title

FILES = """\
| `records.csv` | every measured number in long form, a row a method, seed, task, language and metric; `n`: on how many examples |
| `provenance.csv` | of each run: training language, hash of its configuration, fingerprint of its code, commit, versions, hardware |
| `costs.csv` | of each run: seconds, tokens per second, peak memory, parameters, forward FLOPs per token |
| `table1_xtreme.csv` `.md` `.tex` | zero-shot transfer: means and deviations over seeds, differences, shallow baselines, published values |
| `table2_perplexity.csv` `.md` `.tex` | masked-language-model perplexity after pre-training |
| `table3_routers.csv` `.md` `.tex` | more routers under the same protocol: quality, balance, experts and FLOPs a token |
| `table4_uncertainty.csv` `.md` `.tex` | calibration in the training language and zero-shot, of single models and ensembles |
| `costs.md` | `costs.csv` in short: sizes, seconds, memory of pre-training |
"""
"""Rows of the list of files in the README beside the results."""
NOTES = """\
A record `<metric>_bootstrap_se`, and the column `bootstrap_se`, is a standard error over test examples, `n` the number of independent
groups; the ± of the tables is over training seeds.

Scores are in percent; measures of uncertainty (`nll`, `brier`, `ece`, `aurc`, `disagreement` and the like) are fractions or nats, `n` the
number of pairs or words; a `temperature` stands under the language whose validation set it was fitted on.

The stage of a record is `pretrain`, `finetune`, `baseline` (a shallow baseline: no model, seed 0) or `ensemble` (the mean of the
probabilities of all seeds of the setting, as seed 0; there only where every seed is). In `provenance.csv` and
`costs.csv` the column `task` names the training set (`mlm` in pre-training). `records.csv` and the tables are the same byte for byte
when made again from the same runs; seconds, memory, versions and commits are not.
"""
"""What that README says about them."""


def tables(expected: Expected, measured: Measured) -> list[Document | Figure]:
    """Make the tables; the first is the one to look at.

    Raises:
        MoebenchError: the records mix several training languages of a training set.
    """
    experiment, setting = expected.experiment, expected.experiment.setting
    trained = measured.provenance[measured.provenance["stage"] == "finetune"]
    languages = {str(name): set(mine["train_language"]) for name, mine in trained.groupby("task")}
    if mixed := sorted(name for name, found in languages.items() if len(found) > 1):
        raise MoebenchError(
            f"provenance.csv of {experiment.paper}, {experiment.profile}: column 'train_language' holds several values for"
            f" {', '.join(mixed)}; run evaluate again"
        )
    chosen = tasks(experiment.data)
    every = numbers.Expected(
        **vars(expected),
        pivots={task.name: str(*languages[task.train]) for task in chosen if task.train in languages},
        trained_on={task.name: task.train for task in chosen},
        tasks=tuple(task.name for task in chosen),
        pretraining=setting.pretrain.steps > 0,
    )

    def of(*shown: str) -> numbers.Expected:
        return replace(every, methods={name: method for name, method in every.methods.items() if method.table in shown})

    def tasks_of(table: str) -> tuple[str, ...]:
        return tuple(name for name in every.tasks if every.trained_on[name] in setting.groups[table].training_sets)

    main, routed, ensembles, shown = of("main"), of("main", "routers"), of("main", "ensembles"), tasks_of("routers")
    table1, table2 = numbers.table1_xtreme(measured.records, main), numbers.table2_perplexity(measured.records, main)
    table3 = table3_routers(measured.records, routed, shown)
    table4 = table4_uncertainty(measured.records, ensembles, tasks_of("ensembles"))
    blocks1, blocks2 = layout.table1_blocks(table1, main), layout.table2_blocks(table2, main)
    return [
        Document("table1_xtreme", title(every, "zero-shot transfer", "1"), blocks1, table1),
        Document("table2_perplexity", title(every, "masked-language-model perplexity", "2"), blocks2, table2),
        Document(
            "table3_routers", title(every, f"routers under the {every.about.name} protocol"), table3_blocks(table3, routed, shown), table3
        ),
        Document("table4_uncertainty", title(every, "calibration under language shift"), table4_blocks(table4, ensembles), table4),
        Document("costs", title(every, "what pre-training cost"), costs_blocks(measured.costs, every)),
    ]

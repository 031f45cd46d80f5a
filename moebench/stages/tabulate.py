"""Stage ``tabulate``: the tables of a paper from its records and its published numbers, as CSV, Markdown and LaTeX."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from moebench import config
from moebench.errors import MoebenchError, nearest
from moebench.files import write_text
from moebench.results import layout, published, records, routers, tables, uncertainty
from moebench.results.rendering import latex, markdown

README = """\
# Results of {paper} under the profile `{profile}`

All files are made by `moebench evaluate` and `moebench tabulate`; none is edited by hand.

| file | what it holds |
|---|---|
| `records.csv` | every measured number in long form, a row a method, seed, task, language and metric; `n`: on how many examples |
| `provenance.csv` | of each run: training language, hash of its configuration, fingerprint of its code, commit, versions, hardware |
| `costs.csv` | of each run: seconds, tokens per second, peak memory, parameters, forward FLOPs per token |
| `table1_xtreme.csv` `.md` `.tex` | zero-shot transfer: means and deviations over seeds, differences, shallow baselines, published values |
| `table2_perplexity.csv` `.md` `.tex` | masked-language-model perplexity after pre-training |
| `table3_routers.csv` `.md` `.tex` | more routers under the same protocol: quality, balance, experts and FLOPs a token |
| `table4_uncertainty.csv` `.md` `.tex` | calibration in the training language and zero-shot, of single models and ensembles |
| `costs.md` | `costs.csv` in short: sizes, seconds, memory of pre-training |

A record `<metric>_bootstrap_se`, and the column `bootstrap_se`, is a standard error over test examples, `n` the number of independent
groups; the ± of the tables is over training seeds.

Scores are in percent; measures of uncertainty (`nll`, `brier`, `ece`, `aurc`, `disagreement` and the like) are fractions or nats, `n` the
number of pairs or words; a `temperature` stands under the language whose validation set it was fitted on.

The stage of a record is `pretrain`, `finetune`, `baseline` (a shallow baseline: no model, seed 0) or `ensemble` (the mean of the
probabilities of all seeds of the setting, as seed 0; there only where every seed is). In `provenance.csv` and
`costs.csv` the column `task` names the training set (`mlm` in pre-training). `records.csv` and the tables are the same byte for byte
when made again from the same runs; seconds, memory, versions and commits are not.

In LaTeX: `\\input{{table1_xtreme.tex}}` with the packages `booktabs` and `graphicx`.
"""


def expectation(root: Path, profile: str, paper: str, measured: pd.DataFrame, provenance: pd.DataFrame) -> tables.Expected:
    """Put together what the tables should hold, from the configuration and from what the records say about their data.

    Raises:
        MoebenchError: the records mix several sources of data or several training languages, or hold another profile's or paper's; the
            baseline does not run; a method names a published row that does not exist.
    """
    setting = config.setting(root, paper, profile)
    names = config.method_names(root, paper, profile)
    if setting.baseline not in names:
        path = root / "experiments" / paper / "profiles" / f"{profile}.yaml"
        raise MoebenchError(
            f"{path}: key 'baseline' has the value {setting.baseline!r}, which does not run; methods are: {', '.join(names)}"
        )
    methods = {name: config.method(root, paper, name) for name in names}
    numbers = published.load(root, paper)
    for name, method in methods.items():
        if method.published is not None and method.published not in (rows := numbers.table("1").rows):
            path = root / "experiments" / paper / "methods" / f"{name}.yaml"
            raise MoebenchError(
                f"{path}: key 'published' has the value {method.published!r}{nearest(method.published, rows)};"
                f" rows of published.yaml are: {', '.join(rows)}"
            )
    where = root / "results" / profile / paper / "records.csv"
    for column, wanted in (("profile", profile), ("paper", paper)):
        if set(measured[column]) - {wanted}:
            raise MoebenchError(f"{where}: column {column!r} holds {', '.join(sorted(set(measured[column])))}; should be {wanted} alone")
    data = sorted(set(measured["data"]))
    if len(data) > 1:
        raise MoebenchError(f"{where.parent}: column 'data' holds several values, {', '.join(data)}; run evaluate again")
    trained = provenance[provenance["stage"] == "finetune"]
    languages = {str(name): set(mine["train_language"]) for name, mine in trained.groupby("task")}
    if mixed := sorted(name for name, found in languages.items() if len(found) > 1):
        raise MoebenchError(f"{where.parent}: column 'train_language' holds several values for {', '.join(mixed)}; run evaluate again")
    tasks = config.tasks(config.data(root, profile))
    return tables.Expected(
        profile=profile,
        paper=paper,
        data=data[0] if data else "",
        pivots={task.name: str(*languages[task.train]) for task in tasks if task.train in languages},
        trained_on={task.name: task.train for task in tasks},
        methods=methods,
        seeds=setting.seeds,
        tasks=tuple(task.name for task in tasks),
        baseline=setting.baseline,
        pretraining=setting.pretrain.steps > 0,
        published=numbers,
        notes=setting.notes,
    )


def tabulate(root: Path, profile: str, paper: str) -> None:
    """Write the tables and a ``README.md`` beside the records, ``results/<profile>/<paper>/``; cells without a number say why.

    Raises:
        MoebenchError: records or published numbers are missing or damaged. Nothing was changed then.
    """
    folder = root / "results" / profile / paper
    measured = records.read(folder / "records.csv", records.RECORDS)
    expected = expectation(root, profile, paper, measured, records.read(folder / "provenance.csv", records.PROVENANCE))
    costs = records.read(folder / "costs.csv", records.COSTS)
    groups = config.setting(root, paper, profile).groups

    def of(*shown: str) -> tables.Expected:
        return replace(expected, methods={name: method for name, method in expected.methods.items() if method.table in shown})

    def tasks_of(table: str) -> tuple[str, ...]:
        return tuple(name for name in expected.tasks if expected.trained_on[name] in groups[table].training_sets)

    main, routed, ensembles, tasks = of("main"), of("main", "routers"), of("main", "ensembles"), tasks_of("routers")
    table1, table2 = tables.table1_xtreme(measured, main), tables.table2_perplexity(measured, main)
    table3 = routers.table3_routers(measured, routed, tasks)
    table4 = uncertainty.table4_uncertainty(measured, ensembles, tasks_of("ensembles"))
    files = {"README.md": README.format(paper=expected.published.paper, profile=profile)}
    for name, number, what, table, blocks in (
        ("table1_xtreme", "1", "zero-shot transfer", table1, layout.table1_blocks(table1, main)),
        ("table2_perplexity", "2", "masked-language-model perplexity", table2, layout.table2_blocks(table2, main)),
        (
            "table3_routers",
            "",
            f"routers under the {expected.published.paper} protocol",
            table3,
            routers.table3_blocks(table3, routed, tasks),
        ),
        ("table4_uncertainty", "", "calibration under language shift", table4, uncertainty.table4_blocks(table4, ensembles)),
    ):
        title = layout.title(number, what, expected)
        files[f"{name}.csv"] = csv_of(table)
        files[f"{name}.md"] = markdown(title, blocks)
        files[f"{name}.tex"] = latex(title, f"tab:{paper}-{profile}-{name}", blocks)
    files["costs.md"] = markdown(layout.title("", "what pre-training cost", expected), routers.costs_blocks(costs, expected))
    for name, text in files.items():
        write_text(folder / name, text)


def csv_of(table: pd.DataFrame) -> str:
    """A table as CSV, numbers with six decimals."""
    text = table.map(lambda value: records.decimal(value) if isinstance(value, float) else value)
    return str(text.to_csv(index=False, lineterminator="\n"))

"""The share of right predictions, in percent."""

from moebench.files import read_json
from moebench.results.scored import Scored


def score(experiment, judged, finished):
    folders = {(run.method, run.seed, "finetune"): experiment.folder(run) for run in finished if run.method in judged}
    folders |= {(path.name, 0, "baseline"): path for path in experiment.baselines_folder.glob("*/")}
    scored = Scored()
    for (method, seed, stage), folder in folders.items():
        right = read_json(folder / "right.json")
        row = {"method": method, "seed": seed, "stage": stage, "task": "noisy", "language": "", "metric": "accuracy", "n": len(right)}
        scored.records.append(row | {"value": 100 * sum(right) / len(right)})
    return scored

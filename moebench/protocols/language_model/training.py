"""How a run learns, and what it is asked afterwards: by its stage."""

from __future__ import annotations

from moebench.protocols.language_model.examination import ExaminationJob
from moebench.protocols.language_model.pretraining import PretrainingJob
from moebench.training.job import by_stage

job = by_stage(PretrainingJob, ExaminationJob)

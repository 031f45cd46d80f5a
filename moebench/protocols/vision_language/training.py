"""How a run learns and predicts: by its stage."""

from __future__ import annotations

from moebench.protocols.vision_language.finetuning import FinetuningJob
from moebench.protocols.vision_language.pretraining import PretrainingJob
from moebench.training.job import by_stage

job = by_stage(PretrainingJob, FinetuningJob)

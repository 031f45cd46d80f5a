"""Fine-tuning: questions about an image, statements about two, captions; the modules, and the predictions that they leave.

B examples, I images of an example, T patches, W words, D width, C classes, V vocabulary, N masked words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from torch import Tensor, nn

from moebench.config import Optimisation
from moebench.data.image_text import LABELS
from moebench.experiment import Experiment, Run
from moebench.files import read_json, read_object, write_jsonl
from moebench.models.build import load_weights
from moebench.models.heads import MaskedLMHead
from moebench.models.vision_language import CLASS, MASK, PAD, SEPARATOR, VisionLanguage, costs
from moebench.moe.layer import Aux
from moebench.protocols.vision_language.batches import TaskBatches, examples
from moebench.protocols.vision_language.build import build
from moebench.protocols.vision_language.config import Captioning
from moebench.protocols.vision_language.pretraining import words_head
from moebench.training.batches import Batch, loader
from moebench.training.job import Job
from moebench.training.module import Training


class ClassHead(nn.Module):
    """Linear, LayerNorm, GELU, linear, to twice the width and then to C classes; BEiT-3's public code for visual reasoning.

    For questions that code has another linear layer and tanh before it, which are left out here.
    """

    def __init__(self, inputs: int, width: int, classes: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, classes))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, states_BN: Tensor) -> Tensor:
        """(B, C) logits."""
        logits_BC: Tensor = self.layers(states_BN)
        return logits_BC


class Classification(Training):
    """Questions and statements: classes from the states of class tokens, by cross-entropy.

    As in BEiT-3's public code, a question is answered from the class token of the image, and a statement is judged in two passes, one with
    each image and the same sentence, from the class tokens of both images and of the sentence in both passes. The code trains questions by
    a binary cross-entropy for each answer, whose targets are an answer's soft scores; here it is one over all answers, to the same scores
    divided by their sum, so that there is a distribution over answers.
    """

    def __init__(
        self, encoder: VisionLanguage, images: int, classes: int, optimisation: Optimisation, losses: Mapping[str, float], seed: int
    ):
        super().__init__(optimisation, losses, 0.0, seed)
        self.encoder, self.images = encoder, images
        width = encoder.shape.width
        self.head = ClassHead(width if images == 1 else 2 * images * width, width, classes)

    def outputs(self, batch: Batch) -> tuple[Tensor, Tensor, list[Aux]]:
        """Return (B, C) logits, the (B, C) distributions that are asked for, and what each layer for both modalities reports."""
        logits_BC, reports = self.scores(batch)
        return logits_BC, batch["targets"], reports

    def scores(self, batch: Batch) -> tuple[Tensor, list[Aux]]:
        """Return (B, C) logits, and what each layer for both modalities reports."""
        states_RSD, reports = self.encoder(batch["patches"], batch["words"], batch["mask"], visual_BT=batch["visual"])
        classes_R2D = states_RSD[:, [0, 1 + batch["patches"].shape[1]]]
        states_BN = classes_R2D[:, 0] if self.images == 1 else classes_R2D.reshape(-1, self.head.layers[0].in_features)
        return self.head(states_BN).float(), reports

    def predict_step(self, batch: Batch, batch_idx: int) -> np.ndarray:
        """Return (B, C) probabilities."""
        probabilities: np.ndarray = self.scores(batch)[0].softmax(-1).cpu().numpy()
        return probabilities

    def rates(self) -> dict[str, float]:
        """The head may learn faster than the rest."""
        return {"head.": self.optimisation.head_rate, "": 1.0}


class Description(Training):
    """Captions: masked words are predicted from the image and the words before them, as in BEiT-3's public code.

    The head is that of the masked words of pre-training, where in the code it starts anew.
    """

    def __init__(self, encoder: VisionLanguage, head: MaskedLMHead, optimisation: Captioning, losses: Mapping[str, float], seed: int):
        super().__init__(optimisation, losses, 0.0, seed)
        self.encoder, self.words_head = encoder, head

    def outputs(self, batch: Batch) -> tuple[Tensor, Tensor, list[Aux]]:
        """Return (N, V) logits of the masked words, those words, and what each layer for both modalities reports."""
        states_BSD, reports = self.encoder(batch["patches"], batch["words"], batch["mask"], visual_BT=batch["visual"], causal=True)
        words_ND = states_BSD[:, 1 + batch["patches"].shape[1] :][batch["chosen"]]
        return self.words_head(words_ND, self.encoder.words.weight).float(), batch["targets"], reports

    def predict_step(self, batch: Batch, batch_idx: int) -> np.ndarray:
        """Return captions as `described` does."""
        return described(self.encoder, self.words_head, batch["patches"], batch["visual"]).cpu().numpy()

    def rates(self) -> dict[str, float]:
        """All parameters learn at one rate."""
        return {"": 1.0}


@torch.no_grad()
def described(encoder: VisionLanguage, head: MaskedLMHead, patches_BTX: Tensor, visual_BT: Tensor) -> Tensor:
    """Describe images greedily: a masked word is put behind the words so far and the likeliest word in its place, again and again.

    A caption ends with a separator, or where the longest text ends.

    Args:
        encoder: in evaluation mode, if its routers behave otherwise in training.
        head: of its words.
        patches_BTX: the images.
        visual_BT: their visual tokens.

    Returns:
        (B, W) ids of words without special ones around them, padding behind.
    """
    words_BW = torch.full((len(patches_BTX), 1), CLASS, device=patches_BTX.device)
    ended_B = torch.zeros_like(words_BW[:, 0], dtype=torch.bool)
    while words_BW.shape[1] < encoder.shape.words and not ended_B.all():
        masked_BW = torch.cat([words_BW, torch.full_like(words_BW[:, :1], MASK)], 1)
        states_BSD, _ = encoder(patches_BTX, masked_BW, visual_BT=visual_BT, causal=True)
        logits_BV = head(states_BSD[:, -1], encoder.words.weight)
        logits_BV[:, [PAD, CLASS, MASK]] = float("-inf")
        next_B = logits_BV.argmax(-1)
        ended_B = ended_B | (next_B == SEPARATOR)
        words_BW = torch.cat([words_BW, next_B.masked_fill(ended_B, PAD)[:, None]], 1)
    return words_BW[:, 1:]


class FinetuningJob(Job):
    """Train a task, then predict its test set: ``predictions/<task>.jsonl``.

    A question has ``answer``, its ``probability``, and ``nll`` of the most frequent reference answer, none where there is no reference or
    the model cannot give it; a statement ``label`` and ``probability_true``; an image ``caption``. Each row has ``id``.
    """

    module: Classification | Description

    def __init__(self, experiment: Experiment, run: Run, plan: dict[str, Any]):
        self.prepared, self.task, self.seed, self.size = experiment.prepared, run.training_set, run.seed, plan["predict_batch"]
        manifest = read_object(self.prepared / "manifest.json", vocabulary=int, codebook=int, answers=int)
        self.vocabulary = manifest["vocabulary"]
        self.classes = {"vqa": manifest["answers"], "nlvr": len(LABELS), "caption": 0}[self.task]
        losses, start, options = plan["method"]["losses"], experiment.start(run), plan["finetune"]
        torch.manual_seed(run.seed)
        self.encoder = build(plan, self.vocabulary, manifest["codebook"])
        load_weights(self.encoder, start)
        self.mask = None
        torch.manual_seed(run.seed)
        if self.task == "caption":
            captioning = Captioning.model_validate(options)
            head, self.mask, self.optimisation = words_head(self.encoder), captioning.mask, captioning
            load_weights(nn.ModuleDict({"words_head": head}), start)
            self.module = Description(self.encoder, head, captioning, losses, run.seed)
        else:
            self.optimisation = Optimisation.model_validate(options)
            images = 2 if self.task == "nlvr" else 1
            self.module = Classification(self.encoder, images, self.classes, self.optimisation, losses, run.seed)

    def batches(self, part: int, parts: int) -> TaskBatches:
        """The training examples, epoch by epoch."""
        given, _ = self._read("train", learned=True)
        return TaskBatches(given, self.optimisation.batch, self.mask, self.vocabulary, self.seed, part, parts)

    def after(self, trainer: lightning.Trainer, folder: Path) -> list[dict[str, Any]]:
        """Predict the test set."""
        given, rows = self._read("test", learned=False)
        batches = [given.batch(np.arange(begin, min(begin + self.size, len(rows)))) for begin in range(0, len(rows), self.size)]
        outputs: Any = trainer.predict(self.module, loader(batches))
        names = read_json(self.prepared / ("words.json" if self.task == "caption" else "answers.json"))
        found = [self._answer(row, output, names) for row, output in zip(rows, (each for part in outputs for each in part), strict=True)]
        if trainer.is_global_zero:
            write_jsonl(folder / "predictions" / f"{self.task}.jsonl", found)
        return []

    def _read(self, split: str, learned: bool) -> Any:
        shape = self.encoder.shape
        return examples(self.task, self.prepared / self.task / split, shape.patch, shape.words, self.classes, learned)

    def _answer(self, row: dict[str, Any], output: np.ndarray, names: list[str]) -> dict[str, Any]:
        """One row of the predictions; ``names`` are those of words or of answers."""
        if self.task == "caption":
            return {"id": row["id"], "caption": " ".join(names[word] for word in output if word != PAD)}
        best = int(output.argmax())
        if self.task == "nlvr":
            return {"id": row["id"], "label": LABELS[best], "probability_true": float(output[LABELS.index("true")])}
        places = [names.index(answer) for answer, _ in Counter(row["answers"]).most_common(1) if answer in names]
        nll = [-float(np.log(max(output[place], np.finfo(np.float32).tiny))) for place in places]
        return {"id": row["id"], "answer": names[best], "probability": float(output[best]), "nll": nll[0] if nll else None}

    def costs(self) -> dict[str, Any]:
        """Parameters and operations a token of the encoder."""
        return costs(self.encoder, self.module.rows_per_token())

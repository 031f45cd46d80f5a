"""Whether an encoder pre-trained on constructed languages puts a word beside its translation; nothing is timed here.

    moebench plan --paper xmoe && moebench prepare --paper xmoe && moebench pretrain --paper xmoe --method dense --seed 0
    python benchmarks/word_translation.py [--profile cpu] [--paper xmoe] [--method dense] [--seed 0]

A word is the mean state of its first piece over statements, the same in all languages, less the mean over the words of its language.
Counted are words that do not look like their translation: the share whose nearest pivot word (cosine) is the translation, and the share
whose nearest pivot word has the same part of speech. Which word a form is follows from its beginning: no stem begins another one of its
part of speech.

D width, S positions, W words of the pivot, V counted words of another language.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from moebench.config import project_root
from moebench.data import hub_tokenizer
from moebench.data.constructed import ConstructedSource
from moebench.data.constructed.meaning import Sentence
from moebench.data.constructed.realise import Realiser, tokens
from moebench.data.constructed.scripts import spell
from moebench.data.constructed.tasks import tagged
from moebench.data.constructed.world import Sampler, World
from moebench.data.tokenizer import Tokenizer
from moebench.experiment import Run, experiments
from moebench.files import read_json
from moebench.models import shapes
from moebench.models.build import build_encoder, load_weights
from moebench.models.encoder import Encoder

Word = tuple[str, str]  # part of speech, lemma
Statement = list[tuple[str, Word | None]]  # forms, each with its word; function words and marks have none


def read(world: World, speaker: Realiser, sentences: Iterable[Sentence]) -> list[Statement]:
    """Put sentences into a language and tell which word each form is."""
    language = speaker.language
    stems = {(world.upos.get(lemma, "PROPN"), spell(stem, language.typology.script)): lemma for lemma, stem in language.stems.items()}

    def word(form: str, upos: str) -> Word | None:
        return next(((upos, stems[upos, form[:end]]) for end in range(1, len(form) + 1) if (upos, form[:end]) in stems), None)

    return [[(token.form, word(token.form, token.upos)) for token in tokens(speaker.sentence(sentence))] for sentence in sentences]


@torch.no_grad()
def word_states(encoder: Encoder, tokenizer: Tokenizer, statements: list[Statement]) -> list[dict[Word, Tensor]]:
    """Return for every block the mean (D,) state of each word after it, less the mean over words."""
    states: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda module, inputs, output: states.append(output)) for block in encoder.blocks]
    met: list[dict[Word, list[Tensor]]] = [defaultdict(list) for _ in hooks]
    for statement in statements:
        pieces, firsts = tokenizer.encode_words([form for form, _ in statement])
        ids_1S = torch.tensor([[tokenizer.bos, *pieces, tokenizer.eos]])
        states.clear()
        encoder(ids_1S, torch.ones_like(ids_1S, dtype=torch.bool))
        for found, state_1SD in zip(met, states, strict=True):
            for first, (_, word) in zip(firsts, statement, strict=True):
                if word:
                    found[word].append(state_1SD[0, 1 + first])
    for hook in hooks:
        hook.remove()
    means = [{word: torch.stack(of).mean(0) for word, of in found.items()} for found in met]
    centres = [torch.stack(list(found.values())).mean(0) for found in means]
    return [{word: state - centre for word, state in found.items()} for found, centre in zip(means, centres, strict=True)]


def shares(pivot: dict[Word, Tensor], other: dict[Word, Tensor], counted: list[Word]) -> tuple[float, float]:
    """Return how many of the counted words have their translation, and how many a word of the same part of speech, as the nearest one."""
    known = list(pivot)
    pivot_WD, other_VD = torch.stack(list(pivot.values())), torch.stack([other[word] for word in counted])
    nearest = [known[index] for index in (F.normalize(other_VD, dim=1) @ F.normalize(pivot_WD, dim=1).T).argmax(1).tolist()]
    pairs = list(zip(counted, nearest, strict=True))
    return sum(a == b for a, b in pairs) / len(pairs), sum(a[0] == b[0] for a, b in pairs) / len(pairs)


def main() -> None:
    """Print a row for each language."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("profile", "cpu"), ("paper", "xmoe"), ("method", "dense")):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--statements", type=int, default=600)
    chosen = parser.parse_args()
    (experiment,) = experiments(project_root(), chosen.profile, chosen.paper)
    options = getattr(experiment.data, "constructed", None)
    if options is None:
        parser.error(f"--profile {chosen.profile}: its data are not constructed")
    source = ConstructedSource(options)
    tokenizer = hub_tokenizer.load(experiment.prepared / "tokenizer")
    run = Run("pretrain", chosen.method, chosen.seed)
    plan = read_json(experiment.plan_file(run))["config"]
    sparse = shapes.Sparse.model_validate(plan["sparse"]) if plan["sparse"] else None
    encoder = build_encoder(shapes.Encoder.model_validate(plan["encoder"]), sparse, plan["method"], tokenizer.size)
    load_weights(encoder, experiment.folder(run) / "model.safetensors")
    encoder.eval()

    rng = random.Random(0)
    drawn = tagged(source.world, Sampler(source.world, rng, "train", "all"), rng)
    sentences = [next(drawn).sentences[0] for _ in range(chosen.statements)]
    states = {name: word_states(encoder, tokenizer, read(source.world, speaker, sentences)) for name, speaker in source.speakers.items()}
    pivot, *others = source.languages
    stems = {name: speaker.language.stems for name, speaker in source.speakers.items()}
    print("Nearest pivot word is the translation / has the same part of speech, %, after each block.\n")
    blocks = range(1, len(encoder.blocks) + 1)
    print(f"| language | words | {' | '.join(f'block {block}' for block in blocks)} |\n|---{'|---' * (1 + len(blocks))}|")
    for name in others:
        counted = [word for word in states[name][0] if stems[name][word[1]] != stems[pivot][word[1]]]
        both = zip(states[pivot], states[name], strict=True)
        found = [shares(one, other, counted) for one, other in both] if counted else [(math.nan, math.nan)] * len(blocks)
        print(f"| {name} | {len(counted)} | {' | '.join(f'{100 * right:.0f} / {100 * alike:.0f}' for right, alike in found)} |")


if __name__ == "__main__":
    main()

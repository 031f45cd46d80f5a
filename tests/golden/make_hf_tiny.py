"""Writes ``hf_tiny.npz``: small random BERT, XLM-RoBERTa and XLM-RoBERTa-XL encoders of transformers with inputs and outputs.

Run where transformers is installed: ``python tests/golden/make_hf_tiny.py``. Made with transformers 5.23.0 and torch 2.13.0.

Keys are ``<case>/<name>``: ``config`` (``config.json`` as text), ``weights/<tensor>`` (as the model's own ``save_pretrained`` wrote them),
``ids`` and ``mask`` (B, S), ``states`` (B, S, D) in fp32; ``versions`` says what made them. BERT's file is that of a model with a masked
language model's head, so its tensors have a prefix.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
CASES = {
    "bert": (transformers.BertForMaskedLM, transformers.BertConfig(**SIZES, max_position_embeddings=12)),
    "xlm-roberta": (
        transformers.XLMRobertaModel,
        transformers.XLMRobertaConfig(**SIZES, max_position_embeddings=14, type_vocab_size=1, layer_norm_eps=1e-5),
    ),
    "xlm-roberta-xl": (transformers.XLMRobertaXLModel, transformers.XLMRobertaXLConfig(**SIZES, max_position_embeddings=14)),
}
LENGTHS = (12, 7, 1)


def main() -> None:
    """Write the file beside this one."""
    torch.manual_seed(0)
    arrays = {"versions": np.array(f"transformers {transformers.__version__}, torch {torch.__version__}")}
    for case, (model_class, configuration) in CASES.items():
        model = model_class(configuration).eval()
        for parameter in model.parameters():  # the usual 0.02 would hide mistakes
            torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
        ids = torch.randint(4, SIZES["vocab_size"], (len(LENGTHS), max(LENGTHS)))
        mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
        ids[~mask] = configuration.pad_token_id
        with torch.no_grad():
            states = model.base_model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            arrays[f"{case}/config"] = np.array(Path(folder, "config.json").read_text(encoding="utf-8"))
            weights = load_file(Path(folder, "model.safetensors"))
        arrays |= {f"{case}/weights/{name}": value for name, value in weights.items()}
        arrays |= {f"{case}/ids": ids.numpy(), f"{case}/mask": mask.numpy(), f"{case}/states": states.numpy()}
    np.savez_compressed(Path(__file__).with_name("hf_tiny.npz"), **arrays)


if __name__ == "__main__":
    main()

"""Images and words: an encoder learns by masked modelling of both, and is fine-tuned to answer, to judge and to describe."""

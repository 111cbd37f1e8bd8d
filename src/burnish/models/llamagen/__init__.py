"""LlamaGen (Sun et al. 2024, arXiv:2406.06525): image tokenizer and GPT, state-dict compatible with the released weights."""

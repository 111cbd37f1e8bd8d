"""LlamaGen (Sun et al. 2024, arXiv:2406.06525): tokenizer and GPT, compatible with the released weights."""

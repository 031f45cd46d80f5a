"""Where data comes from and how it becomes rows: sources, tokenizer, packed corpus. Imports no torch."""

"""Text from a language model: sampling, one token at a time, and the terminal's pieces of text."""

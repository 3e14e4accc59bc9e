"""Watching the model work: records of every operation (`record`), the machine's limits (`machine`), views of both."""

"""The definitions of every block of the Qwen2 family, one a file, as operations of `backends.interface`."""

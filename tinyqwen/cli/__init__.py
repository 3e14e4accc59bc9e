"""The command line: one verb a file. Model text goes to standard output, everything else to standard error."""

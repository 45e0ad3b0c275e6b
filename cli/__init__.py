"""The command line: the table of subcommands (`main.py`), store commands, doctor and demo."""

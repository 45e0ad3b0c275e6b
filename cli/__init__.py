"""The `caskd` command: a table of subcommands (`main.py`), and the demo."""

"""`python -m datas3tfs` is the command line."""

from datas3tfs.cli.main import main

main()

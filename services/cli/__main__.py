"""`python -m millrace.services.cli`."""

from millrace.services.cli.commands import main

main(prog_name="millrace")

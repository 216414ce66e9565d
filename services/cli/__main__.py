"""`python -m millrace.services.cli`."""

from millrace.services.cli.commands import main

if __name__ == "__main__":
    main(prog_name="millrace")

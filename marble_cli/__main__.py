"""Run the `marble` command: `python -m marble_cli`."""

from marble_cli.cli.app import main

if __name__ == "__main__":
    main()

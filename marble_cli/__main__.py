"""Run the `marble` command: `python -m marble_cli`."""

try:
    from marble_cli.cli.app import main
except KeyboardInterrupt:  # pressed while modules are imported
    raise SystemExit(130) from None

if __name__ == "__main__":
    main()

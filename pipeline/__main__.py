"""`python -m pipeline` is `patchwire`: what a submitted job runs where the command is not installed."""

from pipeline.cli import main

if __name__ == "__main__":
    main()

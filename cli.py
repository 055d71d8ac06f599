"""Run sckit from a checkout: `python cli.py pretrain` is `sckit pretrain`."""

from sckit.cli.app import app

if __name__ == "__main__":
    app()

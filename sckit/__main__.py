"""Run a command as `python -m sckit`."""

from sckit.cli.app import app

if __name__ == "__main__":
    app()

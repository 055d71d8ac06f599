"""`python -m sckit` is `sckit`, also for each process that `torchrun -m sckit` starts."""

from sckit.cli.app import app

if __name__ == "__main__":
    app(prog_name="sckit")

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_of_the_commands_is_up_to_date():
    done = subprocess.run([sys.executable, DOCS / "make_commands.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

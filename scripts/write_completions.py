"""Write the shell completions into completions/; a test compares them with what this writes."""

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "completions"
FILES = {"bash": "gq.bash", "zsh": "_gq", "fish": "gq.fish", "powershell": "gq.ps1"}
# Put into a folder of $fpath, the zsh file is the body of the function that the first Tab calls.
ZSH_FIRST_TAB = 'if [[ $funcstack[1] = _gq ]]; then _gq_completion "$@"; fi\n'


def completion_script(shell: str) -> str:
    """Return what `gq` itself prints for a shell."""
    environment = {**os.environ, "_GQ_COMPLETE": f"source_{shell}"}
    command = [sys.executable, "-m", "gq"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return printed.strip() + "\n" + (ZSH_FIRST_TAB if shell == "zsh" else "")


def main() -> None:
    """Write one file per shell."""
    FOLDER.mkdir(exist_ok=True)
    for shell, name in FILES.items():
        (FOLDER / name).write_text(completion_script(shell), encoding="utf-8")


if __name__ == "__main__":
    main()

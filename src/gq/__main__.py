"""`python -m gq`."""

from gq.cli import main

if __name__ == "__main__":
    main()

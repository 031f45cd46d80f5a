"""``python -m moebench``."""

from moebench.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

"""Start the command line: `python -m services.storage` and `dgx-storage` both enter here."""

from importlib.util import find_spec


def main() -> None:
    """Run the command line, or say what it needs: click and rich are an extra, the library works without them."""
    missing = [name for name in ("click", "rich") if find_spec(name) is None]
    if missing:
        raise SystemExit(f"The command line needs {' and '.join(missing)}: pip install 'dgx-music-storage[cli]'")
    from .cli import commands

    commands()


if __name__ == "__main__":
    main()

"""Start the command line: the entry point of `python -m services.storage` and of `dgx-storage`."""

from importlib.util import find_spec


def main() -> None:
    """Run the command line. Exit with a message if click or rich, which only the command line needs, are missing."""
    missing = [name for name in ("click", "rich") if find_spec(name) is None]
    if missing:
        raise SystemExit(f"The command line needs {' and '.join(missing)}: pip install 'dgx-music-storage[cli]'")
    try:
        from .cli import commands

        commands()
    except KeyboardInterrupt:  # while modules are imported: the command line itself handles it
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()

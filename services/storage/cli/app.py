"""The click group of all verbs: its options, and the messages and exit codes for errors."""

from typing import Any

import click

from .. import __version__
from ..errors import StorageError
from .output import echo_err, sanitize


class Commands(click.Group):
    """A click group that turns errors into a message and an exit code, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; turn storage errors, OS errors and interrupts into messages and exit codes."""
        try:
            return super().invoke(ctx)
        except StorageError as error:
            raise click.ClickException(sanitize(str(error))) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            message = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
            raise click.ClickException(sanitize(message)) from error
        except (KeyboardInterrupt, click.Abort):
            echo_err("Interrupted.")
            ctx.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dgx-storage")
@click.option(
    "--database-url",
    metavar="URL",
    envvar="DATABASE_URL",
    show_envvar=True,
    help="The database to use.  [default: sqlite:///data/generations.db]",
)
@click.pass_context
def commands(ctx: click.Context, database_url: str | None) -> None:
    """Manage the generations and prompts of DGX Music."""
    ctx.obj = database_url or None

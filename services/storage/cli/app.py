"""The click group of all verbs: its options, its sections, and the messages and exit codes for errors."""

from collections.abc import Sequence
from typing import Any, Final

import click

from .. import __version__
from ..errors import StorageError
from .output import echo_err, sanitize

# The sections of `dgx-storage --help`; a verb that none of them names is listed last.
SECTIONS: Final = {
    "Database": "init migrate rollback reset check optimize copy export import",
    "Backups": "backup verify restore",
    "Generations": "submit list show search why stats top cancel retry delete favorite prune files zip",
    "Queue and workers": "pause resume worker workers health metrics demo admin",
}


def database_url_option(**attributes: Any) -> click.Option:
    """Return the option --database-url, which may stand before and after the verb; the last one counts."""
    help_text = "The database to use.  [default: sqlite:///data/generations.db]"
    return click.Option(["--database-url"], metavar="URL", help=help_text, **attributes)


class Verb(click.Command):
    """A verb, with --database-url among its own options, and with examples of its arguments in its help."""

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.examples = examples
        if all("--database-url" not in parameter.opts for parameter in self.params):
            self.params.append(database_url_option(expose_value=False, callback=_replace_database_url))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the examples, each on a line of its own so that it can be copied."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    line = f"dgx-storage {self.name} {example}".rstrip()
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class Commands(click.Group):
    """A click group that turns errors into a message and an exit code, without a traceback."""

    command_class = Verb

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Read the arguments of the group; turn an interrupt into a message and an exit code."""
        try:
            return super().make_context(*arguments, **options)
        except KeyboardInterrupt:
            echo_err("Interrupted.")
            raise click.exceptions.Exit(130) from None

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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs in sections."""
        listed = {name: verb for name, verb in self.commands.items() if not verb.hidden}
        width = formatter.width - 6 - max(map(len, listed))
        for section, names in SECTIONS.items():
            verbs = [(name, listed.pop(name)) for name in names.split() if name in listed]
            if verbs:
                with formatter.section(section):
                    formatter.write_dl([(name, verb.get_short_help_str(width)) for name, verb in verbs])
        if listed:
            with formatter.section("Other"):
                formatter.write_dl([(name, verb.get_short_help_str(width)) for name, verb in listed.items()])


def _replace_database_url(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    ctx.obj = value or ctx.obj


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dgx-storage")
@click.pass_context
def commands(ctx: click.Context, database_url: str | None) -> None:
    """Manage the generations and prompts of DGX Music."""
    ctx.obj = database_url or None


commands.params.append(database_url_option(envvar="DATABASE_URL", show_envvar=True))

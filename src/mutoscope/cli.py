"""The command `mutoscope`: verbs to functions, reports to JSON, errors to exit statuses.

Exit status: 0 done (warnings on standard error), 2 bad input or usage, 1 anything else, 130 interrupted.
"""

import contextlib
import functools
import inspect
import io
import json
import os
import sys
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from mutoscope import __version__
from mutoscope.commands.common import parse_flags
from mutoscope.commands.failures import explained
from mutoscope.errors import UserError, printable, shortened
from mutoscope.json_config import nearest
from mutoscope.terminal import lasting_output
from mutoscope.waiting import share_processors

# verb -> what it does in one line; the function of that name lives in mutoscope/commands/<verb>.py
VERBS = {
    "models": "list bundled models and paper configurations, or one model's classes, tasks and options",
    "recipes": "list training recipes: what each trains, on which data, at which cost",
    "generate": "generate video clips with a model",
    "play": "open a page to play worlds and to watch generation",
    "reconstruct": "encode and decode a video of any size and length",
    "train": "train a tokenizer or a model from a recipe",
    "finetune": "continue a model on recordings of your own",
    "record": "record episodes of a game or simulator, to train on",
    "tokenize": "encode a folder of videos once, for training from tokens",
    "evaluate": "compare a model or a folder of videos with real clips",
    "export": "write samples as outside benchmarks read them, or a world as a page",
    "bench": "measure speed and memory",
    "convert": "turn published weights into a model folder",
    "inspect": "show what a loader will see in a video or folder, and what is broken",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status, which a reader that goes away does not change."""
    share_processors()  # no verb has loaded torch yet
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files and classes on a terminal without UTF-8
    with lasting_output():
        return run(arguments)


def run(arguments: list[str]) -> int:
    """`main` with standard streams that may vanish."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"mutoscope {__version__}")
        return 0
    debug = "--debug" in arguments
    try:
        with warnings_in_one_line():
            run_verb(arguments[0], [argument for argument in arguments[1:] if argument != "--debug"])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt as interrupt:
        said = str(interrupt) or "interrupted; nothing half-written was left behind."
        return _fail(said if _speaks() else "", 130)
    except Exception as error:
        if debug:
            raise
        return _fail(*explained(error))
    return 0


@contextlib.contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Print this package's warnings without their location in the code; others stay as they are, without Pillow's."""
    package = Path(__file__).parent
    with warnings.catch_warnings():
        elsewhere = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **named: Any) -> None:
            if issubclass(category, UserWarning) and Path(filename).is_relative_to(package):
                _tell(str(message))
            elif "PIL" not in Path(filename).parts:  # of damaged images, which are refused in our words
                elsewhere(message, category, filename, *rest, **named)

        warnings.showwarning = show
        yield


def usage() -> str:
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {verb:<{width}}{summary}" for verb, summary in VERBS.items())
    return (
        "usage: mutoscope VERB ...\n\n"
        "Generate video with masked and autoregressive models; train and compare them.\n\n"
        f"{verbs}\n\n"
        "mutoscope VERB --help shows the options of a verb.\n"
        "Every verb takes --json (one JSON object on standard output) and --debug (traceback of an error)."
    )


def run_verb(verb: str, arguments: list[str]) -> None:
    """Parse the options of one verb, call its function and print its report."""
    if verb not in VERBS:
        raise UserError(f"Unknown verb {verb!r}: {nearest(verb, VERBS)}")
    module = import_module(f"mutoscope.commands.{verb}")
    function = getattr(module, verb)
    call, as_json = parse(function, verb, arguments)
    report = call()
    if not _speaks():
        return
    failure = report.pop("failure", None)  # the report is worth printing although the input is bad
    for warning in report.get("warnings", []):
        _tell(warning)
    print(json.dumps(report, allow_nan=False) if as_json else printable(module.summary(report)))
    if failure:
        raise UserError(failure)


def parse(function: Callable[..., dict], verb: str, arguments: list[str]) -> tuple[Callable[[], dict], bool]:
    """Turn command line arguments into a call of `function`, and whether --json is among them.

    A function with a parameter `overrides` receives there the flags it does not know itself.
    """
    takes_overrides = "overrides" in inspect.signature(function).parameters
    if takes_overrides and {"-h", "--help"} & set(arguments):
        _help_with_overrides(function, verb, arguments)
    parsed: Any = parse_flags(_deferred(function), f"mutoscope {verb}", arguments, return_unknown_args=takes_overrides)
    (call, as_json), unknown = parsed if takes_overrides else (parsed, [])
    return (functools.partial(call, overrides=unknown) if takes_overrides else call), as_json


def _deferred(function: Callable[..., dict]) -> Callable[..., tuple[Callable[[], dict], bool]]:
    """The same signature with --json added; it returns the call instead of carrying it out."""
    import tyro

    def defer(*args: Any, json: bool = False, **kwargs: Any) -> tuple[Callable[[], dict], bool]:
        return functools.partial(function, *args, **kwargs), json

    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        annotation = parameter.annotation
        if is_dataclass(annotation):  # its fields are flags of their own
            annotation = Annotated[annotation, tyro.conf.arg(name="")]
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            optional = parameter.default is None
            metavar = f"[{parameter.name.upper()}]" if optional else parameter.name.upper()
            hint = "" if optional else None
            annotation = Annotated[annotation, tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)]
        elif parameter.default is None:  # the help text says what happens then
            metavar = str(typing.get_args(annotation)[0].__name__).upper()
            annotation = Annotated[annotation, tyro.conf.arg(metavar=metavar, help_behavior_hint="")]
        parameter = parameter.replace(annotation=annotation)
        if parameter.name != "overrides":
            parameters.append(parameter)
    helped = Annotated[bool, tyro.conf.arg(help="print the report as one JSON object")]
    parameters.append(inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=helped))
    described = inspect.unwrap(defer)  # tyro reads the innermost function where one is wrapped
    described.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    described.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    described.__doc__ = defer.__doc__ = function.__doc__
    return defer


def _help_with_overrides(function: Callable[..., dict], verb: str, arguments: list[str]) -> None:
    """Show the options that depend on the model or recipe beside those of the verb."""
    module = import_module(function.__module__)
    named = next((argument for argument in arguments if not argument.startswith("-")), None)
    if hasattr(module, "show_help"):
        print(module.show_help(named))
        raise SystemExit(0)
    with contextlib.suppress(SystemExit):
        parse_flags(_deferred(function), f"mutoscope {verb}", ["--help"])
    rest = [argument for argument in arguments if argument not in (named, "-h", "--help")]
    module.print_override_help(named, rest)
    raise SystemExit(0)


def _tell(warning: str) -> None:
    print(f"mutoscope: warning: {_one_line(warning)}", file=sys.stderr)


def _speaks() -> bool:
    """Under torchrun only the first process reports."""
    return os.environ.get("RANK", "0") == "0"


def _fail(message: str, status: int) -> int:
    """Prints the message, unless it is empty because another process prints it."""
    if message:
        print(f"mutoscope: {_one_line(message)}", file=sys.stderr)
    return status


def _one_line(message: str) -> str:
    return " ".join(shortened(printable(str(message))).split())


if __name__ == "__main__":
    sys.exit(main())

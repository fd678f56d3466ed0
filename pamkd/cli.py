"""The command line: `pamkd search | plan | evaluate | random | lookup | report | reproduce | sweep | export | replay | doctor`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence

from pamkd.version import __version__

Command = Callable[[list[str]], int]


def _search(argv: list[str]) -> int:
    from pamkd.distributed import is_main_process
    from pamkd.runs.config import SearchConfig
    from pamkd.runs.options import parse
    from pamkd.runs.search import default_out, search
    from pamkd.runs.search_presets import PRESETS

    config = default_out(parse(SearchConfig, argv, PRESETS, "pamkd search"))
    result = search(config)
    if not is_main_process():
        return 0
    print(f"retained learner {result.learner}: validation loss {result.valid_loss[result.learner]:.4f}, ", end="")
    print(f"accuracy {100 * result.valid_accuracy[result.learner]:.2f} %")
    print(result.genotype.describe())
    print(f"run folder: {config.out}  (next: pamkd evaluate --run {config.out}; pamkd report {config.out})")
    return 0


def _plan(argv: list[str]) -> int:
    from pamkd.runs.config import SearchConfig
    from pamkd.runs.options import parse
    from pamkd.runs.plan import plan
    from pamkd.runs.search_presets import PRESETS

    about = "Measure a few steps of a search with these options and tell what all of it would take; the status is 1 where it does not fit."
    made = plan(parse(SearchConfig, argv, PRESETS, "pamkd plan", about))
    print(made.text())
    if made.fits:
        return 0
    print(f"pamkd: {made.warning()}", file=sys.stderr)
    return 1


def _evaluate(argv: list[str]) -> int:
    from pamkd.runs.evaluate import evaluate
    from pamkd.runs.evaluate_config import EvaluateConfig
    from pamkd.runs.evaluate_presets import PRESETS, arguments
    from pamkd.runs.options import parse

    evaluate(parse(EvaluateConfig, arguments(argv), PRESETS, "pamkd evaluate"))
    return 0


def _random(argv: list[str]) -> int:
    import tyro

    from pamkd.runs.random_search import RandomConfig, run

    config, result = run(tyro.cli(RandomConfig, args=argv, prog="pamkd random"))
    print(f"best of {len(result.tried)}: validation error {100 * result.valid_error:.2f} %")
    print(result.genotype.describe())
    print(f"run folder: {config.out}  (next: pamkd evaluate --run {config.out})")
    return 0


def _lookup(argv: list[str]) -> int:
    import tyro

    from pamkd.runs.lookup import LookupConfig, lookup

    print(lookup(tyro.cli(LookupConfig, args=argv, prog="pamkd lookup")))
    return 0


def _report(argv: list[str]) -> int:
    import tyro

    from pamkd.report import ReportConfig, report

    print(f"report: {report(tyro.cli(ReportConfig, args=argv, prog='pamkd report'))}")
    return 0


def _export(argv: list[str]) -> int:
    import tyro

    from pamkd.runs.export import ExportConfig, export

    export(tyro.cli(ExportConfig, args=argv, prog="pamkd export"))
    return 0


def _reproduce(argv: list[str]) -> int:
    import tyro

    from pamkd.reproduce import ReproduceConfig, reproduce

    for path in reproduce(tyro.cli(ReproduceConfig, args=argv, prog="pamkd reproduce")):
        print(path)
    return 0


def _sweep(argv: list[str]) -> int:
    import tyro

    from pamkd.sweep import SweepConfig, sweep

    return 1 if sweep(tyro.cli(SweepConfig, args=argv, prog="pamkd sweep")) else 0


def _replay(argv: list[str]) -> int:
    import tyro

    from pamkd.runs.replay import ReplayConfig, replay

    text, diverged = replay(tyro.cli(ReplayConfig, args=argv, prog="pamkd replay"))
    print(text)
    return 0 if diverged else 1


def _doctor(argv: list[str]) -> int:
    import tyro

    from pamkd.doctor import DoctorConfig, doctor

    return doctor(tyro.cli(DoctorConfig, args=argv, prog="pamkd doctor"))


COMMANDS: dict[str, tuple[Command, str]] = {
    "search": (_search, "search an architecture with mutually teaching learners"),
    "plan": (_plan, "tell what a search would take of memory and time on this machine"),
    "evaluate": (_evaluate, "train a found or published architecture from scratch and test it"),
    "random": (_random, "draw architectures at random and keep the best: the honest baseline"),
    "lookup": (_lookup, "what a table knows of a NAS-Bench-201 cell"),
    "report": (_report, "write one HTML page about a run"),
    "reproduce": (_reproduce, "run what stands behind a table or figure of the paper"),
    "sweep": (_sweep, "run a grid of searches and evaluations, on SLURM or on this machine"),
    "export": (_export, "write weights, genotype and ONNX of an evaluated network"),
    "replay": (_replay, "take the step of a search again that diverged"),
    "doctor": (_doctor, "check every operation on every device of this machine"),
}

DISTRIBUTED = ("search", "evaluate")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; wrong input ends in one sentence on stderr and exit status 2, an interrupted run in 130 (under torchrun 0)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print("usage: pamkd COMMAND [--help | options]\n")
        print("\n".join(f"  {name:10} {text}" for name, (_, text) in COMMANDS.items()))
        return 0 if words else 2
    if words[0] == "--version":
        print(f"pamkd {__version__}")
        return 0
    if words[0] not in COMMANDS:
        print(f"pamkd: unknown command {words[0]!r}; commands are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if words[0] not in DISTRIBUTED and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        print(f"pamkd: {words[0]} runs in one process: start it without torchrun ({', '.join(DISTRIBUTED)} use it)", file=sys.stderr)
        return 2
    from pamkd.distributed import is_main_process
    from pamkd.runs.errors import USER_ERRORS, Interrupted
    from pamkd.trilevel.finite import Diverged

    try:
        return COMMANDS[words[0]][0](words[1:])
    except Interrupted as error:
        print(f"pamkd: {error}", file=sys.stderr)
        return 0 if "TORCHELASTIC_RUN_ID" in os.environ else 130  # torchrun would start again what ended with another status
    except KeyboardInterrupt:  # before a run listens to signals, or the second time
        print("pamkd: interrupted at once; a run in progress has what its last checkpoint has (--resume)", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # who read the output, such as head, has enough; Python would complain when it flushes the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except USER_ERRORS as error:
        if is_main_process() or not isinstance(error, Diverged):  # all processes say the same of a step that diverged
            print(f"pamkd: {error}", file=sys.stderr)
        return 2

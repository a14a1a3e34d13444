"""`verify`, and what it shares with `report`: reading a run, judging it, asking for consent."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainmem_audit.cli.common import (
    AtOption,
    AttestationsOption,
    DisclosuresOption,
    KeyOption,
    PassphraseFileOption,
    RevokedOption,
    RunArgument,
    TrustFileOption,
    say,
    signer_for,
)
from trainmem_audit.cli.estimates import ESTIMATES, print_checked_estimates
from trainmem_audit.errors import UsageError

if TYPE_CHECKING:
    from trainmem_audit.keys import Signer
    from trainmem_audit.rundir import RunReader
    from trainmem_audit.verify import Examination, Policy

FORMATS_SHOWN = "text|json|sarif|junit|github"

__all__ = [
    "FORMATS_SHOWN",
    "ParentOption",
    "SignerOption",
    "attestations_beside",
    "examine_run",
    "policy_for",
    "register",
    "replayer_for",
]

SignerOption = Annotated[
    str | None,
    typer.Option("--signer", metavar="SHA256:…|PRINCIPAL", help="Demand this signer, by fingerprint or by name."),
]


ParentOption = Annotated[
    Path | None,
    typer.Option("--parent", metavar="RUN", help="The record that this run was resumed from: check the link to it."),
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("verify", short_help="Check bytes, signature and record; with --replay, run it again.")(_verify)


def policy_for(
    trust_file: Path | None,
    signer: str | None,
    allow_untrusted: bool,
    allow_changed_source: bool = False,
    *,
    revoked: Path | None = None,
    at: str | None = None,
    threshold: int = 0,
    attestations: Sequence[Path] = (),
    disclosures: Path | None = None,
) -> Policy:
    """Return whom this machine accepts, and what came apart from the run."""
    from dataclasses import replace

    from trainmem_audit import keys, trust
    from trainmem_audit.attestations import MAX_BYTES
    from trainmem_audit.verify import Policy

    own = tuple(keys.own_keys())
    return Policy(
        trust=replace(trust.read_trust(trust_file), revoked=trust.read_revoked(revoked)),
        own_keyids=frozenset(key.keyid for key in own),
        own_keys=own,
        signer=signer,
        allow_untrusted=allow_untrusted,
        allow_changed_source=allow_changed_source,
        threshold=threshold,
        at=None if at is None else trust.parse_moment(at),
        attestations=tuple((path.name, _first_of(path, MAX_BYTES)) for path in attestations),
        disclosures=None if disclosures is None else (disclosures.name, _openings(disclosures)),
    )


def _openings(path: Path) -> bytes:
    from trainmem_audit.commitments import MAX_BYTES

    if not path.is_file():
        raise UsageError("no such file", where=f"--disclosures {path}")
    return _first_of(path, MAX_BYTES)


def _first_of(path: Path, most: int) -> bytes:
    """Return a file, or so much of it that whoever judges it sees that it is too long."""
    with path.open("rb") as file:
        return file.read(most + 1)


def attestations_beside(run: Path, more: Sequence[Path] | None) -> list[Path]:
    """Return the files of attestations that belong to a run and lie outside of it: beside a zip, and those named."""
    from trainmem_audit.attestations import beside

    place = beside(run)
    found = [place] if run.is_file() and run.name != "run.json" and place.is_file() and not place.is_symlink() else []
    for path in more or ():
        if not path.is_file():
            raise UsageError("no such file", where=f"--attestations {path}")
    return list(dict.fromkeys([*found, *(more or ())]))


def examine_run(
    reader: RunReader,
    policy: Policy,
    replayer: Any = None,
    watch: Any = None,
    indices: Any = None,
    parent: Path | None = None,
) -> Examination:
    """Verify a run (`verify.examine`), and the link to its parent where that is given (`parentage`)."""
    from trainmem_audit.verify import examine

    def ignore(_: Any) -> None:
        pass

    if parent is None:
        return examine(reader, policy, replayer, watch, indices or ignore)
    from trainmem_audit.parentage import Beginning, check_parent
    from trainmem_audit.rundir import open_run

    beginning = Beginning()

    def take(line: Any) -> None:
        beginning.take(line)
        (watch or ignore)(line)

    def add(chunk: bytes) -> None:
        beginning.indices(chunk)
        (indices or ignore)(chunk)

    with open_run(parent) as other:
        found = examine(reader, policy, replayer, take, add)
        check_parent(found, beginning, other, policy)
    return found


def _verify(
    run: RunArgument,
    replay: Annotated[
        str | None,
        typer.Option("--replay", metavar="full|prefix:N|segments:K", help="Run it again, and compare step by step."),
    ] = None,
    nonce: Annotated[
        str | None, typer.Option("--nonce", metavar="HEX", help="Draw the segments of that verdict again.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Agree to run the author's code.")] = False,
    parent: ParentOption = None,
    signer: SignerOption = None,
    trust_file: TrustFileOption = None,
    revoked: RevokedOption = None,
    at: AtOption = None,
    threshold: Annotated[
        int, typer.Option("--threshold", metavar="N", min=0, help="Demand N trusted people who signed or co-signed.")
    ] = 0,
    allow_untrusted: Annotated[
        bool, typer.Option("--allow-untrusted", help="Accept a valid signature of an unknown signer.")
    ] = False,
    attestations: AttestationsOption = None,
    disclosures: DisclosuresOption = None,
    attest: Annotated[
        bool, typer.Option("--attest", help="Sign what was found with your key, for others: run.intoto.jsonl.")
    ] = False,
    key: KeyOption = None,
    passphrase_file: PassphraseFileOption = None,
    source: Annotated[
        Path | None, typer.Option("--source", metavar="DIR", help="Replay the code in this directory.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option("--data", metavar="DIR", help="Where inputs of the run lie (repeatable).")
    ] = None,
    allow_changed_source: Annotated[
        bool, typer.Option("--allow-changed-source", help="Replay changed code or data, as a what-if.")
    ] = False,
    sizes: Annotated[
        bool, typer.Option("--sizes/--no-sizes", help="In a what-if, run both again to say how large it is.")
    ] = True,
    secrets: Annotated[
        Path | None,
        typer.Option(
            "--secrets",
            metavar="FILE",
            help="Values of redacted arguments, a line each: NAME=VALUE, NAME being `--token`, say, or `argument 3`.",
        ),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", min=0, help="When to give up the replay.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Also write what was found, as JSON.")
    ] = None,
    form: Annotated[str, typer.Option("--format", metavar=FORMATS_SHOWN, help="How to print it.")] = "text",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Verify a run: its bytes, its signature, its step log; with --replay, also whether it reproduces.

    RUN may be the estimates.json of a study: then every number in it is computed again from the study around it.

    Without --replay nothing of the author's is executed. With it the author's code runs with your rights, once you
    have agreed to the exact command.

    \b
    Exit code:
      0  passed
      1  findings, an invalid or unknown signature, or a mismatch
      2  the input or the command cannot be used, or nobody agreed to a replay
      3  undecided: the record is incomplete, or the replay inconclusive
    """
    from trainmem_audit.formats import VERIFICATION as FORMATS
    from trainmem_audit.rundir import open_run, write_atomic

    if form not in FORMATS:
        raise UsageError("unknown format", where="--format", expected=" or ".join(sorted(FORMATS)), got=form[:40])
    if save is not None and save.is_dir():
        raise UsageError("a directory, not a file", where=f"--save {save}", remedy="name the file to write")
    if run.name == ESTIMATES and run.is_file():
        policy = policy_for(trust_file, signer, allow_untrusted, revoked=revoked, at=at)
        raise typer.Exit(print_checked_estimates(run, policy, form, quiet))
    with open_run(run) as reader:
        options = {
            "source": source,
            "data": tuple(data or ()),
            "allow_changed_source": allow_changed_source,
            "sizes": sizes,
            "timeout": timeout,
        }
        if nonce is not None and replay is None:
            raise UsageError(
                "a nonce decides which segments are drawn", where="--nonce", expected="--replay segments:K"
            )
        replayer = None if replay is None else replayer_for(reader, replay, yes, quiet, secrets, options, nonce)
        policy = policy_for(
            trust_file,
            signer,
            allow_untrusted,
            allow_changed_source,
            revoked=revoked,
            at=at,
            threshold=threshold,
            attestations=attestations_beside(run, attestations),
            disclosures=disclosures,
        )
        reviewer = signer_for(Path.cwd(), key, passphrase_file) if attest else None
        found = examine_run(reader, policy, replayer, parent=parent)
        verification = found.verification
    typer.echo(FORMATS[form](verification))
    if form == "text" and verification.signature.state == "unknown-signer" and not allow_untrusted and signer is None:
        say(f"if the paper gives this fingerprint: --signer {verification.signature.keyid}")
    if save is not None:
        write_atomic(save, (FORMATS["json"](verification) + "\n").encode())
    if reviewer is not None:
        _attest(run, found, reviewer)
    raise typer.Exit(verification.exit_code)


def _attest(run: Path, found: Examination, reviewer: Signer) -> None:
    """Sign the verdict and write it where others' attestations lie; the author's own files stay as they are."""
    from trainmem_audit.attestations import append, beside, verdict

    own = found.signature.state == "self" or reviewer.public in (*found.run_keys, *found.attested.cosigners)
    if own:
        raise UsageError(
            "a key of yours signed or co-signed the run, and nobody is his own reviewer; nothing was attested",
            got=reviewer.public.keyid,
            remedy="let somebody else attest it, with a key that has nothing to do with the run",
        )
    place = beside(run)
    append(place, verdict(found.payload, found.verification, reviewer))
    say(f"signed this verdict with {reviewer.public.keyid}, and wrote it to {place}")


def replayer_for(
    reader: RunReader,
    mode: str,
    yes: bool,
    quiet: bool,
    secrets: Path | None,
    options: dict[str, Any],
    nonce: str | None = None,
) -> Any:
    """Return the function that replays; a missing torch is an error before anything is verified."""
    from importlib.util import find_spec

    from trainmem_audit.replaying import Draw, ReplayOptions, parse_mode
    from trainmem_audit.replaying import replay as run_replay

    secret = _secrets(secrets)
    wanted = parse_mode(mode, nonce)
    if find_spec("torch") is None:
        raise UsageError("a replay needs torch", remedy="pip install 'trainmem-audit[torch]'")
    for name in ("source", "data"):
        for folder in options[name] if name == "data" else (options[name],):
            if folder is not None and not folder.is_dir():
                raise UsageError("no such directory", where=f"--{name} {folder}")
    progress = _Progress(quiet)

    def run(statement: Any) -> Any:
        found = run_replay(
            reader,
            statement,
            ReplayOptions(
                consent=lambda command: _consent(command, yes),
                secret=secret,
                steps=wanted if isinstance(wanted, int) else None,
                segments=wanted if isinstance(wanted, Draw) else None,
                progress=progress.show,
                **options,
            ),
        )
        progress.done()
        return found

    return run


def _consent(command: str, yes: bool) -> bool:
    say(f"the replay runs the author's code with your rights: {command}")
    if yes:
        return True
    if not sys.stdin.isatty():
        return False
    return typer.confirm("Run it?", err=True)


def _secrets(path: Path | None) -> Callable[[str], str]:
    """Return what gives a redacted argument: a file, else whoever sits at the terminal, asked once for each.

    A file, since a command line is seen by every user of a machine, and a variable by the author's code.
    """
    given: dict[str, str] = {}
    if path is not None:
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError("the secrets cannot be read", where=f"--secrets {path}", got=str(error)[:200]) from None
        for number, line in enumerate(lines, start=1):
            name, mark, value = line.partition("=")
            if not mark and line.strip():
                raise UsageError("not a secret", where=f"{path}:{number}", expected="NAME=VALUE")
            given[name.strip()] = value

    def secret(label: str) -> str:
        if label not in given:
            given[label] = _ask_secret(label)
        return given[label]

    return secret


def _ask_secret(prefix: str) -> str:
    if not sys.stdin.isatty():
        raise UsageError(
            "an argument of the command was redacted, and nobody is here to be asked for it",
            where=prefix or "arguments",
            remedy=f"run the replay in a terminal, or pass --secrets FILE with the line {prefix}=VALUE",
        )
    value: str = typer.prompt(f"Value of the redacted argument {prefix}", hide_input=True, err=True)
    return value


class _Progress:
    """A line that counts matching steps, on a terminal only."""

    def __init__(self, quiet: bool) -> None:
        self._on = not quiet and sys.stderr.isatty()

    def show(self, steps: int) -> None:
        if self._on:
            typer.echo(f"\r{steps} steps match", nl=False, err=True)

    def done(self) -> None:
        if self._on:
            typer.echo("", err=True)

"""`keygen`, `trust` and `sign`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainmem_audit.cli.common import (
    KeyOption,
    PassphraseFileOption,
    RunArgument,
    passphrase_for,
    say,
    signer_for,
)
from trainmem_audit.errors import UsageError

if TYPE_CHECKING:
    from trainmem_audit.keys import PublicKey, Signer

__all__ = ["register"]

_trust = typer.Typer(
    help="Say whose keys you trust.\n\nThe list is a file in OpenSSH's allowed_signers form.",
    short_help="Say whose keys you trust.",
    no_args_is_help=True,
)
FileOption = Annotated[Path | None, typer.Option("--trust-file", metavar="FILE", help="The list. Default: your own.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("keygen", short_help="Make a signing key.")(_keygen)
    app.command("sign", short_help="Add a signature to a run.")(_sign)
    app.add_typer(_trust, name="trust")


def _keygen(
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", help="Where to write. Default: this project's key.")
    ] = None,
    passphrase: Annotated[bool, typer.Option("--passphrase", help="Ask for a passphrase.")] = False,
    passphrase_file: PassphraseFileOption = None,
) -> None:
    """Make an Ed25519 key in OpenSSH format, and print its fingerprint. Never overwrites."""
    from trainmem_audit import keys

    target = path or keys.project_key_path(Path.cwd())
    if not target.name:
        raise UsageError("no file name", where="PATH", got=str(target), expected="where to write the key")
    secret = keys.find_passphrase(passphrase_file, os.environ)
    if passphrase and secret is None:
        entered: str = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)
        secret = entered.encode()
    signer = keys.Signer.generate()
    target.parent.mkdir(parents=True, exist_ok=True)
    keys.write_key(target, signer, secret)
    say(f"wrote {target} and {target}.pub" + ("" if secret else " (no passphrase)"))
    typer.echo(signer.public.keyid)


def _sign(run: RunArgument, key: KeyOption = None, passphrase_file: PassphraseFileOption = None) -> None:
    """Add a signature of yours to a run that holds, beside it: the author's files stay as they are.

    For instance to link a name to an anonymous run once the review is over. Where the key that signed the run is still
    on this machine it signs too, which proves that both are yours; without it your signature says that you stand by the
    run, and no more.
    """
    from trainmem_audit.attestations import append, beside, cosign
    from trainmem_audit.cli.verify import attestations_beside, examine_run, policy_for
    from trainmem_audit.rundir import open_run

    with open_run(run) as reader:
        policy = policy_for(None, None, allow_untrusted=True, attestations=attestations_beside(run, None))
        found = examine_run(reader, policy)
    verification = found.verification
    if verification.exit_code == 1 or verification.bytes != "intact" or found.statement is None or not found.run_keys:
        raise UsageError("the run does not hold, so it is not signed", where=str(run), remedy="trainmem-audit verify")
    signer = signer_for(Path.cwd(), key, passphrase_file)
    if signer.public in found.run_keys:
        typer.echo(f"{run}: {signer.public.keyid} has signed it already")
        return
    original = _original(found.run_keys, passphrase_file)
    run_keyids = [public.keyid for public in found.run_keys]
    place = beside(run)
    append(place, cosign(found.payload, found.statement.predicate.run.id, run_keyids, signer, original, None))
    linked = "and by the run's own key" if original is not None else "not by the run's own key, which is not here"
    typer.echo(f"{place}: signed by {signer.public.keyid}, {linked}")


def _original(run_keys: Sequence[PublicKey], passphrase_file: Path | None) -> Signer | None:
    """Return the key that signed the run, unlocked, if this machine holds it."""
    from trainmem_audit.keys import Signer, own_keys

    for public, path in own_keys().items():
        if public in run_keys and path.is_file():
            return Signer.load(path, passphrase_for(path, passphrase_file))
    return None


@_trust.command("add")
def _trust_add(
    principal: Annotated[str, typer.Argument(help="Who: an address, or any label (submission-4711).")],
    key: Annotated[Path, typer.Argument(help="The public key: a .pub file, or a run's signer.pub.")],
    trust_file: FileOption = None,
) -> None:
    """Trust a key as somebody's."""
    from trainmem_audit import trust
    from trainmem_audit.keys import MAX_SIGNERS, PublicKey

    if not key.is_file():
        raise UsageError("no such key file", where=str(key))
    with key.open("rb") as file:
        lines = file.read(2**16).splitlines()
    if not 1 <= len(lines) <= MAX_SIGNERS:
        raise UsageError("not a file of public keys", where=str(key), expected=f"1 to {MAX_SIGNERS} lines")
    for public in [PublicKey.from_openssh(line, f"{key}:{n}") for n, line in enumerate(lines, 1)]:
        new = trust.add_signer(trust_file or trust.trust_path(), principal, public)
        typer.echo(f"{principal} {public.keyid}" + ("" if new else " (was trusted already)"))


@_trust.command("revoke")
def _trust_revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A fingerprint, or a file with the public key.")],
    revoked: Annotated[
        Path | None, typer.Option("--revoked", metavar="FILE", help="The list of revoked keys. Default: your own.")
    ] = None,
) -> None:
    """Never again accept a key, whoever vouches for it: it was lost, or stolen."""
    from trainmem_audit import trust
    from trainmem_audit.keys import PublicKey, is_keyid

    keyid = key if is_keyid(key) else None
    if keyid is None:
        if not Path(key).is_file():
            raise UsageError("neither a fingerprint nor a file", got=key, expected="SHA256:… or a .pub file")
        with Path(key).open("rb") as file:
            keyid = PublicKey.from_openssh(file.readline(2**16), key).keyid
    new = trust.revoke(revoked or trust.revoked_path(), keyid)
    typer.echo(f"revoked {keyid}" + ("" if new else " (it was already)"))


@_trust.command("list")
def _trust_list(trust_file: FileOption = None) -> None:
    """List whom you trust."""
    from trainmem_audit import trust
    from trainmem_audit.text import safe_text

    if trust_file is None and not trust.trust_path().exists():
        say("you trust nobody yet; add somebody with: trainmem-audit trust add PRINCIPAL KEY.pub")
    for entry in trust.read_trust(trust_file).entries:
        if entry.key is not None:
            typer.echo(f"{safe_text(','.join(entry.principals))} {entry.key.keyid}")


@_trust.command("remove")
def _trust_remove(
    who: Annotated[str, typer.Argument(help="A principal or a fingerprint.")], trust_file: FileOption = None
) -> None:
    """Trust somebody, or a key, no longer."""
    from trainmem_audit import trust

    count = trust.remove_signer(trust_file or trust.trust_path(), who)
    if count == 0:
        raise UsageError("nobody of that name is trusted", where=who)
    typer.echo(f"removed {count}")

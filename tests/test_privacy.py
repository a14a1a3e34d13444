"""What is kept out of a record: secrets by name and by shape, places, and who runs it where."""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainmem_audit import privacy
from trainmem_audit.documents.steplog import Argument
from trainmem_audit.privacy import (
    REDACTED,
    SECRET_FLAG,
    find_identity,
    find_secrets,
    last_line,
    public_name,
    public_text,
    redact_argv,
    without,
)
from trainmem_audit.recording.facts import environment as recorded_environment
from trainmem_audit.recording.places import Places
from trainmem_audit.sources.base import plain_value
from trainmem_audit.sources.modules import ModuleSource
from trainmem_audit.sources.optimizers import OptimizerSource

CWD = Path("/project/dir")
NAMES = ("/home/quentin", "quentin", "workhorse")


def shape(*parts: str) -> str:
    """Put a token together here, so that no scanner finds one in this file."""
    return "".join(parts)


def b64(value: dict[str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


TOKENS = {
    "GitHub token": [shape("gh", "p_", "a1B2" * 9), shape("github", "_pat_", "1A" * 11, "_", "b2" * 29)],
    "GitLab token": [shape("gl", "pat-", "aB3_" * 5)],
    "Hugging Face token": [shape("h", "f_", "aBcDe" * 7)],
    "OpenAI or Anthropic key": [shape("s", "k-", "aB3d" * 12), shape("s", "k-proj-", "a1_-" * 10)],
    "AWS key": [shape("AK", "IA", "ABCDEFGH12345678")],
    "Slack token": [shape("xo", "xb-", "123456789012-abcdef")],
    "Slack web hook": [shape("https://hooks.", "slack.com/services/", "T0/B0/" + "a" * 24)],
    "Google key": [shape("AI", "za", "a1_-b" * 7)],
    "package registry token": [shape("py", "pi-", "Ag" * 30), shape("n", "pm_", "a1" * 18)],
    "Stripe key": [shape("sk", "_live_", "a1" * 12)],
    "JSON web token": [f"{b64({'alg': 'HS256'})}.{b64({'sub': '1234567890'})}.abc"],
    "private key": [
        shape("-----BEGIN ", "OPENSSH PRIVATE KEY", "-----"),
        shape("-----BEGIN ", "PRIVATE KEY-----"),
    ],
    "credentials in a URL": [
        shape("https://me:", "hunter2@example.org/x"),
        shape("https://", "a1" * 20, "@host/x.git"),
    ],
    "bearer token": [shape("Authorization: Bea", "rer abc123def456ghi789")],
    "assigned secret": [
        shape('API_KEY = "', "abcdef0123456789", '"'),
        shape("password: '", "longpassword1234", "'"),
    ],
}
TOKENS["assigned secret"] += [
    shape('os.environ["WANDB_API_KEY"] = "', "0123456789abcdef" * 2, '"'),
    shape('os.environ.setdefault("COMET_API_KEY", "', "a8Fk2Lq9Zx7Cv3Bn", '")'),
    shape('parser.add_argument("--api-key", default="', "a8Fk2Lq9Zx7Cv3Bn", '")'),
    shape('hf_token: str = "', "a8Fk2Lq9Zx7Cv3Bn", '"'),
    shape('"client_secret": "', "a8Fk2Lq9Zx7Cv3Bn", '"'),
    shape("secret='", "wJa1rXUtn2EM3/K7MD4NG", "'"),
    shape('api_key=\\"', "a8Fk2Lq9Zx7Cv3Bn", '\\"'),
]
TOKENS |= {
    "basic authorization": [shape("Authorization: Ba", "sic dXNlcjpwYXNzd29yZA==")],
    "secret key file": [shape("AGE-SECRET-", "KEY-1", "Q2" * 29), shape("PuTTY-User-Key-", "File-3: ")],
    "cloud storage key": [shape("Account", "Key=", "abcdEFGH1234" * 3, "==")],
    "netrc password": [shape("machine api.example ", "login me password ", "hunter2")],
    "service token": [
        shape("dckr", "_pat_", "aB3_" * 6),
        shape("da", "pi", "0123456789abcdef" * 2),
        shape("hv", "s.", "aB3_" * 8),
        shape("S", "G.", "aB3_" * 5, ".", "aB3-" * 10),
        shape("wandb", "_v1_", "aB3_" * 10),
        shape("r", "8_", "aB3" * 12, "a"),
        shape("KG", "AT_", "0123456789abcdef" * 2),
    ],
}
HARMLESS = [
    'tokenizer = "EleutherAI/gpt-neox-20b"',
    'token = "your_token_here_12345678"',
    "secret_key = config.secret_key_of_the_thing2",
    'cls_token="[unused12345678901]"',
    'tokens_path = "data/tokens_v2_64k.bin"',
    'publicKeyToken="1fc8b3b9a1e18e3b"',
    'api_key = os.environ["MY_SERVICE_API_KEY_2"]',
    'parser.add_argument("--token-file", default="/run/secrets/token1")',
    '("CU_POINTER_ATTRIBUTE_P2P_TOKENS", "HIP_POINTER_ATTRIBUTE_P2P_TOKENS")',
    'sort_key="a8Fk2Lq9Zx7Cv3Bn"',
    "machine learning: login with your password on the page",
    "ssh://git@host.example/owner/repo.git",
    "https://example.org:8080/path?x=1",
    "task-oriented-learning-with-3-heads-and-more",
    "sk-learn-compatible-estimators-here",
    "tokenizer = 'bert-base-uncased'",
    'pad_token = "<|endoftext|>"',
    "0123456789abcdef" * 4,
    "hf_hub_download",
    "secret_sharing(n=3)",
    'token="x"',
    base64.b64encode(bytes(range(256)) * 20).decode(),
]


@pytest.mark.parametrize(("kind", "token"), [(kind, token) for kind, all_ in TOKENS.items() for token in all_])
def test_a_token_is_found_by_its_shape_wherever_it_stands(kind: str, token: str) -> None:
    for before, after in (("", ""), ("x = '", "'"), ("# see ", " there"), ('{"a":"', '"}')):
        text = before + token + after
        found = find_secrets(text)
        assert [k for k, _, _ in found] == [kind]
        _, start, end = found[0]
        assert text[start:end] in token


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_is_not_found(text: str) -> None:
    assert find_secrets(text) == []


@pytest.mark.parametrize(
    "line",
    [
        "export WANDB_API_KEY=" + "0123456789abcdef" * 2,
        "    AWS_SECRET_ACCESS_KEY: wJalrXUtn2EMI/K7MDENG/bPxRfiCY",
        "+export API_TOKEN=a8Fk2Lq9Zx7Cv3Bna8Fk2Lq9Zx7Cv3Bn  # mine"[1:],
        "-password = a8Fk2Lq9Zx7Cv3Bna8Fk2",
        "# api_key = a8Fk2Lq9Zx7Cv3Bna8Fk2;",
    ],
)
def test_a_secret_in_a_line_of_settings_or_of_a_diff_is_found(line: str) -> None:
    for text in (line, f"one\n{line}\ntwo", f"{line}\r\n"):
        assert [kind for kind, _, _ in find_secrets(text)] == ["assigned secret"]


def test_ordinary_code_holds_no_secret() -> None:
    """All of torch's own Python, the scripts of the tests and the examples."""
    root = Path(__file__).resolve().parent
    corpora = (Path(torch.__file__).parent, root / "scripts", root / "zoo", root.parent / "examples")
    files = [path for corpus in corpora for path in corpus.rglob("*.py")]
    assert len(files) > 1000
    found = {path.name: find_secrets(path.read_text("utf-8", "replace")) for path in files}
    assert not {name: hits for name, hits in found.items() if hits}


@pytest.mark.parametrize("token", [token for all_ in TOKENS.values() for token in all_])
def test_a_token_in_argv_never_gets_out(token: str) -> None:
    for argv in ([token], ["--x", token], [f"--x={token}"], [f"model.x={token}"], [f"[a,{token}]"]):
        assert token not in str(redact_argv(argv, CWD, NAMES))


@pytest.mark.parametrize("name", ["token", "hf-token", "api_key", "apikey", "API-KEY", "secret", "password", "passwd"])
@pytest.mark.parametrize("more", ["", "-file", "_2"])
def test_a_value_after_a_secret_name_is_redacted(name: str, more: str) -> None:
    flag = f"--{name}{more}"
    hidden = Argument(redacted=True)
    assert redact_argv([flag, "canary"], CWD, NAMES) == (Argument(text=flag), hidden)
    assert redact_argv([flag, "-canary"], CWD, NAMES) == (Argument(text=flag), hidden)
    assert redact_argv([f"{flag}=canary"], CWD, NAMES) == (Argument(prefix=f"{flag}=", redacted=True),)
    hydra = f"+trainer.{name}{more}"
    assert redact_argv([f"{hydra}=canary"], CWD, NAMES) == (Argument(prefix=f"{hydra}=", redacted=True),)
    assert redact_argv([f"-{name}", "canary"], CWD, NAMES)[1] == hidden
    assert "canary" not in str(redact_argv(["--set", f'{{"{name}": "canary"}}'], CWD, NAMES))
    assert "canary" not in str(redact_argv(["--set", f"a=1,{name}=canary"], CWD, NAMES))
    assert "canary" not in str(redact_argv([f"https://host/?{name}=canary"], CWD, NAMES))


@pytest.mark.parametrize(
    "argv",
    [
        ["--tokenizer", "bert-base"],
        ["--tokeniser=bert-base"],
        ["--max-tokens", "512"],
        ["max_tokens=1e6"],
        ["num_tokens=100M"],
        ["--lr", "0.1", "-v", "--flag", "x=1", "data/train.csv", "./conf.yaml", "https://example.org/a/b"],
        ["--betas", "[0.9,0.999]", "a/b/c", "1/2", "*.py", "--schedule=cosine,warmup:10"],
        ["--log=/dev/null", "-", "--", "", "~", "/", "../.."],
        ["--aug", "flip/crop", "quentinian", "--name=workhorses"],
    ],
)
def test_ordinary_arguments_stay(argv: list[str]) -> None:
    assert redact_argv(argv, CWD, NAMES) == tuple(Argument(text=text) for text in argv)


def test_a_flag_after_a_secret_flag_is_a_flag() -> None:
    arguments = redact_argv(["--use-auth", "--lr", "0.1"], CWD, NAMES)
    assert [argument.text for argument in arguments] == ["--use-auth", "--lr", "0.1"]


def test_a_count_under_a_plain_secret_name_is_redacted() -> None:
    assert redact_argv(["--token", "123456"], CWD, NAMES)[1].redacted
    assert redact_argv(["password=123456"], CWD, NAMES)[0].redacted
    assert redact_argv(["--tokens", "abc123"], CWD, NAMES)[1].redacted


@pytest.mark.parametrize(
    ("text", "prefix", "path"),
    [
        ("/project/dir/conf/a.yaml", "", "{cwd}/conf/a.yaml"),
        ("--config=/project/dir/a.yaml", "--config=", "{cwd}/a.yaml"),
        ("/project/dir", "", "{cwd}"),
        ("/project/dir/", "", "{cwd}"),
        ("../dir/a.yaml", "", "{cwd}/a.yaml"),
        ("sub/../a.yaml", "", "{cwd}/a.yaml"),
        ("/project/directory/a.yaml", "", "a.yaml"),
        ("--data=/scratch/group7/cifar", "--data=", "cifar"),
        ("data.root=/scratch/group7/cifar/", "data.root=", "cifar"),
        ("-I/opt/group7/include", "-I", "include"),
        ("~/sets/cifar", "", "cifar"),
        ("~other/sets/cifar", "", "cifar"),
        ("../../elsewhere/a.yaml", "", "a.yaml"),
        ("--x=a/../../../b.yaml", "--x=", "b.yaml"),
        ("file:///scratch/group7/x.csv", "file://", "x.csv"),
        ("--u=file:///scratch/group7/x.csv", "--u=file://", "x.csv"),
        ("C:\\group7\\sets\\cifar", "", "cifar"),
        ("\\\\server\\share\\cifar", "", "cifar"),
        ("/home/quentin/sets/cifar", "", "cifar"),
        ("/scratch/a:/scratch/b", "", "b"),
    ],
)
def test_a_place_elsewhere_keeps_its_base_name_only(text: str, prefix: str, path: str) -> None:
    assert redact_argv([text], CWD, NAMES) == (Argument(prefix=prefix, path=path),)


@pytest.mark.parametrize(
    "text",
    [
        "quentin",
        "--run=Quentin's",
        "by-quentin",
        "--host=workhorse.example.org",
        "/home/quentin",
        "/scratch/quentin",
        "/project/dir/quentin.yaml",
        "[root=/scratch/group7/x,lr=3]",
        "x,/scratch/group7/y",
        "--quentin=3",
        "caf\udce9",
    ],
)
def test_what_tells_who_or_where_is_redacted(text: str) -> None:
    (argument,) = redact_argv([text], CWD, NAMES)
    assert argument.redacted
    assert argument.text is None
    assert argument.path is None
    assert not find_identity(argument.prefix, NAMES)


def test_a_linked_working_directory_is_still_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for text in (tmp_path / "link" / "a.txt", tmp_path / "real" / "a.txt"):
        assert redact_argv([str(text)], tmp_path / "link", ()) == (Argument(path="{cwd}/a.txt"),)


def test_the_root_as_working_directory_hides_nothing() -> None:
    assert redact_argv(["/scratch/group7/x"], Path("/"), ()) == (Argument(path="x"),)


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40), max_size=5))
def test_each_argument_has_exactly_one_form_and_is_canonical(argv: list[str]) -> None:
    arguments = redact_argv(argv, CWD, NAMES)
    assert len(arguments) == len(argv)
    for given_text, argument in zip(argv, arguments, strict=True):
        assert sum(form is not None for form in (argument.text, argument.path, argument.redacted)) == 1
        if argument.text is not None:
            assert argument.prefix + argument.text == given_text
        json.dumps(argument.to_json(), ensure_ascii=False).encode()


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=12, max_size=20))
def test_nothing_after_a_secret_name_survives(value: str) -> None:
    for argv in (["--token", value], [f"--token={value}"], [f"a.token={value}"]):
        assert value not in repr(redact_argv(argv, CWD, ()))


def test_names_of_secret_flags() -> None:
    for name in ("--hf_token", "WANDB_API_KEY", "client-secret", "oauth", "credentials", "passphrase"):
        assert SECRET_FLAG.search(name)
    for name in ("--tokenizer", "--lr", "--pass-through", "tokenization"):
        assert not SECRET_FLAG.search(name)


def identity_of(tmp_path: Path, **environ: str) -> set[str]:
    """Ask a fresh process, whose environment is only what is given."""
    program = "import json, trainmem_audit.privacy as p; print(json.dumps(p.identity()))"
    root = Path(__file__).resolve().parent.parent
    path = os.environ["PATH"]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": path, "PYTHONPATH": str(root), **environ},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout))


def test_identity_is_home_user_host_and_git_person(tmp_path: Path) -> None:
    home = tmp_path / "quentin"
    (home / ".config" / "git").mkdir(parents=True)
    (home / ".gitconfig").write_text(
        '[core]\n\teditor = vi\n[user]\n\tname = "Quentin Q" # me\n\temail = q@home.example\n'
    )
    (home / ".config" / "git" / "config").write_text("[User] name = Xavier Y\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("[user]\nEmail=q@project.example\n[remote]\nname = upstream\n")
    found = identity_of(
        tmp_path,
        HOME=str(home),
        USER="quentin",
        HOSTNAME="workhorse.lab.example",
        GIT_AUTHOR_EMAIL="q@env.example",
    )
    expected = {str(home), "quentin", "workhorse", "workhorse.lab.example", "Quentin Q", "Xavier Y"}
    assert found >= expected | {"q@home.example", "q@project.example", "q@env.example"}
    assert not found & {"vi", "upstream", "root", "localhost"}


def test_generic_and_short_names_are_no_identity(tmp_path: Path) -> None:
    found = identity_of(tmp_path, HOME="/root", USER="root", LOGNAME="abc", HOSTNAME="localhost")
    assert not found & {"root", "/root", "abc", "localhost"}
    assert "/home/ubuntu" not in identity_of(tmp_path, HOME="/home/ubuntu")
    assert "/srv/group7/home" in identity_of(tmp_path, HOME="/srv/group7/home")


def test_identity_is_found_as_a_word() -> None:
    found = find_identity("QUENTIN at workhorse7, /home/quentin/x; quentinian", NAMES)
    assert [(start, end) for _, start, end in found] == [(0, 7), (23, 36)]
    assert find_identity("anything", ()) == []


@pytest.mark.parametrize(
    ("printed", "whole", "shown"),
    [
        (b"one\ntwo\n\n", True, "two"),
        (b"cut in two: hunter2\nlast", False, "last"),
        (b"cut in two: hunter2", False, ""),
        (b"\x1b[31mhun\x1b[0mter2\x1b]0;title\x07 is wrong\r\n", True, "{redacted} is wrong"),
        (b"No such file: '/scratch/group 7/my set/a.csv'", True, "No such file: '…/a.csv'"),
        (b"open /scratch/group 7/my set/a.csv: no", True, "open …/a.csv: no"),
        (b"x" * 290 + b" hunter2 and hunter2", True, "x" * 290 + " {redacted}…"[:10] + "…"),
    ],
)
def test_the_last_line_of_a_program(printed: bytes, whole: bool, shown: str) -> None:
    assert last_line(printed, whole, ["hunter2"]) == shown


@pytest.mark.parametrize("secret", ["it's \\a secret", 'say "x" &\n', "ünïcode/slash", "abc", "7"])
def test_a_secret_is_taken_out_however_it_is_spelt(secret: str) -> None:
    for text in (secret, repr(secret), json.dumps(secret), shlex.quote(secret), quote(secret, safe="")):
        assert without(f"<{text}>", [secret]) in ("<{redacted}>", "<'{redacted}'>", '<"{redacted}">')
    assert without("step 17 of abcd", ["7", "abc", "", " "]) == "step 17 of abcd"


@pytest.mark.parametrize(
    "flag",
    ["--pass", "--pwd", "--db_pass", "--private_key", "--access_key_id", "--wandb-key", "--key", "-key", "--bearer",
     "--pat", "--cookie", "--sshKey", "--OPENAI_KEY"],
)  # fmt: skip
def test_more_names_of_secrets(flag: str) -> None:
    for argv in ([flag, "canary"], [f"{flag}=canary"]):
        assert "canary" not in str(redact_argv(argv, CWD, NAMES))


@pytest.mark.parametrize(
    "text",
    ["--author=Smith", "--pass-through=a", "--patience=ten", "--sort-key=size", "--key-dim=a", "--keyframes=a",
     "--path=a", "--bypass=no", "--monkey=a", "{dir}/a/b", "${now:%Y}/a/b", "--pattern=*.py",
     "--image_key=jpg", "--passes=two", "--pass=2", "--key=0", "--token-dim=16"],
)  # fmt: skip
def test_names_that_only_resemble_those_of_secrets(text: str) -> None:
    assert redact_argv([text], CWD, NAMES) == (Argument(text=text),)


def test_a_user_and_a_password_are_both_redacted() -> None:
    hidden = Argument(redacted=True)
    assert redact_argv(["--auth", "user", "canary", "x"], CWD, NAMES)[1:] == (hidden, hidden, Argument(text="x"))
    assert redact_argv(["--auth", "user", "--lr", "1"], CWD, NAMES)[1:] == (
        hidden, Argument(text="--lr"), Argument(text="1"))  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["https://x.blob.example/c?sv=1&sig=canary%2Babcdef", "s3://b?X-Amz-Signature=canary0123456789", "x}/mnt/canary/b"],
)
def test_signed_urls_and_paths_behind_a_brace_are_redacted(text: str) -> None:
    assert redact_argv([text], CWD, NAMES)[0].redacted
    assert public_text(text) == REDACTED


@pytest.mark.parametrize("text", ["file:///srv/canary/a", "FILE://srv/a", "../../canary/x", "x=../canary/y", "/srv/a"])
def test_a_place_in_a_plain_value_is_redacted(text: str) -> None:
    assert public_text(text) == REDACTED


@pytest.mark.parametrize("text", ["..", "../..", "a..b", "1/2", "./conf.yaml", "wait...", "x/../y"])
def test_what_is_no_place_in_a_plain_value_stays(text: str) -> None:
    assert public_text(text) == text


def test_names_of_tensors_are_public_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    mail = "quentin@" + "x.example"
    monkeypatch.setattr(privacy, "known_identity", lambda: ("quentin", mail))
    public_text.cache_clear()
    assert public_name("layers.0.self_attn.q_proj.weight") == "layers.0.self_attn.q_proj.weight"
    assert public_name("heads.quentin.weight") == "heads.{redacted}.weight"
    assert public_name(f"heads.{mail}.weight") == REDACTED
    assert public_name("sets./srv/my.data/a") == REDACTED
    assert public_name(f"keys.{TOKENS['JSON web token'][0]}") == REDACTED
    public_text.cache_clear()


def test_a_text_under_the_name_of_a_secret_is_no_plain_value() -> None:
    group = {
        "api_key": "canary",
        "password": ["a"],
        "author": "Smith",
        "auth_temperature": 0.5,
        "max_tokens": 7,
        "token_mixer": "pool",
    }
    assert plain_value(group | {"inner": {"wandb_key": "canary"}}) == {
        "api_key": REDACTED, "password": ["a"], "author": "Smith", "auth_temperature": "0x1.0000000000000p-1",
        "max_tokens": 7, "token_mixer": "pool", "inner": {"wandb_key": REDACTED},
    }  # fmt: skip


def test_a_variable_that_is_asked_for_is_still_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MY_TOKEN", "canary"), ("MY_DATA", "/srv/canary"), ("MY_MODE", "fast")):
        monkeypatch.setenv(name, value)
    found = recorded_environment(Places(CWD, CWD), ("MY_TOKEN", "MY_DATA", "MY_MODE", "MY_NONE"))["variables"]
    assert {name: value for name, value in found.items() if name.startswith("MY_")} == {
        "MY_TOKEN": REDACTED, "MY_DATA": REDACTED, "MY_MODE": "fast"}  # fmt: skip


class Named(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleDict({"/srv/canary/set": torch.nn.Linear(1, 1), "plain": torch.nn.BatchNorm1d(1)})


def test_no_name_of_a_component_or_tensor_tells_where(tmp_path: Path) -> None:
    model = Named()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[next(model.heads["plain"].parameters())] = {"/srv/canary/slot": {"/srv/canary/key": torch.ones(1)}}
    modules = ModuleSource("model", model)
    source = OptimizerSource("optimizer", optimizer, modules.names().get)
    found = [*modules.components(), *source.components()]
    assert "canary" not in str([(c.name, [name for name, _ in c.tensors or ()], c.values) for c in found])
    assert "heads.plain.running_mean" in str([[name for name, _ in c.tensors or ()] for c in found])

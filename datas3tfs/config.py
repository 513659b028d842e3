"""Settings: the only reader of the environment.

Precedence: flags (given as overrides), `DATAS3TFS_*` variables, the TOML file, defaults. cli/ and app/
read a `Settings` and pass plain values down; nothing below them imports this module. What is secret is
a SecretStr: it shows in no repr, and `.get_secret_value()` marks each place that hands it on. Files that
hold secrets must be private to their owner. Plain values and small files: no concurrency rule.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import shlex
import stat
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from datas3tfs.core.names import printable
from datas3tfs.core.sizes import parse_size
from datas3tfs.errors import Invalid

_ENV_PREFIX = "DATAS3TFS_"
_PRIVATE_FILE_LIMIT = 1024 * 1024  # bytes; a settings or key file is a few hundred
_DSN = re.compile(r"postgres(ql)?://\S+\Z")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]*):[0-9]{1,5}\Z")
_SERVER = re.compile(r"https?://[^\s/@?#]+/?\Z")


def _size(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_size(value)
    except Invalid as exc:
        raise ValueError(str(exc)) from exc


def _absolute(value: object) -> object:
    if isinstance(value, str | Path) and str(value):
        return Path(value).expanduser().absolute()
    raise ValueError("not a path")


def _words(value: object) -> object:
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


Size = Annotated[int, BeforeValidator(_size), Field(gt=0)]
AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]  # as a variable: with commas between


class Settings(BaseSettings):
    """Everything a user can set, frozen. Make one with `load`."""

    model_config = SettingsConfigDict(
        env_prefix=_ENV_PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        validate_default=True,
    )

    config: AbsolutePath | None = None  # the TOML file; itself only a flag or a variable
    db_url: SecretStr | None = None  # postgresql://user:password@host:port/database
    encryption_key: SecretStr | None = None  # base64; seals the buckets' credentials in Postgres
    encryption_key_file: AbsolutePath | None = None
    s3_endpoint: str | None = None  # this and the next four: defaults of `bucket add`
    s3_bucket: str | None = None
    s3_access_key: SecretStr | None = None
    s3_secret_key: SecretStr | None = None
    s3_region: str = "us-east-1"
    cache_dir: AbsolutePath = Field(default_factory=lambda: _xdg("XDG_CACHE_HOME", ".cache"))
    cache_size: Size = 10 * 2**30  # bytes on disk
    journal_dir: AbsolutePath | None = None  # of a mount; None: one for each mount point, see journals_dir
    journal_size: Size = 10 * 2**30  # bytes on disk that may wait to be committed
    batch_bytes: Size = 64 * 2**20  # a batch is committed when it has so many bytes …
    batch_age: float = Field(default=5.0, ge=0, le=86_400)  # … or its oldest file was closed so long ago
    fsync: Literal["commit", "journal"] = "commit"  # what fsync waits for
    memory_budget: Size = 256 * 2**20  # bytes of read-ahead and blocks in memory
    runtime_dir: AbsolutePath | None = None  # where mounts have pipes for other programs; None: see pipes_dir
    io_timeout: float = Field(default=30.0, gt=0, le=86_400)  # seconds until a read gives EIO
    url_life: int = Field(
        default=24 * 3600, ge=60, le=7 * 24 * 3600
    )  # seconds a presigned URL is valid; S3's limit
    addr: str = "127.0.0.1:8765"  # of `serve`: where it listens …
    tls_cert: AbsolutePath | None = None  # … its certificate chain and key (PEM files); None: plain HTTP
    tls_key: AbsolutePath | None = None
    auth: Literal["auto", "token", "none"] = "auto"  # who may use it; auto: see docs/OPERATIONS.md
    allow_endpoints: Words = ()  # S3 endpoints that may be registered over HTTP: host, host:port or "*"
    server_url: str | None = None  # the `serve` that commands and clients use, instead of a database
    server_token: SecretStr | None = None  # what they show there
    server_ca_file: AbsolutePath | None = None  # whose certificate they believe it (PEM); None: the system's
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("db_url")
    @classmethod
    def _is_a_database(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _DSN.match(value.get_secret_value()):
            raise ValueError("not of the form postgresql://user:password@host:port/database")
        return value

    @field_validator("addr")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if not _ADDRESS.match(value) or int(value.rpartition(":")[2]) > 65_535:
            raise ValueError("not of the form host:port, [IPv6 address]:port or :port")
        return value

    @field_validator("server_url")
    @classmethod
    def _is_a_server(cls, value: str | None) -> str | None:
        if value is not None and not _SERVER.match(value):
            raise ValueError("not of the form http://host:port or https://host:port")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Name the sources, strongest first. No .env: the current directory must not decide."""
        return init_settings, env_settings, _TomlFile(settings_cls)

    def listen_at(self) -> tuple[str, int]:
        """Return host (without brackets; all IPv4 addresses if none is given) and port of `addr`."""
        host, _, port = self.addr.rpartition(":")
        return host.strip("[]") or "0.0.0.0", int(port)

    def pipes_dir(self) -> Path:
        """Return `runtime_dir`, or what is usual: root's is one that others can get to."""
        if self.runtime_dir is not None:
            return self.runtime_dir
        if os.geteuid() == 0:
            return Path("/run/datas3tfs")
        is_set = Path(os.environ.get("XDG_RUNTIME_DIR", "")).is_absolute()
        return _xdg("XDG_RUNTIME_DIR", "") if is_set else self.cache_dir / "run"

    def require_db_url(self) -> str:
        """Return the database's URL, password included. Raises Invalid if none is set."""
        if self.db_url is None:
            raise Invalid(_missing("database", "--db-url", "db_url"))
        return self.db_url.get_secret_value()

    def require_encryption_key(self) -> str:
        """Return the encryption key in base64. Raises Invalid if none is set or its file is not fit."""
        if self.encryption_key is not None:
            return _checked_key(self.encryption_key.get_secret_value(), "encryption_key")
        if self.encryption_key_file is not None:
            text = read_private(self.encryption_key_file).decode("utf-8", "replace")
            return _checked_key(text.strip(), printable(str(self.encryption_key_file)))
        raise Invalid(_missing("encryption key", "`datas3tfs keygen`", "encryption_key_file"))


def load(**overrides: object) -> Settings:
    """Return the settings; overrides that are None do not count. Raises Invalid, without the values."""
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        settings = Settings(**cast(dict[str, Any], given))
    except ValidationError as exc:
        # from None: nothing of what was given, perhaps a secret, may travel with the error.
        raise Invalid(_first_problem(exc)) from None
    if settings.encryption_key is not None and settings.encryption_key_file is not None:
        raise Invalid("encryption_key and encryption_key_file are both set: keep one")
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise Invalid("tls_cert and tls_key: one needs the other")
    return settings


def default_local_dir() -> Path:
    """Return where `datas3tfs local` keeps its data unless told otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/datas3tfs/local")
    return _xdg("XDG_DATA_HOME", ".local/share") / "local"


def journals_dir() -> Path:
    """Return where mounts keep their journals unless told otherwise, each in a directory of its own."""
    return _xdg("XDG_STATE_HOME", ".local/state") / "journals"


def ledgers_dir() -> Path:
    """Return where commands note what they upload while it is under way, by server or installation."""
    return _xdg("XDG_STATE_HOME", ".local/state") / "uploads"


def child_environment() -> dict[str, str]:
    """Return the few variables a child process needs; none of ours, so no secret travels by accident."""
    kept = ("PATH", "HOME", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
    return {"LC_ALL": "C.UTF-8"} | {name: os.environ[name] for name in kept if name in os.environ}


def notify_socket() -> str | None:
    """Return where systemd wants to hear that a service is ready (sd_notify(3)), if it does."""
    return os.environ.get("NOTIFY_SOCKET")


def read_private(path: Path) -> bytes:
    """Return the content of a file that only its owner may read. Raises Invalid, saying what to do."""
    shown = printable(str(path))
    try:
        with path.open("rb") as file:
            _check_private(os.fstat(file.fileno()), path)
            content = file.read(_PRIVATE_FILE_LIMIT + 1)
    except OSError as exc:
        raise Invalid(f"{shown}: {exc.strerror}") from exc
    if len(content) > _PRIVATE_FILE_LIMIT:
        raise Invalid(f"{shown}: too long for a settings or key file")
    return content


def _check_private(status: os.stat_result, path: Path) -> None:
    shown, quoted = printable(str(path)), printable(shlex.quote(str(path)))
    if status.st_uid != os.geteuid():
        raise Invalid(f"{shown}: belongs to somebody else; run: chown {os.geteuid()} {quoted}")
    if stat.S_IMODE(status.st_mode) & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise Invalid(
            f"{shown}: holds secrets, but others may use it (mode {mode:04o}); run: chmod 600 {quoted}"
        )


class _TomlFile(PydanticBaseSettingsSource):
    """The TOML file, the weakest source; the stronger ones may say where it is."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Answer nothing field by field: `__call__` has the whole file."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        named = self.current_state.get("config")
        path = cast(Path, _absolute(named)) if named else _xdg("XDG_CONFIG_HOME", ".config") / "config.toml"
        if not named and not path.exists():
            return {}
        values = _parsed(path)
        unknown = sorted(values.keys() - self.settings_cls.model_fields.keys() | values.keys() & {"config"})
        if unknown:
            names = printable(", ".join(unknown))
            raise Invalid(f"{printable(str(path))}: unknown setting{'s' * (len(unknown) > 1)}: {names}")
        if self.current_state.keys() & {"encryption_key", "encryption_key_file"}:
            # The two are one setting in two forms: a stronger source's form replaces the file's.
            values = {name: value for name, value in values.items() if not name.startswith("encryption_key")}
        return values


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_private(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        # from None and no detail: the parser quotes the text, which may be a secret.
        raise Invalid(f"{printable(str(path))}: not valid TOML") from None


def _checked_key(text: str, source: str) -> str:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Invalid(f"{source}: not valid base64") from None  # the text is the secret
    if not key:
        raise Invalid(f"{source}: empty")
    return text


def _first_problem(exc: ValidationError) -> str:
    problem = exc.errors(include_input=False, include_url=False, include_context=False)[0]
    name = ".".join(str(part) for part in problem["loc"]) or "settings"
    return f"{name}: {problem['msg'].removeprefix('Value error, ')}"


def _missing(what: str, flag: str, name: str) -> str:
    variable = _ENV_PREFIX + name.upper()
    return (
        f"no {what} is set: use {flag}, {variable} or {name} in the settings file "
        '(for the embedded stack: eval "$(datas3tfs local env)")'
    )


def _xdg(variable: str, fallback: str) -> Path:
    # XDG Base Directory Specification: a relative path there is invalid and ignored.
    base = Path(os.environ.get(variable, ""))
    return (base if base.is_absolute() else Path.home() / fallback) / "datas3tfs"

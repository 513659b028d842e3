"""Settings: who wins, what is refused, and that no secret shows."""

import base64
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from datas3tfs import config
from datas3tfs.errors import Invalid

SECRET = "s3cr3t-h4mster"  # must never appear in an error or a repr
KEY = base64.b64encode(bytes(range(32))).decode()

WriteToml = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("DATAS3TFS_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteToml:
    """Write a private settings file and point DATAS3TFS_CONFIG at it."""

    def write(text: str) -> Path:
        path = tmp_path / "settings.toml"
        path.write_text(text)
        path.chmod(0o600)
        monkeypatch.setenv("DATAS3TFS_CONFIG", str(path))
        return path

    return write


def test_defaults(tmp_path: Path) -> None:
    settings = config.load()
    assert settings.cache_size == 10 * 2**30
    assert settings.memory_budget == 256 * 2**20
    assert settings.io_timeout == 30
    assert settings.cache_dir == tmp_path / ".cache/datas3tfs"
    assert settings.db_url is None


def test_flags_beat_environment_beats_file_beats_default(
    toml: WriteToml, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml('s3_region = "from-file"\n')
    assert config.load().s3_region == "from-file"
    monkeypatch.setenv("DATAS3TFS_S3_REGION", "from-env")
    assert config.load().s3_region == "from-env"
    assert config.load(s3_region=None).s3_region == "from-env"
    assert config.load(s3_region="from-flag").s3_region == "from-flag"


def test_the_file_of_the_flag_beats_the_file_of_the_environment(toml: WriteToml, tmp_path: Path) -> None:
    toml('s3_region = "environment"\n')
    other = tmp_path / "other.toml"
    other.write_text('s3_region = "flag"\ncache_size = "1GiB"\n')
    other.chmod(0o600)
    settings = config.load(config=other)
    assert (settings.s3_region, settings.cache_size) == ("flag", 2**30)


def test_the_file_of_the_home_directory_is_found(tmp_path: Path) -> None:
    path = tmp_path / ".config/datas3tfs/config.toml"
    path.parent.mkdir(parents=True)
    path.write_text("io_timeout = 5\n")
    path.chmod(0o600)
    assert config.load().io_timeout == 5


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"nowhere\.toml"):
        config.load(config=tmp_path / "nowhere.toml")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o700 | 0o010])
def test_loose_permissions_are_refused_with_the_remedy(toml: WriteToml, mode: int) -> None:
    path = toml("io_timeout = 5\n")
    path.chmod(mode)
    with pytest.raises(Invalid, match=f"chmod 600 {path}"):
        config.load()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_is_refused(toml: WriteToml) -> None:
    path = toml("io_timeout = 5\n")
    os.chown(path, 65534, 65534)
    with pytest.raises(Invalid, match=f"belongs to somebody else.*{path}"):
        config.load()


def test_unknown_keys_are_named(toml: WriteToml) -> None:
    toml('cache_sice = "1G"\nconfig = "x"\n[bucket]\nname = "b"\n')
    with pytest.raises(Invalid, match="unknown settings: bucket, cache_sice, config"):
        config.load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CACHE_SIZE", "lots"),
        ("CACHE_SIZE", "0"),
        ("IO_TIMEOUT", "-1"),
        ("IO_TIMEOUT", "nan"),
        ("LOG_LEVEL", "loud"),
        ("JOURNAL_SIZE", "0"),
        ("BATCH_BYTES", "-1"),
        ("BATCH_AGE", "-1"),
        ("BATCH_AGE", "nan"),
        ("FSYNC", "always"),
        ("URL_LIFE", "59"),
        ("URL_LIFE", "604801"),
        ("AUTH", "maybe"),
        ("ADDR", "8765"),
        ("ADDR", "host:65536"),
        ("ADDR", "host name:1"),
        ("ADDR", "::1:8765"),
        ("ADDR", f"user:{SECRET}@host:1"),
        ("SERVER_URL", "host:8765"),
        ("SERVER_URL", f"http://user:{SECRET}@host"),
        ("SERVER_URL", "http://host/path"),
        ("TLS_CERT", "/only-one"),
        ("DB_URL", f"mysql://root:{SECRET}@host/db"),
        ("DB_URL", f"postgresql://a:{SECRET} @host/db"),
    ],
)
def test_bad_values_are_refused_in_one_line(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"DATAS3TFS_{name}", value)
    with pytest.raises(Invalid) as caught:
        config.load()
    assert str(caught.value).startswith(name.lower())
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_how_files_are_written_can_be_set_everywhere(
    toml: WriteToml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = config.load()
    assert (before.journal_dir, before.fsync, before.batch_age) == (None, "commit", 5)
    toml('journal_dir = "~/j"\njournal_size = "1GiB"\nbatch_bytes = "8M"\nbatch_age = 0\nfsync = "journal"\n')
    found = config.load()
    assert (found.journal_dir, found.journal_size) == (tmp_path / "j", 2**30)
    assert (found.batch_bytes, found.batch_age, found.fsync) == (8 << 20, 0, "journal")
    monkeypatch.setenv("DATAS3TFS_FSYNC", "commit")
    monkeypatch.setenv("DATAS3TFS_BATCH_BYTES", "1MiB")
    found = config.load(batch_age=2.5)
    assert (found.fsync, found.batch_bytes, found.batch_age) == ("commit", 2**20, 2.5)


def test_journals_are_kept_where_state_belongs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert config.journals_dir() == tmp_path / ".local/state/datas3tfs/journals"
    monkeypatch.setenv("XDG_STATE_HOME", "/srv/state")
    assert config.journals_dir() == Path("/srv/state/datas3tfs/journals")


def test_broken_toml_is_refused_without_quoting_it(toml: WriteToml) -> None:
    path = toml(f'db_url = "postgresql://a:{SECRET}@h/d\n')
    with pytest.raises(Invalid, match=str(path)) as caught:
        config.load()
    assert SECRET not in str(caught.value)


def test_no_secret_in_a_repr(toml: WriteToml) -> None:
    toml(
        f'db_url = "postgresql://a:{SECRET}@h/d"\nencryption_key = "{SECRET}"\n'
        f's3_access_key = "{SECRET}"\ns3_secret_key = "{SECRET}"\n'
    )
    settings = config.load()
    assert SECRET not in repr(settings)
    assert SECRET not in str(settings)
    assert SECRET not in settings.model_dump_json()
    assert settings.require_db_url() == f"postgresql://a:{SECRET}@h/d"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config.load().s3_region = "elsewhere"


def test_what_is_missing_is_explained() -> None:
    with pytest.raises(Invalid, match="DATAS3TFS_DB_URL"):
        config.load().require_db_url()
    with pytest.raises(Invalid, match="DATAS3TFS_ENCRYPTION_KEY_FILE"):
        config.load().require_encryption_key()


def test_the_key_comes_from_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    path.chmod(0o600)
    settings = config.load(encryption_key_file=path)
    assert settings.require_encryption_key() == KEY
    path.chmod(0o644)
    with pytest.raises(Invalid, match=f"chmod 600 {path}"):
        settings.require_encryption_key()


def test_a_key_that_is_not_base64_is_refused_without_quoting_it() -> None:
    with pytest.raises(Invalid, match="not valid base64") as caught:
        config.load(encryption_key=f"!{SECRET}").require_encryption_key()
    assert SECRET not in str(caught.value)


def test_two_forms_of_the_key_in_one_place_are_refused(toml: WriteToml, tmp_path: Path) -> None:
    toml(f'encryption_key = "{KEY}"\nencryption_key_file = "{tmp_path}/key"\n')
    with pytest.raises(Invalid, match="both set"):
        config.load()


def test_a_key_file_in_the_environment_replaces_the_key_of_the_file(
    toml: WriteToml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml(f'encryption_key = "{KEY}"\n')
    monkeypatch.setenv("DATAS3TFS_ENCRYPTION_KEY_FILE", str(tmp_path / "key"))
    settings = config.load()
    assert settings.encryption_key is None
    assert settings.encryption_key_file == tmp_path / "key"


def test_children_inherit_none_of_our_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAS3TFS_DB_URL", f"postgresql://a:{SECRET}@h/d")
    monkeypatch.setenv("PGPASSWORD", SECRET)
    assert SECRET not in str(config.child_environment())


@pytest.mark.parametrize(
    ("addr", "where"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:8765", ("::1", 8765)),
        (":8765", ("0.0.0.0", 8765)),
        ("localhost:1", ("localhost", 1)),
    ],
)
def test_an_address_to_listen_at(addr: str, where: tuple[str, int]) -> None:
    assert config.load(addr=addr).listen_at() == where


def test_a_list_is_written_with_commas_or_as_toml_does(
    toml: WriteToml, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml('allow_endpoints = ["a", "b:1"]\n')
    assert config.load().allow_endpoints == ("a", "b:1")
    monkeypatch.setenv("DATAS3TFS_ALLOW_ENDPOINTS", " c , *,")
    assert config.load().allow_endpoints == ("c", "*")
    assert config.load(allow_endpoints=("d",)).allow_endpoints == ("d",)

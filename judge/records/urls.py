"""Which database records are in: its URL, and its password from a file."""

from pathlib import Path

from sqlalchemy import URL, exc, make_url

from judge.errors import ConfigError, first_line


def checked_url(url: str | URL) -> URL:
    """The URL of a database that records can be in.

    Raises:
        ConfigError: it is none, or of another kind of database.
    """
    try:
        parsed = make_url(url)
    except exc.ArgumentError as error:
        # The text of the URL stays out of the message: it may hold a password.
        raise ConfigError(
            "That is no URL of a database; write sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME."
        ) from error
    if "password" in parsed.query or "sslpassword" in parsed.query:
        # Messages hide the password in front of the host, and would show this one.
        raise ConfigError("The URL of the database has a password behind its ?; give it in a file instead.")
    if parsed.get_backend_name() == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite":
        raise ConfigError(f"No database of the kind {parsed.get_backend_name()!r}; use sqlite or postgresql.")
    if parsed.database in (None, "", ":memory:"):
        raise ConfigError("A database in memory forgets every decision; write sqlite:///PATH.")
    return parsed


def with_password(url: str | None, file: Path | None) -> str | URL | None:
    """A database's URL with the password that stands in a file; whoever may list processes sees the URL alone.

    Raises:
        ConfigError: the URL takes no password or has one already, or the file cannot be read or is empty.
    """
    if file is None:
        return url
    if url is None or (parsed := checked_url(url)).get_backend_name() == "sqlite":
        raise ConfigError(
            "SQLite has no password; give --database postgresql+psycopg://USER@HOST/NAME with it."
        )
    if parsed.password is not None:
        raise ConfigError("The URL of the database has a password and so has a file; leave one of them out.")
    try:
        password = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The password in {str(file)!r} cannot be read: {first_line(error)}.") from error
    if not password or "\n" in password or "\0" in password:
        raise ConfigError(f"{str(file)!r} holds no password; write it on one line.")
    return parsed.set(password=password)
